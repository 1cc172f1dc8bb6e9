//! Who has a revision, and its manifest, which everything else about its bytes needs first.
//!
//! Adverts name whole copies, the distributed table names more, and connected peers are asked. Not here: the bytes of files
//! ([`super::bring`]). Invariant: a manifest that is returned was verified against the revision's id and parsed.

use std::{collections::BTreeMap, time::Duration};

use cairn_protocol::{
    id::{BlobHash, NodeId, RevisionId},
    limits::MANIFEST_BYTES_MAX,
    manifest::Manifest,
    peer_pb::{Answer, Holding, Holds, Question, answer::Say, question::Ask},
    refusal::{Reason, Refusal},
};
use cairn_registry::{BlobError, HoldError, Resolved};
use futures::{StreamExt, stream};

use crate::{
    data::fetch::{FetchError, Source},
    net::PeerInfo,
    shell::Node,
};

/// Peers that are asked what they hold.
const ASKED_MAX: usize = 32;
/// Time for their answers.
const ASK_DEADLINE: Duration = Duration::from_secs(1);
/// Time for the distributed table, when nobody near is known to have it.
const TABLE_DEADLINE: Duration = Duration::from_secs(3);

/// Nodes whose adverts say that they keep the whole revision, nearest first.
pub fn holders(node: &Node, revision: RevisionId) -> Vec<Source> {
    let mut holders = node.net.peers();
    holders.retain(|peer| peer.advert.as_ref().is_some_and(|advert| advert.holds.contains(&revision)));
    in_order(holders)
}

/// Everyone who may have bytes of the revision: by advert, by answer, and by the distributed table if that is too few.
pub async fn find(node: &Node, revision: RevisionId) -> Vec<Source> {
    let mut found = holders(node, revision);
    add(&mut found, ask(node, revision).await);
    if found.is_empty() {
        let nodes = node.net.providers(revision, TABLE_DEADLINE).await;
        add(&mut found, in_order(nodes.into_iter().filter_map(|other| node.net.peer(other)).collect()));
    }
    found
}

/// Holders of the revision: this node first when it has all of it, last when it has some.
pub(crate) async fn sources(node: &Node, revision: RevisionId) -> Vec<Source> {
    let own = Source { node: node.identity.node_id(), addresses: node.data.addresses() };
    let holding = node.registry.held(revision).await.unwrap_or_default();
    if holding.whole {
        return std::iter::once(own).chain(holders(node, revision)).collect();
    }
    let mut sources = find(node, revision).await;
    if holding.bytes_held > 0 {
        sources.push(own);
    }
    sources
}

/// The manifest: from here, else from whoever has it.
pub async fn ensure_manifest(node: &Node, revision: RevisionId) -> Result<Manifest, Refusal> {
    if let Some(manifest) = local_manifest(node, revision).await? {
        return Ok(manifest);
    }
    let sources = find(node, revision).await;
    ensure_manifest_from(node, revision, &sources).await
}

/// The manifest of what a name resolved to. A manifest is not signed by itself, so one of another repo is refused,
/// whoever signed a record that points to it.
pub async fn manifest_of(node: &Node, resolved: &Resolved) -> Result<Manifest, Refusal> {
    let manifest = ensure_manifest(node, resolved.revision).await?;
    if manifest.repo == resolved.repo {
        return Ok(manifest);
    }
    Err(invalid(resolved.revision, format!("it is a manifest of another repo than {}", resolved.path)))
}

/// The manifest: from here, else from these nodes, else from others.
pub async fn ensure_manifest_from(node: &Node, revision: RevisionId, sources: &[Source]) -> Result<Manifest, Refusal> {
    if let Some(manifest) = local_manifest(node, revision).await? {
        return Ok(manifest);
    }
    let mut all = sources.to_vec();
    if all.is_empty() {
        all = find(node, revision).await;
    }
    if all.is_empty() {
        return Err(no_holder(node, revision).await);
    }
    let hash = revision.blob();
    let _pin = node.registry.blobs().temp_pin(hash).await;
    let size = manifest_size(node, revision, &all).await?;
    let whole = 0..size;
    let fetched = node.data.fetch_ranges(node, hash, size, std::slice::from_ref(&whole), &all, |_| {});
    fetched.await.map_err(|error| named(revision, error))?;
    match local_manifest(node, revision).await? {
        Some(manifest) => Ok(manifest),
        None => Err(Refusal::internal(revision.to_string(), "the manifest was fetched and is not here")),
    }
}

/// The manifest if it is here; a damaged copy is thrown away.
pub async fn local_manifest(node: &Node, revision: RevisionId) -> Result<Option<Manifest>, Refusal> {
    match node.registry.manifest(revision).await {
        Ok(Some(manifest)) if manifest.realm == node.registry.realm() => Ok(Some(manifest)),
        Ok(Some(_)) => Err(invalid(revision, "it belongs to another realm")),
        Ok(None) => Ok(None),
        Err(HoldError::Manifest { error, .. }) => Err(invalid(revision, &error)),
        Err(HoldError::Blobs(BlobError::Corrupt { hash, .. })) => {
            tracing::warn!(revision = %revision.short(), "the manifest on disk is damaged and is fetched anew");
            node.registry
                .blobs()
                .quarantine(hash)
                .await
                .map_err(|error| Refusal::internal(revision.to_string(), error))?;
            Ok(None)
        }
        Err(error) => Err(Refusal::internal(revision.to_string(), error)),
    }
}

/// That nobody who can be reached has it, with what is known of those who said they had.
pub async fn no_holder(node: &Node, revision: RevisionId) -> Refusal {
    let peers = node.net.peers();
    let connected = peers.iter().filter(|peer| peer.connected).count();
    let seen = node.net.providers(revision, ASK_DEADLINE).await.len();
    let why = match seen {
        0 => format!("no reachable node holds revision {}; {connected} peers are connected", revision.short()),
        seen => format!("no reachable node holds revision {}; {seen} are said to have held it", revision.short()),
    };
    Refusal::new(Reason::NoHolder, revision.to_string(), why).try_this("cairn peers")
}

/// From the revision's signed record if that is here, else the sources prove it.
async fn manifest_size(node: &Node, revision: RevisionId, sources: &[Source]) -> Result<u64, Refusal> {
    let known = node.registry.revision(revision).await.map_err(|error| Refusal::internal("the catalogue", error))?;
    let mut failed = FetchError::NoSource { hash: revision.blob() };
    let mut size = known.map(|(_, record)| record.manifest_bytes);
    for source in sources {
        if size.is_some() {
            break;
        }
        match node.data.blob_size(source, revision.blob()).await {
            Ok(proven) => size = Some(proven),
            Err(error) => failed = error,
        }
    }
    match size {
        Some(size) if size <= MANIFEST_BYTES_MAX as u64 => Ok(size),
        Some(size) => Err(invalid(revision, format!("{size} bytes, at most {MANIFEST_BYTES_MAX} are taken"))),
        None => Err(named(revision, failed)),
    }
}

/// Connected peers that say they have the revision's manifest; whoever has that has bytes of it, or will.
async fn ask(node: &Node, revision: RevisionId) -> Vec<Source> {
    let connected = node.net.peers().into_iter().filter(|peer| peer.connected && peer.advert.is_some()).take(ASKED_MAX);
    let asking = connected.map(|peer| async move {
        let has = holds(node, peer.node_id, revision.blob()).await;
        has.then_some(peer)
    });
    let answers: Vec<Option<PeerInfo>> = stream::iter(asking).buffer_unordered(ASKED_MAX).collect().await;
    in_order(answers.into_iter().flatten().collect())
}

async fn holds(node: &Node, peer: NodeId, hash: BlobHash) -> bool {
    let question = Question { ask: Some(Ask::Holds(Holds { hashes: vec![hash.to_vec()] })) };
    match node.net.ask(peer, question, ASK_DEADLINE).await {
        Ok(Answer { say: Some(Say::Held(held)) }) => {
            let has_some = |holding: &Holding| holding.complete || !holding.ranges.is_empty();
            held.holdings.iter().any(|holding| holding.hash == hash.as_bytes() && has_some(holding))
        }
        _ => false,
    }
}

/// Same host first, then by round trip.
fn in_order(mut peers: Vec<PeerInfo>) -> Vec<Source> {
    peers.sort_by_key(|peer| (!peer.same_host, !peer.connected, peer.rtt.unwrap_or(Duration::MAX), peer.node_id));
    let sources = peers.into_iter().filter_map(|peer| {
        let addresses = peer.advert?.data_addresses;
        (!addresses.is_empty()).then_some(Source { node: peer.node_id, addresses })
    });
    sources.collect()
}

fn add(sources: &mut Vec<Source>, more: Vec<Source>) {
    let known: BTreeMap<NodeId, ()> = sources.iter().map(|source| (source.node, ())).collect();
    sources.extend(more.into_iter().filter(|source| !known.contains_key(&source.node)));
}

fn named(revision: RevisionId, error: FetchError) -> Refusal {
    Refusal { what: format!("the manifest of revision {}", revision.short()), ..error.into() }
}

fn invalid(revision: RevisionId, why: impl ToString) -> Refusal {
    Refusal::new(
        Reason::Corrupt,
        format!("revision {revision}"),
        format!("its manifest is not valid: {}", why.to_string()),
    )
    .try_this("its publisher, to publish it again")
}
