//! What pages of keys and values are known by, so that a prompt that begins like an earlier one is not computed again. Pure.
//!
//! A coordinator names a page by all ids up to its end ([`chain`]) and, for each stage, by whatever came between those ids and the
//! stage: the nodes before it and their instruction set ([`for_stage`]). A stage adds who asks ([`of_asker`]), so one
//! coordinator neither finds nor spoils another's pages: a stage can't tell whether hidden states are those of the ids that
//! they are said to be, and how soon an answer comes would tell a stranger what others asked. Whoever lies, or trusts a node that
//! does, harms its own sessions only.
//!
//! Not here: the weights and the adapter, which the engine keeps apart itself. Invariant: equal keys of one asker mean
//! equal pages, as long as the nodes that it chose compute what they should.

use cairn_compute::{PAGE_POSITIONS, PageKey, plan::Plan};
use cairn_protocol::id::NodeId;

const OF_IDS: &str = "cairn 2026-11 page of token ids";
const OF_STAGE: &str = "cairn 2026-11 page of a stage after others";
const OF_ASKER: &str = "cairn 2026-11 page of one asker";

/// Keys of the full pages of `ids`.
pub(crate) fn chain(ids: &[u32]) -> Vec<PageKey> {
    let mut before = [0; 32];
    let next = |page: &[u32]| {
        let mut hasher = blake3::Hasher::new_derive_key(OF_IDS);
        hasher.update(&before);
        for id in page {
            hasher.update(&id.to_le_bytes());
        }
        before = *hasher.finalize().as_bytes();
        before
    };
    ids.chunks_exact(PAGE_POSITIONS).map(next).collect()
}

/// Keys of the same pages at one stage of a plan, side by side as they travel.
pub(crate) fn for_stage(keys: &[PageKey], plan: &Plan, index: usize) -> Vec<u8> {
    let before = &plan.stages[..index];
    let of = |key: &PageKey| {
        let mut hasher = blake3::Hasher::new_derive_key(OF_STAGE);
        hasher.update(key).update(&(before.len() as u64).to_le_bytes());
        for stage in before {
            hasher.update(stage.node.as_bytes());
        }
        hasher.update(plan.level.as_bytes());
        *hasher.finalize().as_bytes()
    };
    keys.iter().flat_map(of).collect()
}

/// What a stage knows the pages by that `asker` calls so; none when they are not whole keys.
pub(crate) fn of_asker(keys: &[u8], asker: NodeId) -> Option<Vec<PageKey>> {
    let (keys, rest) = keys.as_chunks::<32>();
    let of = |key: &PageKey| {
        let mut hasher = blake3::Hasher::new_derive_key(OF_ASKER);
        hasher.update(asker.as_bytes()).update(key);
        *hasher.finalize().as_bytes()
    };
    rest.is_empty().then(|| keys.iter().map(of).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(n: usize) -> Vec<u32> {
        (0..n as u32).collect()
    }

    #[test]
    fn a_key_names_all_ids_up_to_its_end() {
        let long = chain(&ids(3 * PAGE_POSITIONS + 5));
        assert_eq!(long.len(), 3);
        assert_eq!(chain(&ids(2 * PAGE_POSITIONS)), long[..2]);
        let mut other = ids(3 * PAGE_POSITIONS);
        other[0] += 1;
        assert!(chain(&other).iter().zip(&long).all(|(a, b)| a != b), "one id changes every page after it");
        assert!(chain(&ids(PAGE_POSITIONS - 1)).is_empty());
    }

    #[test]
    fn askers_do_not_share_pages_and_half_a_key_is_none() {
        let keys = chain(&ids(2 * PAGE_POSITIONS)).concat();
        let [one, other] = [1, 2].map(|n| of_asker(&keys, NodeId::from([n; 32])).unwrap());
        assert!(one.len() == 2 && one.iter().all(|key| !other.contains(key)));
        assert_eq!(of_asker(&keys[..33], NodeId::from([1; 32])), None);
    }
}
