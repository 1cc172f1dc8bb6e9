//! Prefixes of record ids, half a byte a step, and what stands for all ids that begin with one: their count and their sum.
//!
//! Invariant: half bytes of a prefix beyond its length are zero, so equal prefixes are equal bytes.

use std::fmt;

use cairn_protocol::id::RecordId;

/// Half bytes of an id.
pub const STEPS_MAX: u8 = 64;
/// Prefixes that follow one by a step.
pub const CHILDREN: usize = 16;
/// Bytes of a fingerprint: two sets that differ agree in it once in 2^128.
pub const FINGERPRINT_BYTES: usize = 16;

/// The beginning of ids.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Prefix {
    bytes: [u8; 32],
    steps: u8,
}

impl Prefix {
    /// Of all ids.
    pub const ALL: Self = Self { bytes: [0; 32], steps: 0 };

    /// The first steps of an id.
    pub fn of(id: RecordId, steps: u8) -> Self {
        let mut bytes = *id.as_bytes();
        let whole = usize::from(steps / 2);
        if steps % 2 == 1 {
            bytes[whole] &= 0xF0;
        }
        let used = whole + usize::from(steps % 2);
        bytes[used.min(32)..].fill(0);
        Self { bytes, steps: steps.min(STEPS_MAX) }
    }

    /// From a message: as many bytes as its steps need. `None` for what [`Prefix::to_bytes`] doesn't write.
    pub fn parse(bytes: &[u8], steps: u32) -> Option<Self> {
        let steps = u8::try_from(steps).ok().filter(|steps| *steps <= STEPS_MAX)?;
        if bytes.len() != usize::from(steps.div_ceil(2)) {
            return None;
        }
        let mut id = [0; 32];
        id[..bytes.len()].copy_from_slice(bytes);
        let prefix = Self::of(RecordId::from(id), steps);
        (prefix.bytes == id).then_some(prefix)
    }

    /// As few bytes as hold it.
    pub fn to_bytes(self) -> Vec<u8> {
        self.bytes[..usize::from(self.steps.div_ceil(2))].to_vec()
    }

    /// Its half bytes.
    pub fn steps(self) -> u8 {
        self.steps
    }

    /// The first id that may begin with it.
    pub fn first_id(self) -> [u8; 32] {
        self.bytes
    }

    /// Whether the id begins with it.
    pub fn holds(self, id: RecordId) -> bool {
        Self::of(id, self.steps) == self
    }

    /// Whether all ids that begin with the other begin with it.
    pub fn contains(self, other: Self) -> bool {
        other.steps >= self.steps && Self::of(RecordId::from(other.bytes), self.steps) == self
    }

    /// The one of the next step. A prefix of all steps has none.
    pub fn child(self, step: usize) -> Option<Self> {
        if self.steps == STEPS_MAX {
            return None;
        }
        let mut bytes = self.bytes;
        let half = (step % CHILDREN) as u8;
        bytes[usize::from(self.steps / 2)] |= if self.steps.is_multiple_of(2) { half << 4 } else { half };
        Some(Self { bytes, steps: self.steps + 1 })
    }

    /// Which of this prefix's children the id is under. The prefix has children, and the id begins with it.
    pub fn step_of(self, id: RecordId) -> usize {
        let byte = id.as_bytes()[usize::from(self.steps / 2) % 32];
        usize::from(if self.steps.is_multiple_of(2) { byte >> 4 } else { byte & 15 })
    }
}

impl fmt::Debug for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = hex::encode(self.bytes);
        f.write_str(&text[..usize::from(self.steps)])
    }
}

/// What stands for a set of ids. (Sums of elements as in Meyer, "Range-based set reconciliation", 2023.)
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// How many.
    pub count: u64,
    /// Their sum, modulo 2^256.
    sum: [u64; 4],
}

impl Summary {
    /// Of these ids.
    pub fn of(ids: impl IntoIterator<Item = RecordId>) -> Self {
        let mut summary = Self::default();
        ids.into_iter().for_each(|id| summary.add(id));
        summary
    }

    /// With one more.
    pub fn add(&mut self, id: RecordId) {
        self.count += 1;
        let mut carry = false;
        for (limb, word) in self.sum.iter_mut().zip(words(id)) {
            let (sum, over) = limb.overflowing_add(word);
            let (sum, over_again) = sum.overflowing_add(u64::from(carry));
            (*limb, carry) = (sum, over || over_again);
        }
    }

    /// Without one that was among them.
    pub fn remove(&mut self, id: RecordId) {
        self.count = self.count.saturating_sub(1);
        let mut borrow = false;
        for (limb, word) in self.sum.iter_mut().zip(words(id)) {
            let (rest, under) = limb.overflowing_sub(word);
            let (rest, under_again) = rest.overflowing_sub(u64::from(borrow));
            (*limb, borrow) = (rest, under || under_again);
        }
    }

    /// What is compared over the wire: nobody gives two sets the same one on purpose, short of a generalised birthday attack on 256 bits.
    pub fn fingerprint(&self) -> [u8; FINGERPRINT_BYTES] {
        let mut hasher = blake3::Hasher::new_derive_key("cairn set fingerprint 1");
        hasher.update(&self.to_bytes());
        let mut fingerprint = [0; FINGERPRINT_BYTES];
        fingerprint.copy_from_slice(&hasher.finalize().as_bytes()[..FINGERPRINT_BYTES]);
        fingerprint
    }

    /// Count and sum, little-endian.
    pub fn to_bytes(self) -> [u8; 40] {
        let mut bytes = [0; 40];
        let words = [self.count].into_iter().chain(self.sum);
        bytes.chunks_exact_mut(8).zip(words).for_each(|(to, word)| to.copy_from_slice(&word.to_le_bytes()));
        bytes
    }

    /// What [`Summary::to_bytes`] wrote.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; 40] = bytes.try_into().ok()?;
        let (words, _) = bytes.as_chunks::<8>();
        let [count, sum @ ..] = [0, 1, 2, 3, 4].map(|at| u64::from_le_bytes(words[at]));
        Some(Self { count, sum })
    }
}

fn words(id: RecordId) -> [u64; 4] {
    let (words, _) = id.as_bytes().as_chunks::<8>();
    [0, 1, 2, 3].map(|at| u64::from_le_bytes(words[at]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(first: u8, second: u8) -> RecordId {
        let mut bytes = [7; 32];
        (bytes[0], bytes[1]) = (first, second);
        RecordId::from(bytes)
    }

    #[test]
    fn a_prefix_holds_what_begins_with_it_and_its_children_share_that() {
        let prefix = Prefix::of(id(0xAB, 0xCD), 3);
        assert_eq!(format!("{prefix:?}"), "abc");
        assert!(prefix.holds(id(0xAB, 0xC1)) && !prefix.holds(id(0xAB, 0xB1)));
        let child = prefix.child(prefix.step_of(id(0xAB, 0xC1))).unwrap();
        assert_eq!(child, Prefix::of(id(0xAB, 0xC1), 4));
        assert!(prefix.contains(child) && !child.contains(prefix) && Prefix::ALL.contains(prefix));
        assert_eq!(Prefix::of(id(1, 1), STEPS_MAX).child(0), None);
    }

    #[test]
    fn a_prefix_reads_back_and_what_is_none_is_refused() {
        for steps in 0..=STEPS_MAX {
            let prefix = Prefix::of(id(0xAB, 0xCD), steps);
            assert_eq!(Prefix::parse(&prefix.to_bytes(), steps.into()), Some(prefix));
        }
        assert_eq!(Prefix::parse(&[0xAB], 1), None, "bits beyond its end");
        assert_eq!((Prefix::parse(&[], 1), Prefix::parse(&[0; 33], 65)), (None, None));
    }

    #[test]
    fn what_was_added_can_be_taken_away_in_any_order() {
        let ids = [id(255, 255), id(255, 254), id(1, 0)];
        let mut summary = Summary::of(ids);
        assert_ne!(summary.fingerprint(), Summary::of([ids[0], ids[1]]).fingerprint());
        summary.remove(ids[1]);
        assert_eq!(summary, Summary::of([ids[2], ids[0]]));
        assert_eq!(Summary::parse(&summary.to_bytes()), Some(summary));
        [ids[0], ids[2]].into_iter().for_each(|id| summary.remove(id));
        assert_eq!(summary, Summary::default());
    }
}
