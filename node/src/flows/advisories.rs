//! Advisories for people, and what this node does about them: a revision that the operator's policy refuses is not fetched, run or
//! mirrored.
//!
//! Whose word counts and what follows is the registry's. Invariant: a refusal names the advisory, its signer and what to try.

use std::fmt::Write as _;

use cairn_protocol::{
    api,
    id::{BlobHash, PublisherKey, RevisionId},
    manifest::Manifest,
    name::{Publisher, RefSpec, RepoId},
    record::{Advisory, Category, Subject},
    refusal::{Reason, Refusal},
};
use cairn_registry::{About, Notice, Policy, Resolved, Weight};

use super::{
    names,
    publishers::{self, Signer, now_ms},
    show::catalog,
};
use crate::shell::Node;

/// Answers `Advise`.
pub async fn advise(node: &Node, request: api::AdviseRequest) -> Result<api::AdviseResponse, Refusal> {
    let mut subjects = Vec::with_capacity(request.subjects.len());
    for subject in &request.subjects {
        subjects.push(subject_of(node, subject).await?);
    }
    let signer = signer(node, &request.signer, subjects.first()).await?;
    let known = node.registry.advisories_by(signer.key.public()).await.map_err(catalog)?;
    let before = known.into_iter().map(|(_, advisory)| advisory).find(|advisory| advisory.name == request.name);
    let advisory = match (request.withdraw, before) {
        (true, Some(before)) => {
            Advisory { number: before.number + 1, is_withdrawn: true, created_ms: now_ms(), ..before }
        }
        (true, None) => {
            let why = "this key has signed no advisory of that name";
            return Err(Refusal::new(Reason::NotFound, request.name, why).try_this("cairn advise ls"));
        }
        (false, before) => stated(request, subjects, before.map_or(1, |before| before.number + 1))?,
    };
    let record = advisory.sign(node.registry.realm(), &signer.key);
    let record = record.map_err(|error| Refusal::new(Reason::BadInput, advisory.name.clone(), error.to_string()))?;
    let id = record.id();
    publishers::state(node, signer.publisher, vec![record]).await?;
    let notice = Notice { id, signer: signer.key.public(), advisory, weight: Weight::Own };
    Ok(api::AdviseResponse { advisory: Some(told(node, &notice).await?) })
}

fn stated(request: api::AdviseRequest, subjects: Vec<Subject>, number: u64) -> Result<Advisory, Refusal> {
    let category = request.category.parse::<Category>();
    let category = category.map_err(|error| {
        Refusal::new(Reason::BadInput, request.category.clone(), error.to_string()).try_this("cairn advise --help")
    })?;
    if subjects.is_empty() {
        let why = "an advisory is about something";
        return Err(Refusal::new(Reason::BadInput, "advise", why).try_this("a repo, a revision, a publisher or a hash"));
    }
    let created_ms = now_ms();
    let name = match request.name.is_empty() {
        true => format!("{category}-{created_ms}"),
        false => request.name,
    };
    Ok(Advisory {
        name,
        number,
        category,
        is_withdrawn: false,
        subjects,
        text: request.text,
        url: request.url,
        instead: request.instead,
        created_ms,
    })
}

/// Answers `Advisories`: what is said of a revision, or what this node's keys and advisers say.
pub async fn list(node: &Node, request: api::AdvisoriesRequest) -> Result<api::AdvisoriesResponse, Refusal> {
    let notices = match request.repo.is_empty() {
        true => heeded(node).await?,
        false => {
            let resolved = names::resolve_anywhere(node, &names::parse(&request.repo)?).await?;
            let manifest = super::holders::manifest_of(node, &resolved).await.ok();
            on(node, &resolved.repo, resolved.revision, manifest.as_ref()).await?
        }
    };
    let mut advisories = Vec::with_capacity(notices.len());
    for notice in &notices {
        advisories.push(told(node, notice).await?);
    }
    Ok(api::AdvisoriesResponse { advisories })
}

async fn heeded(node: &Node) -> Result<Vec<Notice>, Refusal> {
    let own = node.home.signing_keys()?.into_iter().map(|key| (key.public(), Weight::Own));
    let mut signers: Vec<_> = own.collect();
    for adviser in node.registry.advisers().await.map_err(catalog)? {
        let state = node.registry.publisher(adviser).await.map_err(catalog)?;
        signers.push((state.authority.now().1.signing_key, Weight::Adviser));
    }
    let mut notices = Vec::new();
    for (signer, weight) in signers {
        let by = node.registry.advisories_by(signer).await.map_err(catalog)?;
        notices.extend(by.into_iter().map(|(id, advisory)| Notice { id, signer, advisory, weight }));
    }
    Ok(notices)
}

/// What is said of a revision; of its files too where its manifest is here.
pub(super) async fn on(
    node: &Node,
    repo: &RepoId,
    revision: RevisionId,
    manifest: Option<&Manifest>,
) -> Result<Vec<Notice>, Refusal> {
    let blobs: Vec<BlobHash> = manifest.map(|m| m.files.iter().map(|file| file.blake3).collect()).unwrap_or_default();
    let own: Vec<PublisherKey> = node.home.signing_keys()?.iter().map(|key| key.public()).collect();
    let about = About { repo: repo.clone(), revision, blobs };
    node.registry.advisories(about, &own).await.map_err(catalog)
}

/// Refuses what the operator's policy refuses; else what a person should know. `despite` are advisories that it is wanted despite.
pub(crate) async fn permit(
    node: &Node,
    resolved: &Resolved,
    manifest: &Manifest,
    despite: &[String],
) -> Result<Vec<Notice>, Refusal> {
    permit_revision(node, &resolved.repo, resolved.revision, Some(manifest), despite)
        .await
        .map_err(|refusal| Refusal { what: resolved.path.clone(), ..refusal })
}

/// The same of a revision that came without a name.
pub(crate) async fn permit_revision(
    node: &Node,
    repo: &RepoId,
    revision: RevisionId,
    manifest: Option<&Manifest>,
    despite: &[String],
) -> Result<Vec<Notice>, Refusal> {
    let judgement = policy(node).judge(&on(node, repo, revision, manifest).await?, despite);
    match judgement.refused.first() {
        None => Ok(judgement.warned),
        Some(notice) => Err(refusal(node, &repo.path().to_string(), notice).await?),
    }
}

fn policy(node: &Node) -> &Policy {
    &node.config.advisories
}

async fn refusal(node: &Node, what: &str, notice: &Notice) -> Result<Refusal, Refusal> {
    let (advisory, mut why) = (&notice.advisory, String::new());
    let handle = handle_of(node, notice.signer).await?;
    let by =
        if handle.is_empty() { notice.signer.to_string() } else { format!("{handle} ({})", notice.signer.short()) };
    let _ = write!(why, "advisory {} ({}) by {by}", advisory.name, advisory.category);
    if !advisory.text.is_empty() {
        let _ = write!(why, ": {}", advisory.text.lines().next().unwrap_or_default());
    }
    let advice = match advisory.instead.is_empty() {
        false => format!("{} instead", advisory.instead),
        true => format!("cairn show {what}, and --despite {} if it is wanted nevertheless", advisory.name),
    };
    Ok(Refusal::new(Reason::Policy, what, why).try_this(advice))
}

/// An advisory as the public API tells it.
pub(super) async fn told(node: &Node, notice: &Notice) -> Result<api::Advisory, Refusal> {
    let advisory = &notice.advisory;
    let policy = policy(node);
    let action = match notice.weight {
        Weight::Hearsay => "ignore",
        _ if advisory.is_withdrawn => "ignore",
        _ if policy.refuse.contains(&advisory.category) => "refuse",
        _ if policy.warn.contains(&advisory.category) => "warn",
        _ => "ignore",
    };
    Ok(api::Advisory {
        name: advisory.name.clone(),
        number: advisory.number,
        category: advisory.category.to_string(),
        subjects: advisory.subjects.iter().map(written).collect(),
        text: advisory.text.clone(),
        url: advisory.url.clone(),
        instead: advisory.instead.clone(),
        created_ms: advisory.created_ms,
        signer: notice.signer.to_string(),
        signer_handle: handle_of(node, notice.signer).await?,
        weight: notice.weight.name().to_owned(),
        action: action.to_owned(),
        withdrawn: advisory.is_withdrawn,
    })
}

fn written(subject: &Subject) -> String {
    match subject {
        Subject::Publisher(key) => key.to_string(),
        Subject::Repo(repo) => repo.path().to_string(),
        Subject::Revision(revision) => format!("revision {revision}"),
        Subject::Blob(blob) => format!("file {blob}"),
    }
}

/// The handle that a key claims, as far as its own profile says; empty if none is known.
pub(super) async fn handle_of(node: &Node, key: PublisherKey) -> Result<String, Refusal> {
    let state = node.registry.publisher(key).await.map_err(catalog)?;
    Ok(state.profile.map(|profile| profile.handle.to_string()).unwrap_or_default())
}

/// A publisher, `REPO`, `REPO@REF`, or a file's BLAKE3 after `blob:`.
async fn subject_of(node: &Node, subject: &str) -> Result<Subject, Refusal> {
    if let Some(hash) = subject.strip_prefix("blob:") {
        let blob = hash.parse::<BlobHash>().map_err(|_| {
            Refusal::new(Reason::BadInput, subject, "a blob's hash is 64 hex digits").try_this("cairn show REPO --json")
        })?;
        return Ok(Subject::Blob(blob));
    }
    if !subject.contains('/') {
        return Ok(Subject::Publisher(publishers::whose(node, &publishers::parse(subject)?).await?));
    }
    let name = names::parse(subject)?;
    let resolved = names::resolve_anywhere(node, &name).await?;
    Ok(match name.spec {
        None => Subject::Repo(resolved.repo),
        Some(RefSpec::Ref(_) | RefSpec::Prefix(_)) => Subject::Revision(resolved.revision),
    })
}

/// Who signs: the one that is named, else the publisher of the subject if it is ours, else the only one that is here.
pub(super) async fn signer(node: &Node, named: &str, about: Option<&Subject>) -> Result<Signer, Refusal> {
    if !named.is_empty() {
        return publishers::signer_for(node, &publishers::parse(named)?).await;
    }
    let publisher = match about {
        Some(Subject::Publisher(publisher)) => Some(*publisher),
        Some(Subject::Repo(repo)) => Some(repo.publisher),
        Some(Subject::Revision(revision)) => {
            node.registry.revision(*revision).await.map_err(catalog)?.map(|(repo, _)| repo.publisher)
        }
        Some(Subject::Blob(_)) | None => None,
    };
    if let Some(publisher) = publisher
        && let Some(signer) = publishers::own_signer(node, publisher).await?
    {
        return Ok(signer);
    }
    let own = node.home.publishers()?;
    let [(_, only)] = &own[..] else {
        let why = match own.is_empty() {
            true => "this node has no key to sign with",
            false => "this node has several keys, and none of them is the publisher's",
        };
        return Err(Refusal::new(Reason::BadInput, "signing", why).try_this("cairn key new HANDLE, or --as HANDLE"));
    };
    publishers::signer_for(node, &Publisher::Key(only.public())).await
}
