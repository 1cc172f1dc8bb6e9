//! Decides, from a publisher's profiles, which keys sign for it: now, and in every epoch before.
//!
//! Pure: no database, no clock. A publisher is the key that it began with, for ever; that key signs in epoch 0. An epoch ends when a
//! profile with number 0 of the next one is signed by the epoch's recovery key or, if the recovery key signed none, by the key that signs
//! in the epoch: so whoever stole a key can't keep it from who has the recovery key. An epoch's recovery key is what its first profile
//! names, and later profiles of the epoch don't change it, for a thief could sign those.
//!
//! Invariant: where profiles that begin one epoch disagree and nothing above decides, the one that was heard first here holds, so what
//! arrives later never takes a name away from a node that knew it before.

use std::collections::BTreeSet;

use cairn_protocol::{
    id::{PublisherKey, RecordId},
    record::{Profile, Record},
};

/// What one profile says about keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stated {
    /// Id of the profile's record.
    pub id: RecordId,
    /// Its epoch.
    pub epoch: u64,
    /// Its number in the epoch; 0 begins it.
    pub number: u64,
    /// Who signed it.
    pub signer: PublisherKey,
    /// The key that it says signs in its epoch; none: the publisher's own.
    pub signing_key: Option<PublisherKey>,
    /// The key that it says may end its epoch whatever the signing key says.
    pub recovery_key: Option<PublisherKey>,
    /// Keys that it lets sign beside.
    pub members: Vec<PublisherKey>,
    /// Counts what was heard here of the publisher.
    pub arrival: u64,
}

/// Who signs for a publisher.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authority {
    /// By epoch, from 0; at least one.
    pub epochs: Vec<Epoch>,
}

/// Who signs in one epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Epoch {
    /// Signs everything.
    pub signing_key: PublisherKey,
    /// Ends the epoch, whatever the signing key says.
    pub recovery_key: Option<PublisherKey>,
    /// Sign revisions and heads.
    pub members: BTreeSet<PublisherKey>,
    /// The profile in force; none is known of a publisher that is only heard of.
    pub profile: Option<RecordId>,
    /// Profiles that begin this epoch otherwise.
    pub rivals: Vec<RecordId>,
}

impl Stated {
    /// What this record says.
    pub fn of(record: &Record, profile: &Profile, arrival: u64) -> Self {
        Self {
            id: record.id(),
            epoch: profile.epoch,
            number: profile.number,
            signer: record.key(),
            signing_key: profile.signing_key,
            recovery_key: profile.recovery_key,
            members: profile.members.clone(),
            arrival,
        }
    }

    /// Whether this one makes `older` superfluous: later in the same epoch, by the same key, or the same beginning of it.
    pub fn supersedes(&self, older: &Self) -> bool {
        let is_same_sort = match (self.number, older.number) {
            (0, 0) => self.agrees(older) && self.members == older.members,
            (0, _) | (_, 0) => false,
            _ => true,
        };
        let is_later = (self.number, self.id) > (older.number, older.id);
        self.epoch == older.epoch && self.signer == older.signer && is_same_sort && is_later
    }

    fn agrees(&self, other: &Self) -> bool {
        (self.signing_key, self.recovery_key) == (other.signing_key, other.recovery_key)
    }
}

impl Authority {
    /// The epoch that counts now.
    pub fn now(&self) -> (u64, &Epoch) {
        let last = self.epochs.len() - 1;
        (last as u64, &self.epochs[last])
    }

    /// Whether the key may sign heads of this epoch.
    pub fn signs_in(&self, epoch: u64, key: PublisherKey) -> bool {
        let epoch = usize::try_from(epoch).ok().and_then(|at| self.epochs.get(at));
        epoch.is_some_and(|epoch| epoch.lets_sign(key))
    }

    /// Whether the key may sign revisions: in whatever epoch, since they say none.
    pub fn signs(&self, key: PublisherKey) -> bool {
        self.epochs.iter().any(|epoch| epoch.lets_sign(key))
    }

    /// Whether a profile may say what it says, given what is known before it.
    pub fn admits(&self, publisher: PublisherKey, stated: &Stated) -> bool {
        let at = |epoch: u64| usize::try_from(epoch).ok().and_then(|at| self.epochs.get(at));
        match (stated.epoch, stated.number) {
            (0, _) => stated.signer == publisher,
            (epoch, 0) => at(epoch - 1).is_some_and(|before| before.lets_end(stated.signer)),
            (epoch, _) => at(epoch).is_some_and(|epoch| epoch.signing_key == stated.signer),
        }
    }

    /// Whether everyone who signs in an epoch here signs in it in `later` too.
    pub fn is_kept_by(&self, later: &Self) -> bool {
        self.epochs.len() <= later.epochs.len()
            && self.epochs.iter().zip(&later.epochs).all(|(here, there)| here.signing_key == there.signing_key)
    }

    /// The last epoch that this key may end.
    pub fn last_that_ends_by(&self, key: PublisherKey) -> Option<u64> {
        let at = self.epochs.iter().rposition(|epoch| epoch.lets_end(key))?;
        Some(at as u64)
    }
}

impl Epoch {
    fn lets_sign(&self, key: PublisherKey) -> bool {
        self.signing_key == key || self.members.contains(&key)
    }

    fn lets_end(&self, key: PublisherKey) -> bool {
        self.signing_key == key || self.recovery_key == Some(key)
    }
}

/// Who signs for `publisher`, given all that is known of its profiles.
pub fn settle(publisher: PublisherKey, profiles: &[Stated]) -> Authority {
    let own: Vec<&Stated> = profiles
        .iter()
        .filter(|stated| stated.epoch == 0 && stated.number == 0 && stated.signer == publisher)
        .collect();
    let mut epochs = vec![match earliest(&own) {
        Some(first) => epoch(publisher, publisher, first, &own, profiles),
        None => bare(publisher, profiles),
    }];
    while let Some(next) = next_epoch(publisher, &epochs, profiles) {
        epochs.push(next);
    }
    Authority { epochs }
}

fn next_epoch(publisher: PublisherKey, epochs: &[Epoch], profiles: &[Stated]) -> Option<Epoch> {
    let before = epochs.last()?;
    let begins = |stated: &&Stated| stated.epoch == epochs.len() as u64 && stated.number == 0;
    let by = |key: PublisherKey| -> Vec<&Stated> {
        profiles.iter().filter(begins).filter(|stated| stated.signer == key).collect()
    };
    let recovered = before.recovery_key.map(by).unwrap_or_default();
    let candidates = if recovered.is_empty() { by(before.signing_key) } else { recovered };
    let first = earliest(&candidates)?;
    Some(epoch(first.signing_key.unwrap_or(publisher), publisher, first, &candidates, profiles))
}

fn earliest<'a>(candidates: &[&'a Stated]) -> Option<&'a Stated> {
    candidates.iter().min_by_key(|stated| (stated.arrival, stated.id)).copied()
}

/// The epoch that `first` begins.
fn epoch(
    signing_key: PublisherKey,
    publisher: PublisherKey,
    first: &Stated,
    candidates: &[&Stated],
    profiles: &[Stated],
) -> Epoch {
    let later = later(signing_key, first.epoch, profiles);
    let same = candidates.iter().copied().filter(|stated| stated.agrees(first));
    let newest = same.chain(later).max_by_key(|stated| (stated.number, stated.id)).unwrap_or(first);
    let rivals = candidates.iter().filter(|stated| !stated.agrees(first)).map(|stated| stated.id).collect();
    let recovery_key = first.recovery_key.filter(|key| *key != signing_key && *key != publisher);
    Epoch {
        signing_key,
        recovery_key,
        members: newest.members.iter().copied().collect(),
        profile: Some(newest.id),
        rivals,
    }
}

/// Epoch 0 of a publisher whose first profile is not here.
fn bare(publisher: PublisherKey, profiles: &[Stated]) -> Epoch {
    let newest = later(publisher, 0, profiles).max_by_key(|stated| (stated.number, stated.id));
    Epoch {
        signing_key: publisher,
        recovery_key: None,
        members: newest.map(|stated| stated.members.iter().copied().collect()).unwrap_or_default(),
        profile: newest.map(|stated| stated.id),
        rivals: Vec::new(),
    }
}

fn later(signing_key: PublisherKey, epoch: u64, profiles: &[Stated]) -> impl Iterator<Item = &Stated> {
    profiles.iter().filter(move |stated| stated.epoch == epoch && stated.number > 0 && stated.signer == signing_key)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key(byte: u8) -> PublisherKey {
        PublisherKey::from([byte; 32])
    }

    fn own() -> PublisherKey {
        key(1)
    }

    fn recovery() -> PublisherKey {
        key(9)
    }

    fn first(recovery_key: Option<PublisherKey>) -> Stated {
        Stated {
            id: RecordId::from([100; 32]),
            epoch: 0,
            number: 0,
            signer: own(),
            signing_key: None,
            recovery_key,
            members: Vec::new(),
            arrival: 0,
        }
    }

    fn rotation(epoch: u64, signer: PublisherKey, to: PublisherKey, arrival: u64) -> Stated {
        Stated {
            id: RecordId::from([arrival as u8; 32]),
            epoch,
            signer,
            signing_key: Some(to),
            recovery_key: Some(recovery()),
            arrival,
            ..first(None)
        }
    }

    #[test]
    fn a_publisher_of_which_nothing_is_known_signs_with_its_own_key() {
        let authority = settle(own(), &[]);
        assert!(authority.signs_in(0, own()) && !authority.signs_in(1, own()) && !authority.signs(key(2)));
    }

    #[test]
    fn after_a_rotation_only_the_new_key_signs_in_the_new_epoch() {
        let authority = settle(own(), &[first(None), rotation(1, own(), key(2), 1)]);
        assert_eq!(authority.now().0, 1);
        assert!(authority.signs_in(1, key(2)) && !authority.signs_in(1, own()) && authority.signs_in(0, own()));
    }

    #[test]
    fn a_thief_who_rotates_first_loses_to_the_recovery_key() {
        let thief = rotation(1, own(), key(66), 1);
        let further = rotation(2, key(66), key(67), 2);
        let mut known = vec![first(Some(recovery())), thief, further];
        assert_eq!(settle(own(), &known).now().0, 2);
        known.push(rotation(1, recovery(), key(2), 3));
        let authority = settle(own(), &known);
        assert_eq!(authority.now().0, 1);
        assert!(authority.signs_in(1, key(2)) && !authority.signs(key(66)) && !authority.signs(key(67)));
    }

    #[test]
    fn a_thief_can_not_put_another_recovery_key_in_place() {
        let forged = Stated { id: RecordId::from([0; 32]), arrival: 5, ..first(Some(key(66))) };
        let changed = Stated { number: 7, id: RecordId::from([3; 32]), arrival: 6, ..first(Some(key(66))) };
        let taken = rotation(1, key(66), key(67), 7);
        let known = [first(Some(recovery())), forged, changed, taken];
        let authority = settle(own(), &known);
        assert_eq!((authority.now().0, authority.epochs[0].recovery_key), (0, Some(recovery())));
        assert_eq!(authority.epochs[0].rivals.len(), 1);
    }

    #[test]
    fn of_two_rotations_by_one_key_the_first_that_was_heard_holds_and_the_other_is_shown() {
        let known = [first(None), rotation(1, own(), key(3), 2), rotation(1, own(), key(2), 1)];
        let authority = settle(own(), &known);
        assert!(authority.signs_in(1, key(2)) && !authority.signs_in(1, key(3)));
        assert_eq!(authority.epochs[1].rivals, [RecordId::from([2; 32])]);
    }

    #[test]
    fn members_sign_as_long_as_the_newest_profile_of_the_epoch_names_them() {
        let with = |number, members: Vec<PublisherKey>| Stated { number, members, arrival: number, ..first(None) };
        let authority = settle(own(), &[first(None), with(1, vec![key(5)]), with(2, vec![key(5), key(6)])]);
        assert!(authority.signs_in(0, key(5)) && authority.signs_in(0, key(6)) && !authority.signs_in(1, key(5)));
    }

    #[test]
    fn the_key_of_an_epoch_before_can_not_begin_the_one_after_next() {
        let authority = settle(own(), &[first(None), rotation(1, own(), key(2), 1)]);
        assert!(!authority.admits(own(), &rotation(2, own(), key(3), 2)));
        assert!(authority.admits(own(), &rotation(2, key(2), key(3), 2)));
        assert!(!authority.admits(own(), &rotation(3, key(2), key(3), 2)), "an epoch is skipped");
    }

    proptest! {
        /// Whatever a thief of the first key signs later, who has the recovery key signs in the epoch that it begins.
        #[test]
        fn nothing_that_a_thief_signs_outranks_the_recovery_key(
            forged in proptest::collection::vec((0u64..4, 0u64..3, 60u8..66, any::<[u8; 32]>(), any::<bool>()), 0..12),
            at in 0usize..12,
        ) {
            let mut known = vec![first(Some(recovery()))];
            for (arrival, (epoch, number, to, id, by_own)) in (1u64..).zip(forged) {
                let signer = if by_own { own() } else { key(to) };
                let stated = Stated { number, id: RecordId::from(id), ..rotation(epoch, signer, key(to), arrival) };
                let stated = Stated { recovery_key: Some(key(to)), ..stated };
                if settle(own(), &known).admits(own(), &stated) {
                    known.push(stated);
                }
            }
            let recovered = rotation(1, recovery(), key(2), 99);
            known.insert(at.min(known.len()), recovered);
            let authority = settle(own(), &known);
            prop_assert_eq!(authority.epochs.len(), 2);
            prop_assert_eq!(authority.epochs[1].signing_key, key(2));
        }
    }
}
