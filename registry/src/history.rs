//! Decides, from the heads that are known of one ref, where the ref stands.
//!
//! Pure: no database, no clock. It does not decide who may sign heads (that is checked when a record is inserted).
//!
//! Invariant: the answer depends only on the set of heads, never on the order in which they arrived, save for `adopted`, by which
//! a node that already uses a head stays with it when a second head of the same number turns up.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet},
};

use cairn_protocol::id::{RecordId, RevisionId};

/// One head of one ref, as the catalogue keeps it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeadRow {
    /// Id of the head's record.
    pub id: RecordId,
    /// Rises with a key rotation.
    pub epoch: u64,
    /// Counts publications within an epoch.
    pub number: u64,
    /// What the ref names.
    pub revision: RevisionId,
    /// The head that this one follows.
    pub previous: Option<RecordId>,
    /// Whether the ref is a tag, which never moves.
    pub tag: bool,
}

impl HeadRow {
    /// What orders heads.
    pub fn place(&self) -> (u64, u64) {
        (self.epoch, self.number)
    }
}

/// Where a ref stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// The head in force, if any.
    pub head: Option<HeadRow>,
    /// Why a newer head is not in force.
    pub passed_over: Vec<PassedOver>,
}

/// A reason for which heads newer than the one in force do not count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PassedOver {
    /// The publisher's heads contradict each other: several claim one number, one does not continue the head that it names as its
    /// predecessor, or a tag's disagree.
    Contested {
        /// The first one's (epoch, number).
        place: (u64, u64),
        /// The heads, by (epoch, number, id).
        heads: Vec<HeadRow>,
    },
    /// The head's revision record has not arrived.
    RevisionUnknown(HeadRow),
    /// The publisher's keys were rotated, and no head of the ref is signed since; this is the newest from before. Whoever has an old key
    /// could have signed it.
    BeforeRotation(HeadRow),
}

/// Finds the head in force. `heads` are sorted by (epoch, number, id), as the catalogue keeps them; `epoch` is the publisher's now, and
/// only its heads count; `known` says whether a revision's record is here.
pub fn stand(heads: &[HeadRow], epoch: u64, adopted: Option<RecordId>, known: impl Fn(RevisionId) -> bool) -> Standing {
    let began = heads.partition_point(|head| head.epoch < epoch);
    match (&heads[..began], &heads[began..]) {
        (before, []) if !before.is_empty() => stand_before(before, adopted, known),
        (before, now) => stand_now(before, now, adopted, known),
    }
}

/// Nothing is signed since the rotation: a node stays where it was, and a newcomer has nothing to stand on.
fn stand_before(before: &[HeadRow], adopted: Option<RecordId>, known: impl Fn(RevisionId) -> bool) -> Standing {
    let used = before.iter().find(|head| Some(head.id) == adopted && known(head.revision));
    let passed_over = before.last().map(|newest| PassedOver::BeforeRotation(newest.clone()));
    Standing { head: used.cloned(), passed_over: passed_over.into_iter().collect() }
}

fn stand_now(
    before: &[HeadRow],
    heads: &[HeadRow],
    adopted: Option<RecordId>,
    known: impl Fn(RevisionId) -> bool,
) -> Standing {
    if heads.iter().any(|head| head.tag) {
        return stand_of_tag(heads, adopted, known);
    }
    let by_id: BTreeMap<RecordId, &HeadRow> = before.iter().chain(heads).map(|head| (head.id, head)).collect();
    let mut passed_over = Vec::new();
    for group in heads.chunk_by(|a, b| a.place() == b.place()).rev() {
        let (is_sound, chosen) = match group {
            [only] if continues(only, &by_id) => (true, Some(only)),
            rivals => (false, rivals.iter().find(|head| Some(head.id) == adopted)),
        };
        if !is_sound {
            passed_over.push(PassedOver::Contested { place: group[0].place(), heads: group.to_vec() });
        }
        match chosen {
            Some(head) if known(head.revision) => return Standing { head: Some(head.clone()), passed_over },
            Some(head) => passed_over.push(PassedOver::RevisionUnknown(head.clone())),
            None => {}
        }
    }
    Standing { head: None, passed_over }
}

/// Whether a head continues the one that it names as its predecessor. One that is not here is believed: it may still arrive, and then
/// this is decided anew.
fn continues(head: &HeadRow, by_id: &BTreeMap<RecordId, &HeadRow>) -> bool {
    let Some(previous) = head.previous.and_then(|id| by_id.get(&id)) else { return true };
    match head.epoch.cmp(&previous.epoch) {
        Ordering::Equal => head.number == previous.number.saturating_add(1),
        Ordering::Greater => true,
        Ordering::Less => false,
    }
}

/// A tag stands where all its heads agree; heads that disagree leave it nowhere but for a node that already uses one.
fn stand_of_tag(heads: &[HeadRow], adopted: Option<RecordId>, known: impl Fn(RevisionId) -> bool) -> Standing {
    let named: BTreeSet<RevisionId> = heads.iter().map(|head| head.revision).collect();
    let chosen = match named.len() {
        1 => heads.first(),
        _ => heads.iter().find(|head| Some(head.id) == adopted),
    };
    let mut passed_over = Vec::new();
    if named.len() > 1 {
        passed_over.push(PassedOver::Contested { place: heads[0].place(), heads: heads.to_vec() });
    }
    match chosen {
        Some(head) if known(head.revision) => Standing { head: Some(head.clone()), passed_over },
        Some(head) => {
            passed_over.push(PassedOver::RevisionUnknown(head.clone()));
            Standing { head: None, passed_over }
        }
        None => Standing { head: None, passed_over },
    }
}

/// What the next head of a ref must say: (epoch, number, previous). It follows the highest number that is known, contested or not:
/// that is how a successor heals a contested number. Of contested heads it follows the adopted one, else the first by id. In an epoch
/// that began since, numbers begin anew.
pub fn next(heads: &[HeadRow], epoch: u64, adopted: Option<RecordId>) -> (u64, u64, Option<RecordId>) {
    let Some(last) = heads.last() else { return (epoch, 1, None) };
    let top: Vec<&HeadRow> = heads.iter().filter(|head| head.place() == last.place()).collect();
    let followed = top.iter().find(|head| Some(head.id) == adopted).or(top.first()).map(|head| head.id);
    match last.epoch < epoch {
        true => (epoch, 1, followed),
        false => (last.epoch, last.number.saturating_add(1), followed),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn head(number: u64, id: u8) -> HeadRow {
        HeadRow {
            id: RecordId::from([id; 32]),
            epoch: 0,
            number,
            revision: RevisionId::from([id; 32]),
            previous: None,
            tag: false,
        }
    }

    fn number(standing: &Standing) -> Option<u64> {
        standing.head.as_ref().map(|head| head.number)
    }

    #[test]
    fn the_highest_number_is_in_force() {
        let standing = stand(&[head(1, 1), head(2, 2)], 0, None, |_| true);
        assert_eq!(number(&standing), Some(2));
        assert!(standing.passed_over.is_empty());
    }

    #[test]
    fn a_higher_epoch_beats_a_higher_number() {
        let rotated = HeadRow { epoch: 1, ..head(1, 9) };
        let standing = stand(&[head(1, 1), head(7, 2), rotated.clone()], 1, None, |_| true);
        assert_eq!(standing.head, Some(rotated));
    }

    #[test]
    fn a_number_with_two_heads_does_not_count_and_is_shown() {
        let standing = stand(&[head(1, 1), head(2, 2), head(2, 3)], 0, None, |_| true);
        assert_eq!(number(&standing), Some(1));
        assert!(
            matches!(&standing.passed_over[..], [PassedOver::Contested { place: (0, 2), heads }] if heads.len() == 2)
        );
    }

    #[test]
    fn a_node_that_uses_one_of_two_heads_stays_with_it() {
        let standing = stand(&[head(1, 1), head(2, 2), head(2, 3)], 0, Some(RecordId::from([3; 32])), |_| true);
        assert_eq!(standing.head.map(|head| head.id), Some(RecordId::from([3; 32])));
        assert_eq!(standing.passed_over.len(), 1);
    }

    #[test]
    fn a_successor_heals_a_contested_number() {
        let heads = [head(1, 1), head(2, 2), head(2, 3), head(3, 4)];
        let standing = stand(&heads, 0, None, |_| true);
        assert_eq!(number(&standing), Some(3));
        assert!(standing.passed_over.is_empty());
        assert_eq!(next(&heads[..3], 0, None), (0, 3, Some(RecordId::from([2; 32]))));
    }

    #[test]
    fn a_first_number_that_is_contested_leaves_the_ref_nowhere() {
        assert_eq!(stand(&[head(1, 1), head(1, 2)], 0, None, |_| true).head, None);
    }

    #[test]
    fn a_head_whose_revision_is_unknown_waits_behind_the_one_before_it() {
        let standing = stand(&[head(1, 1), head(2, 2)], 0, None, |revision| revision == RevisionId::from([1; 32]));
        assert_eq!(number(&standing), Some(1));
        assert!(matches!(standing.passed_over[..], [PassedOver::RevisionUnknown(_)]));
    }

    #[test]
    fn a_head_that_does_not_continue_its_predecessor_does_not_count_until_a_successor_heals_it() {
        let skips = HeadRow { previous: Some(RecordId::from([1; 32])), ..head(4, 2) };
        let standing = stand(&[head(1, 1), skips.clone()], 0, None, |_| true);
        assert_eq!(number(&standing), Some(1));
        assert!(matches!(&standing.passed_over[..], [PassedOver::Contested { heads, .. }] if heads.len() == 1));
        let alone = std::slice::from_ref(&skips);
        assert_eq!(number(&stand(alone, 0, None, |_| true)), Some(4), "a predecessor that is not here may fit");
        let healing = HeadRow { previous: Some(skips.id), ..head(5, 3) };
        assert_eq!(number(&stand(&[head(1, 1), skips.clone(), healing], 0, None, |_| true)), Some(5));
        assert_eq!(number(&stand(&[head(1, 1), skips.clone()], 0, Some(skips.id), |_| true)), Some(4));
    }

    #[test]
    fn a_tag_with_two_revisions_stands_nowhere() {
        let tag = |id| HeadRow { tag: true, ..head(1, id) };
        assert_eq!(stand(&[tag(1)], 0, None, |_| true).head, Some(tag(1)));
        assert_eq!(stand(&[tag(1), tag(2)], 0, None, |_| true).head, None);
    }

    #[test]
    fn a_later_number_does_not_move_a_tag() {
        let tag = HeadRow { tag: true, ..head(1, 1) };
        let standing = stand(&[tag, head(2, 2)], 0, None, |_| true);
        assert_eq!(standing.head, None);
    }

    proptest! {
        #[test]
        fn a_newcomer_never_stands_on_a_contested_number_and_a_successor_always_heals(
            places in proptest::collection::vec(1u64..8, 1..12),
        ) {
            let mut heads: Vec<HeadRow> =
                (0u8..).zip(&places).map(|(id, number)| head(*number, id)).collect();
            heads.sort_by_key(|head| (head.epoch, head.number, head.id));
            if let Some(chosen) = stand(&heads, 0, None, |_| true).head {
                prop_assert_eq!(heads.iter().filter(|head| head.place() == chosen.place()).count(), 1);
                let is_newer = |head: &&HeadRow| head.place() > chosen.place();
                for newer in heads.iter().filter(is_newer) {
                    prop_assert!(heads.iter().filter(|head| head.place() == newer.place()).count() > 1);
                }
            }
            let (epoch, number, previous) = next(&heads, 0, None);
            let successor = HeadRow { epoch, previous, ..head(number, 200) };
            heads.push(successor.clone());
            prop_assert_eq!(stand(&heads, 0, None, |_| true).head, Some(successor));
        }
    }

    #[test]
    fn after_a_rotation_an_old_key_moves_nothing_and_a_node_stays_where_it_was() {
        let old = [head(1, 1), head(9, 2)];
        let standing = stand(&old, 1, None, |_| true);
        assert_eq!(standing.head, None);
        assert!(matches!(&standing.passed_over[..], [PassedOver::BeforeRotation(newest)] if newest.number == 9));
        assert_eq!(number(&stand(&old, 1, Some(RecordId::from([1; 32])), |_| true)), Some(1));
        assert_eq!(next(&old, 1, None), (1, 1, Some(RecordId::from([2; 32]))));
        let signed_since = HeadRow { epoch: 1, previous: Some(RecordId::from([1; 32])), ..head(1, 3) };
        let standing = stand(&[old[0].clone(), old[1].clone(), signed_since.clone()], 1, None, |_| true);
        assert_eq!(standing.head, Some(signed_since));
    }

    #[test]
    fn a_tag_that_is_signed_anew_after_a_rotation_is_not_contested_by_an_old_key() {
        let tag = |epoch, id| HeadRow { epoch, tag: true, ..head(1, id) };
        let standing = stand(&[tag(0, 1), tag(0, 7), tag(1, 2)], 1, None, |_| true);
        assert_eq!(standing.head, Some(tag(1, 2)));
    }

    #[test]
    fn the_first_head_of_a_ref_is_number_one() {
        assert_eq!(next(&[], 0, None), (0, 1, None));
    }
}
