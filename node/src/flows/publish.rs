//! Publishing: a person's file or folder becomes a signed revision that peers hear of.
//!
//! Taking files in and the rules of heads are the registry's; here is whose key signs, and the order: hear what others know, take
//! the bytes in, scan them, sign, commit, attest what the scan found, tell.
//!
//! Invariant: a handle that another key claims is never signed for; nothing is told to peers before it is durable here, and what is
//! durable is told. Dropping the flow before the commit leaves nothing but unpinned bytes (and, at a handle's first publish, its key).

use std::{
    io::ErrorKind,
    path::PathBuf,
    sync::{Arc, OnceLock},
    time::SystemTime,
};

use cairn_compute::{
    adapter, arch,
    tasks::{Card, Task},
};
use cairn_protocol::{
    api,
    id::{PublisherKey, RevisionId},
    manifest::ManifestError,
    name::{Handle, Publisher, RefName, RefSpec, RepoId, RepoKind, RepoPath, RepoRef},
    record::{Head, Keypair, Record, RecordError, Revision},
    refusal::{Reason, Refusal},
};
use cairn_registry::{
    Committed, Description, FolderError, ImportError, InsertError, ModelSources, NextHead, PrepareOptions, Prepared,
    PublishError, ResolveError, Transfer,
};
use tokio::sync::mpsc::Sender;

use super::{
    announce,
    attest::{self, Finding},
    card, disk, names, origins, publishers,
    scan::{self, UnsafeFiles},
};
use crate::shell::Node;

/// Answers `Publish`.
pub async fn publish(
    node: Arc<Node>,
    request: api::PublishRequest,
    events: Sender<api::PublishEvent>,
) -> Result<(), Refusal> {
    let (path, branch) = place(&request.repo)?;
    let transfer = if request.link { Transfer::HardLink } else { Transfer::Copy };
    let wish = Wish {
        source: absolute(&request.path)?,
        path,
        branch,
        tag: tag(&request.tag)?,
        message: request.message,
        transfer,
        made_from: MadeFrom::default(),
        unsafe_files: UnsafeFiles::asked(request.allow_unsafe_files),
    };
    bring_in(&node, wish, events).await
}

/// The repo, and the branch that is to move: `REPO` or `REPO@BRANCH`.
pub(super) fn place(repo: &str) -> Result<(RepoPath, RefName), Refusal> {
    let name: RepoRef = repo.parse().map_err(|error| bad(repo, &error))?;
    match name.spec {
        None => Ok((name.path, RefName::main())),
        Some(RefSpec::Ref(branch)) => Ok((name.path, branch)),
        Some(RefSpec::Prefix(_)) => {
            let why = "a revision's hash is no branch";
            Err(Refusal::new(Reason::BadInput, repo, why).try_this("REPO or REPO@BRANCH"))
        }
    }
}

/// The tag that is asked for, if any.
pub(super) fn tag(text: &str) -> Result<Option<RefName>, Refusal> {
    if text.is_empty() {
        return Ok(None);
    }
    let tag: RefName = text.parse().map_err(|error| bad(text, &error))?;
    if tag == RefName::main() {
        let why = "every publication moves main, and tags never move";
        return Err(Refusal::new(Reason::BadInput, "--tag main", why).try_this("a tag of another name, such as v1"));
    }
    Ok(Some(tag))
}

/// What is to be published, and as what.
pub(super) struct Wish {
    pub source: PathBuf,
    pub path: RepoPath,
    /// The ref that moves.
    pub branch: RefName,
    pub tag: Option<RefName>,
    pub message: String,
    pub transfer: Transfer,
    pub made_from: MadeFrom,
    pub unsafe_files: UnsafeFiles,
}

/// Where the bytes come from, if a job made them of other revisions.
#[derive(Default)]
pub(super) struct MadeFrom {
    pub revisions: Vec<RevisionId>,
    /// What it is to them: "quantized".
    pub relation: &'static str,
    /// How, for people and programs.
    pub metadata: Vec<(String, String)>,
}

/// Whose publication it is.
struct Signer {
    publisher: PublisherKey,
    /// Of the publisher itself, or one that signs for it now.
    key: Keypair,
    /// Its key was made for this publication, and is stored only when there is something to sign.
    is_new: bool,
    /// The handle to claim, if this key has not claimed it yet.
    claim: Option<Handle>,
}

/// Takes in, signs, commits and tells. The last event is what was published.
pub(super) async fn bring_in(node: &Arc<Node>, wish: Wish, events: Sender<api::PublishEvent>) -> Result<(), Refusal> {
    let done = publish_wish(node, wish, &events).await?;
    // A client that hung up after the commit has still published.
    let _ = events.send(api::PublishEvent { event: Some(api::publish_event::Event::Done(done)) }).await;
    Ok(())
}

/// Takes in, scans, signs, commits, attests and tells.
pub(super) async fn publish_wish(
    node: &Arc<Node>,
    wish: Wish,
    events: &Sender<api::PublishEvent>,
) -> Result<api::Published, Refusal> {
    names::learn(node, &wish.path, &wish.branch).await;
    let signer = signer(node, &wish.path).await?;
    let repo = RepoId { publisher: signer.publisher, kind: wish.path.kind, name: wish.path.name.clone() };
    if let Some(tag) = &wish.tag {
        names::learn(node, &wish.path, tag).await;
        refuse_taken_tag(node, &wish.path, &repo, tag).await?;
    }
    let what = wish.path.to_string();
    let failed = |error| publish_refusal(node, &what, error);
    let unserved = Arc::new(OnceLock::new());
    let prepared = prepare(node, &wish, repo.clone(), unserved.clone(), events.clone()).await.map_err(failed)?;
    let scan = scan::judge(node, &what, &prepared.manifest.files, wish.unsafe_files).await?;
    let (files, bytes) = (prepared.manifest.files.len() as u64, prepared.manifest.bytes());
    let card_problems = prepared.card.iter().flat_map(|card| card.problems.iter().map(card::problem)).collect();
    let branch = next(node, &repo, &wish.branch).await?;
    let origins = origins::of(node, &wish.made_from, prepared.card.as_ref()).await?;
    keep_key(node, &wish.path, &signer)?;
    let statement = prepared.statement_for(signer.named(), origins);
    let records = sign(node, &signer, &prepared, statement, &wish, branch);
    let records = records.map_err(|error| Refusal::internal(&what, error))?;
    let told = node.tasks.spawn(commit_and_tell(node.clone(), prepared, records, scan::finding(&scan)));
    let told = told.await.map_err(|error| Refusal::internal(&what, error))?;
    let Committed { revision, .. } = told.map_err(failed)?;
    tracing::info!(repo = %wish.path, revision = %revision.short(), files, bytes, "published");
    Ok(api::Published {
        repo: what,
        revision: revision.to_string(),
        r#ref: wish.tag.as_ref().unwrap_or(&wish.branch).to_string(),
        epoch: branch.epoch,
        number: if wish.tag.is_some() { 1 } else { branch.number },
        files,
        bytes,
        key_created: signer.is_new,
        publisher: signer.publisher.to_string(),
        unserved: unserved.get().cloned().unwrap_or_default(),
        card_problems,
        scan: Some(scan::told(&scan)),
        ..api::Published::default()
    })
}

/// What is committed is told, even if whoever asked hangs up in between: it runs as a task of its own.
async fn commit_and_tell(
    node: Arc<Node>,
    prepared: Prepared,
    records: Vec<Record>,
    scanned: Finding,
) -> Result<Committed, PublishError> {
    let committed = node.registry.commit(prepared, records.clone()).await?;
    for record in records {
        node.net.publish_record(record).await;
    }
    if let Err(refusal) = attest::sign(&node, committed.revision, scanned, "", false).await {
        tracing::warn!(%refusal, revision = %committed.revision.short(), "what the scan found was not attested");
    }
    announce::keeps(&node, committed.revision).await;
    Ok(committed)
}

async fn signer(node: &Node, path: &RepoPath) -> Result<Signer, Refusal> {
    let own = names::own_keys(node)?;
    match (node.registry.resolve_publisher(&path.publisher, &own).await, &path.publisher) {
        (Ok((publisher, _)), _) => signer_for(node, path, publisher).await,
        (Err(ResolveError::UnknownHandle(_)), Publisher::Handle(handle)) => {
            let own = node.home.publisher(handle)?;
            let is_new = own.is_none();
            let key = own.unwrap_or_else(|| Keypair::from_seed(rand::random()));
            Ok(Signer { publisher: key.public(), key, is_new, claim: Some(handle.clone()) })
        }
        (Err(error), _) => Err(Refusal::new(Reason::Untrusted, path.to_string(), error.to_string())
            .try_this("another handle, or the publisher's key in its place")),
    }
}

async fn signer_for(node: &Node, path: &RepoPath, publisher: PublisherKey) -> Result<Signer, Refusal> {
    if let Some(found) = publishers::own_signer(node, publisher).await? {
        return Ok(Signer { publisher, key: found.key, is_new: false, claim: None });
    }
    let why = match &path.publisher {
        Publisher::Key(_) => "this node does not have that publisher's key".to_owned(),
        Publisher::Handle(handle) => {
            format!("the handle {handle} is claimed by the key {publisher}, which is not on this node")
        }
    };
    Err(Refusal::new(Reason::Untrusted, path.to_string(), why).try_this("another handle"))
}

impl Signer {
    /// What a record says of whose it is: nothing where its signer is the publisher itself.
    fn named(&self) -> Option<PublisherKey> {
        publishers::named(self.publisher, &self.key)
    }
}

/// Stores a new key before anything is signed with it, so that no acknowledged publication loses its key.
fn keep_key(node: &Node, path: &RepoPath, signer: &Signer) -> Result<(), Refusal> {
    let Some(handle) = signer.claim.as_ref().filter(|_| signer.is_new) else { return Ok(()) };
    if node.home.keep_publisher(handle, &signer.key)?.public() == signer.key.public() {
        return Ok(());
    }
    let why = format!("another publication made the key of {handle} in the meantime");
    Err(Refusal::new(Reason::Conflict, path.to_string(), why).try_this("the same again"))
}

async fn refuse_taken_tag(node: &Node, path: &RepoPath, repo: &RepoId, tag: &RefName) -> Result<(), Refusal> {
    if next(node, repo, tag).await?.previous.is_none() {
        return Ok(());
    }
    let why = format!("{tag} exists already, and tags never move");
    Err(Refusal::new(Reason::Exists, path.to_string(), why).try_this("another tag"))
}

async fn next(node: &Node, repo: &RepoId, name: &RefName) -> Result<NextHead, Refusal> {
    node.registry.next_head(repo, name).await.map_err(|error| Refusal::internal("the catalogue", error))
}

async fn prepare(
    node: &Node,
    wish: &Wish,
    repo: RepoId,
    unserved: Arc<OnceLock<String>>,
    events: Sender<api::PublishEvent>,
) -> Result<Prepared, PublishError> {
    let mut parents: Vec<RevisionId> = parent(node, &repo, &wish.branch).await?.into_iter().collect();
    let further = wish.made_from.revisions.iter().filter(|revision| !parents.contains(revision)).collect::<Vec<_>>();
    parents.extend(further);
    let options = PrepareOptions {
        message: wish.message.clone(),
        transfer: wish.transfer,
        parents,
        created_ms: now_ms(),
        metadata: wish.made_from.metadata.clone(),
        describe: match repo.kind {
            RepoKind::Adapter => Box::new(describe_adapter),
            _ => Box::new(move |sources| describe(sources, &unserved)),
        },
    };
    let item = wish.path.to_string();
    let progress = move |read: cairn_registry::Progress| {
        let progress = api::Progress {
            phase: "hash".to_owned(),
            bytes_done: read.done,
            bytes_total: read.total,
            item: item.clone(),
            place: 0,
        };
        // A reader that lags sees fewer steps.
        let _ = events.try_send(api::PublishEvent { event: Some(api::publish_event::Event::Progress(progress)) });
    };
    node.registry.prepare(wish.source.clone(), repo, options, progress).await
}

/// The revision that the branch stands for now; of a new branch, the one of `main`.
async fn parent(node: &Node, repo: &RepoId, branch: &RefName) -> Result<Option<RevisionId>, PublishError> {
    let refs = node.registry.refs(repo).await?;
    let of = |name: &RefName| refs.iter().find(|state| state.name == *name).and_then(|state| state.head.as_ref());
    Ok(of(branch).or_else(|| of(&RefName::main())).map(|head| head.revision))
}

/// The model that is served, if there is one; if there is another, why it is not.
fn describe(sources: &ModelSources<'_>, unserved: &OnceLock<String>) -> Result<Description, String> {
    let described = arch::describe(sources.config_json, sources.generation_config, sources.gguf, sources.tensors);
    let model = match described.map_err(|error| error.to_string())? {
        arch::Description::Model(model) => Some(*model),
        arch::Description::Unserved(why) => {
            if !has_task(sources) {
                // A publication is described once.
                let _ = unserved.set(why);
            }
            None
        }
        arch::Description::Nothing => None,
    };
    Ok(Description { model, ..Description::default() })
}

/// Whether nodes compute a task with it whole, though they generate nothing with it.
fn has_task(sources: &ModelSources<'_>) -> bool {
    matches!(Card::read(None, sources.config_json, false).task(), Task::Served(_))
}

/// A PEFT folder. What holds no `adapter_config.json` is stored and shared like anything, and not computed.
fn describe_adapter(sources: &ModelSources<'_>) -> Result<Description, String> {
    let Some(config) = sources.adapter_config else { return Ok(Description::default()) };
    let metadata = adapter::describe(config, sources.tensors).map_err(|error| error.to_string())?;
    Ok(Description { metadata, ..Description::default() })
}

fn sign(
    node: &Node,
    signer: &Signer,
    prepared: &Prepared,
    statement: Revision,
    wish: &Wish,
    branch: NextHead,
) -> Result<Vec<Record>, RecordError> {
    let (realm, key) = (node.registry.realm(), &signer.key);
    let mut records = Vec::new();
    if let Some(handle) = &signer.claim {
        records.push(publishers::first_profile(handle.clone(), now_ms()).sign(realm, key)?);
    }
    records.push(statement.sign(realm, key)?);
    let named = |head: Head| Head { publisher: signer.named(), ..head };
    records.push(named(prepared.head(wish.branch.clone(), branch, false)).sign(realm, key)?);
    if let Some(tag) = wish.tag.clone() {
        let first = NextHead { epoch: branch.epoch, number: 1, previous: None };
        records.push(named(prepared.head(tag, first, true)).sign(realm, key)?);
    }
    Ok(records)
}

pub(super) fn absolute(path: &str) -> Result<PathBuf, Refusal> {
    let path = PathBuf::from(path);
    if path.is_absolute() {
        return Ok(path);
    }
    let why = "the path must be absolute, for the daemon has another working folder";
    Err(Refusal::new(Reason::BadInput, path.display().to_string(), why).try_this("the whole path from /"))
}

fn now_ms() -> i64 {
    SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

pub(super) fn bad(what: &str, error: &dyn std::fmt::Display) -> Refusal {
    Refusal::new(Reason::BadInput, what, error.to_string()).try_this("cairn publish --help")
}

pub(super) fn publish_refusal(node: &Node, what: &str, error: PublishError) -> Refusal {
    let why = error.to_string();
    if let Some(refusal) = no_room(node, what, &error) {
        return refusal;
    }
    let (reason, advice) = match &error {
        PublishError::Folder(FolderError::Io { error, .. })
        | PublishError::Import(ImportError::Read { error, .. } | ImportError::Link { error, .. })
            if error.kind() == ErrorKind::PermissionDenied =>
        {
            (Reason::BadInput, "letting the daemon's user read it")
        }
        PublishError::Folder(_) => (Reason::BadInput, "another file or folder"),
        PublishError::Import(_) => (Reason::BadInput, "the same again when nothing writes there"),
        PublishError::Index { .. } | PublishError::Describe(_) => (Reason::BadInput, "a whole copy of the file"),
        PublishError::Manifest(ManifestError::MessageTooLong(_)) => (Reason::Limit, "a shorter message"),
        PublishError::Manifest(_) => (Reason::Limit, "fewer or smaller parts"),
        PublishError::Moved { .. } => (Reason::Conflict, "the same again"),
        PublishError::Insert(InsertError::TagOnMain) => (Reason::BadInput, "a tag of another name"),
        PublishError::TagExists(_) | PublishError::Insert(InsertError::TagMoves(_)) => (Reason::Exists, "another tag"),
        PublishError::Insert(_) => (Reason::Conflict, "the same again"),
        PublishError::Blobs(_) | PublishError::Catalog(_) | PublishError::Records(_) => {
            (Reason::Internal, "the node's log")
        }
    };
    Refusal::new(reason, what, why).try_this(advice)
}

/// Whether it was for want of room, which the blob store does not always say.
fn no_room(node: &Node, what: &str, error: &PublishError) -> Option<Refusal> {
    let why = match error {
        PublishError::Blobs(error) | PublishError::Import(ImportError::Blobs(error)) if error.is_disk_full() => {
            error.to_string()
        }
        PublishError::Blobs(_) | PublishError::Import(ImportError::Blobs(_)) if disk::is_full(node) => {
            format!("the disk of {} is full", node.home.root().display())
        }
        PublishError::Catalog(error) | PublishError::Insert(InsertError::Catalog(error)) if error.is_disk_full() => {
            error.to_string()
        }
        _ => return None,
    };
    Some(Refusal::new(Reason::DiskFull, what, why).try_this("making room, then the same again"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn main_is_no_tag_and_who_asks_for_it_hears_why_and_what_to_try() {
        let refusal = tag("main").unwrap_err();
        assert_eq!(refusal.reason, Reason::BadInput);
        let line = refusal.to_string();
        assert!(line.contains("tags never move") && line.contains("v1") && !line.contains('\n'), "{line}");
        assert_eq!(tag("").unwrap(), None);
        assert_eq!(tag("v1").unwrap(), Some("v1".parse().unwrap()));
        assert!(tag("no spaces").is_err());
    }
}
