//! What this node tells others that it keeps: its advert's list of whole revisions, and provider records.
//!
//! Only the record class is told, and only what is whole; the stage cache is nobody's copy. Which revisions those are is the
//! registry's knowledge. Invariant: a revision is told after its pin is durable, and withdrawn when bytes of it are lost.

use cairn_protocol::{
    id::{BlobHash, RevisionId},
    limits::ADVERT_HOLDS_MAX,
};

use crate::shell::Node;

/// Tells that this node keeps the whole of a revision.
pub async fn keeps(node: &Node, revision: RevisionId) {
    node.net.state(|statement| {
        statement.holds.retain(|held| *held != revision);
        statement.holds.insert(0, revision);
        statement.holds.truncate(ADVERT_HOLDS_MAX);
    });
    node.net.provide(revision).await;
}

/// Takes that back.
pub async fn lost(node: &Node, revision: RevisionId) {
    node.net.state(|statement| statement.holds.retain(|held| *held != revision));
    node.net.withdraw(revision).await;
}

/// Takes it back for every kept revision that contains a blob whose bytes are lost.
pub async fn lost_blob(node: &Node, blob: BlobHash) {
    match node.registry.kept_with(blob).await {
        Ok(kept) => {
            for revision in kept {
                lost(node, revision).await;
            }
        }
        Err(error) => tracing::warn!(%error, blob = %blob.short(), "who contains a lost blob could not be read"),
    }
}

/// Tells everything that is kept whole, newest last, so that the newest lead the advert's list. For the start of a node.
pub async fn everything(node: &Node) {
    let kept = match node.registry.kept().await {
        Ok(kept) => kept,
        Err(error) => return tracing::warn!(%error, "what is kept could not be read, so it is not announced"),
    };
    let mut whole = Vec::new();
    for revision in kept {
        let is_whole = node.registry.held(revision).await.is_ok_and(|held| held.whole);
        if is_whole && let Ok(Some((_, record))) = node.registry.revision(revision).await {
            whole.push((record.created_ms, revision));
        }
    }
    whole.sort_unstable();
    for (_, revision) in whole {
        keeps(node, revision).await;
    }
}
