//! Key rotation: a new epoch of a publisher, signed by the key that signs now or by its recovery key.
//!
//! What the publisher's refs stand for, and its advisories, are signed anew with the new key in the same transaction, for heads of before
//! the epoch count no more.
//! Invariant: the new key is on disk before it is named; either the whole rotation is in the catalogue or nothing of it.

use std::path::Path;

use cairn_protocol::{
    api,
    id::PublisherKey,
    name::RepoId,
    record::{Head, Keypair, Profile, Record},
    refusal::{Reason, Refusal},
};
use cairn_registry::RefState;

use super::{bad, describe, now_ms, optional_key, parse, sign, state, whose};
use crate::{flows::show::catalog, shell::Node};

/// Answers `KeyRotate`.
pub async fn rotate(node: &Node, request: api::KeyRotateRequest) -> Result<api::KeyRotateResponse, Refusal> {
    let publisher = whose(node, &parse(&request.publisher)?).await?;
    let known = node.registry.publisher(publisher).await.map_err(catalog)?;
    let ender = ender(node, &request, &known).await?;
    let ends = known.authority.last_that_ends_by(ender.public()).ok_or_else(|| {
        let why = "that key is neither its recovery key nor one that signs for it";
        Refusal::new(Reason::Untrusted, request.publisher.clone(), why).try_this("cairn key ls")
    })?;
    let before = known.profile.ok_or_else(|| {
        let why = "its profile has not arrived here";
        Refusal::new(Reason::NotFound, request.publisher.clone(), why).try_this("again in a moment")
    })?;
    let removed = removed(node, &request.remove_members).await?;
    let epoch = ends + 1;
    let fresh = Keypair::from_seed(rand::random());
    node.home.keep_signing_key(&before.handle, &fresh)?;
    let recovery_key = match optional_key(&request.recovery_key)? {
        Some(key) => Some(key),
        None => known.authority.epochs[ends as usize].recovery_key,
    };
    let profile = Profile {
        members: before.members.iter().copied().filter(|member| !removed.contains(member)).collect(),
        epoch,
        number: 0,
        publisher: Some(publisher),
        signing_key: Some(fresh.public()),
        recovery_key,
        previous: known.authority.now().1.profile,
        created_ms: now_ms(),
        ..before
    };
    let warned = node.registry.advisories_by(known.authority.now().1.signing_key).await.map_err(catalog)?;
    let refs = node.registry.refs_of(publisher).await.map_err(catalog)?;
    let mut records = vec![sign(node, &profile, &ender)?];
    let mut signed = Vec::new();
    for (repo, state) in &refs {
        if let Some(record) = anew(node, repo, state, epoch, &fresh)? {
            records.push(record);
            signed.push(format!("{}@{}", repo.path(), state.name));
        }
    }
    // Warnings of a key that signs no more would be hearsay from now on.
    for (_, advisory) in warned.iter().filter(|(_, advisory)| !advisory.is_withdrawn) {
        let record = advisory.sign(node.registry.realm(), &fresh);
        records.push(record.map_err(|error| Refusal::internal(advisory.name.clone(), error))?);
    }
    state(node, publisher, records).await?;
    tracing::info!(%publisher, epoch, refs = signed.len(), "rotated");
    Ok(api::KeyRotateResponse { publisher: Some(describe(node, publisher).await?), refs: signed })
}

/// The key that ends the epoch.
async fn ender(
    node: &Node,
    request: &api::KeyRotateRequest,
    known: &cairn_registry::PublisherState,
) -> Result<Keypair, Refusal> {
    if !request.recovery_file.is_empty() {
        return read_key(&request.recovery_file).await;
    }
    let signing = known.authority.now().1.signing_key;
    let own = node.home.signing_keys()?.into_iter().find(|key| key.public() == signing);
    own.ok_or_else(|| {
        let why = "the key that signs for it is not on this node";
        Refusal::new(Reason::Untrusted, request.publisher.clone(), why)
            .try_this("--recovery FILE with its recovery key, or the node that has the key")
    })
}

async fn read_key(path: &str) -> Result<Keypair, Refusal> {
    if !Path::new(path).is_absolute() {
        let why = "the path must be absolute, for the daemon has another working folder";
        return Err(Refusal::new(Reason::BadInput, path, why).try_this("the whole path from /"));
    }
    let text = tokio::fs::read_to_string(path).await.map_err(|error| bad(path, &error))?;
    let mut seed = [0; 32];
    hex::decode_to_slice(text.trim(), &mut seed).map_err(|_| bad(path, &"a key's file has 64 hex digits"))?;
    Ok(Keypair::from_seed(seed))
}

async fn removed(node: &Node, members: &[String]) -> Result<Vec<PublisherKey>, Refusal> {
    let mut keys = Vec::with_capacity(members.len());
    for member in members {
        keys.push(whose(node, &parse(member)?).await?);
    }
    Ok(keys)
}

/// The first head of a ref in the new epoch: it goes on standing for what it stood for.
fn anew(node: &Node, repo: &RepoId, state: &RefState, epoch: u64, key: &Keypair) -> Result<Option<Record>, Refusal> {
    let last = state.history.iter().rfind(|known| known.epoch < epoch);
    // What a thief signed in an epoch that is being taken back does not go on.
    let Some(head) = state.head.as_ref().filter(|head| head.epoch < epoch).or(last) else { return Ok(None) };
    let anew = Head {
        kind: repo.kind,
        name: repo.name.clone(),
        ref_name: state.name.clone(),
        epoch,
        number: 1,
        revision: head.revision,
        previous: last.filter(|_| !head.tag).map(|last| last.id),
        created_ms: now_ms(),
        tag: head.tag,
        publisher: Some(repo.publisher),
    };
    let record = anew.sign(node.registry.realm(), key);
    record.map(Some).map_err(|error| Refusal::internal(repo.path().to_string(), error))
}
