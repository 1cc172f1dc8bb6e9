//! Publishers for people: who one is, which keys sign for it, and what this node signs in its name beside revisions.
//!
//! Which key may sign is the catalogue's knowledge ([`cairn_registry::authority`]); which keys are here is the home's. Invariant: a new
//! key is on disk before anything names it, and nothing is told to peers before it is durable here.

mod rotate;

use std::{str::FromStr, time::SystemTime};

use cairn_protocol::{
    api,
    id::PublisherKey,
    name::{Handle, Publisher},
    record::{Keypair, Profile, Record},
    refusal::{Reason, Refusal},
};
use cairn_registry::{InsertError, PublisherState};

pub use rotate::rotate;

use super::{names, show::catalog};
use crate::shell::Node;

/// A publisher and a key of this node that signs for it now.
pub(crate) struct Signer {
    pub publisher: PublisherKey,
    pub key: Keypair,
    pub state: PublisherState,
}

impl Signer {
    /// What a record of its says of whose it is: nothing where its signer is the publisher itself.
    pub fn named(&self) -> Option<PublisherKey> {
        named(self.publisher, &self.key)
    }
}

/// What a record that this key signs for the publisher says of whose it is: nothing where they are the same.
pub(super) fn named(publisher: PublisherKey, key: &Keypair) -> Option<PublisherKey> {
    (key.public() != publisher).then_some(publisher)
}

/// Answers `Publisher`.
pub async fn show(node: &Node, request: api::PublisherRequest) -> Result<api::PublisherResponse, Refusal> {
    let publisher = parse(&request.publisher)?;
    let key = whose(node, &publisher).await?;
    describe(node, key).await
}

/// Answers `KeyList`.
pub async fn list(node: &Node) -> Result<api::KeyListResponse, Refusal> {
    let mut publishers = Vec::new();
    for (handle, key) in node.home.publishers()? {
        let mut described = describe(node, key.public()).await?;
        if described.handle.is_empty() {
            described.handle = handle.to_string();
        }
        publishers.push(described);
    }
    Ok(api::KeyListResponse { publishers })
}

/// Answers `KeyNew`: a key, and the profile that claims its handle.
pub async fn new(node: &Node, request: api::KeyNewRequest) -> Result<api::PublisherResponse, Refusal> {
    let handle: Handle = request.handle.parse().map_err(|error| bad(&request.handle, &error))?;
    let recovery_key = optional_key(&request.recovery_key)?;
    if let Some(other) = node.registry.claimants(&handle).await.map_err(catalog)?.first() {
        let why = format!("the handle {handle} is claimed by the key {other}");
        return Err(Refusal::new(Reason::Exists, handle.to_string(), why).try_this("another handle"));
    }
    let fresh = Keypair::from_seed(rand::random());
    let key = node.home.keep_publisher(&handle, &fresh)?;
    if key.public() != fresh.public() {
        let why = "its key is here already; it claims the handle with its first publication";
        return Err(Refusal::new(Reason::Exists, handle.to_string(), why).try_this("cairn publish, or another handle"));
    }
    let profile =
        Profile { display_name: request.display_name, recovery_key, ..first_profile(handle.clone(), now_ms()) };
    state(node, key.public(), vec![sign(node, &profile, &key)?]).await?;
    describe(node, key.public()).await
}

/// Answers `ProfileSet`.
pub async fn set(node: &Node, request: api::ProfileSetRequest) -> Result<api::PublisherResponse, Refusal> {
    let signer = signer_for(node, &parse(&request.publisher)?).await?;
    let (epoch, now) = signer.state.authority.now();
    if now.signing_key != signer.key.public() {
        let why = "only the key that signs for it changes a profile, and a member's key is here";
        return Err(Refusal::new(Reason::Untrusted, request.publisher, why));
    }
    let before = profile_of(&signer)?;
    let mut members = before.members.clone();
    for member in &request.add_members {
        let key = whose(node, &parse(member)?).await?;
        if !members.contains(&key) {
            members.push(key);
        }
    }
    let display_name = match request.display_name.is_empty() {
        true => before.display_name.clone(),
        false => request.display_name,
    };
    let profile = Profile {
        display_name,
        members,
        epoch,
        number: before.number.saturating_add(1),
        publisher: signer.named(),
        previous: now.profile,
        created_ms: now_ms(),
        ..before
    };
    state(node, signer.publisher, vec![sign(node, &profile, &signer.key)?]).await?;
    describe(node, signer.publisher).await
}

/// The first profile of a publisher.
pub(crate) fn first_profile(handle: Handle, created_ms: i64) -> Profile {
    Profile {
        handle,
        display_name: String::new(),
        epoch: 0,
        recovery_key: None,
        previous: None,
        created_ms,
        publisher: None,
        number: 0,
        signing_key: None,
        members: Vec::new(),
    }
}

/// A key of this node that signs for the publisher now.
pub(crate) async fn signer_for(node: &Node, publisher: &Publisher) -> Result<Signer, Refusal> {
    let key = whose(node, publisher).await?;
    let why = "no key that signs for it is on this node";
    let found = own_signer(node, key).await?;
    found.ok_or_else(|| Refusal::new(Reason::Untrusted, publisher.to_string(), why).try_this("cairn key ls"))
}

/// A key of this node that signs for the publisher now, if there is one.
pub(crate) async fn own_signer(node: &Node, publisher: PublisherKey) -> Result<Option<Signer>, Refusal> {
    let state = node.registry.publisher(publisher).await.map_err(catalog)?;
    let (epoch, _) = state.authority.now();
    let key = node.home.signing_keys()?.into_iter().find(|key| state.authority.signs_in(epoch, key.public()));
    Ok(key.map(|key| Signer { publisher, key, state }))
}

/// The publisher that is meant.
pub(super) async fn whose(node: &Node, publisher: &Publisher) -> Result<PublisherKey, Refusal> {
    let own = names::own_keys(node)?;
    let resolved = node.registry.resolve_publisher(publisher, &own).await;
    resolved.map(|(key, _)| key).map_err(|error| {
        let reason = match error {
            cairn_registry::ResolveError::ClaimedBySeveral { .. } => Reason::Ambiguous,
            _ => Reason::NotFound,
        };
        Refusal::new(reason, publisher.to_string(), error.to_string()).try_this("its key, of 64 hex digits")
    })
}

/// Takes in what was signed and tells peers.
pub(super) async fn state(node: &Node, publisher: PublisherKey, records: Vec<Record>) -> Result<(), Refusal> {
    let taken = node.registry.state(publisher, records.clone()).await;
    taken.map_err(|error| match error {
        InsertError::Catalog(error) => catalog(error),
        error => Refusal::new(Reason::Conflict, publisher.to_string(), error.to_string()).try_this("the same again"),
    })?;
    for record in records {
        node.net.publish_record(record).await;
    }
    Ok(())
}

fn sign(node: &Node, profile: &Profile, key: &Keypair) -> Result<Record, Refusal> {
    profile.sign(node.registry.realm(), key).map_err(|error| bad("the profile", &error))
}

fn profile_of(signer: &Signer) -> Result<Profile, Refusal> {
    signer.state.profile.clone().ok_or_else(|| {
        let why = "its profile has not arrived here";
        Refusal::new(Reason::NotFound, signer.publisher.to_string(), why).try_this("again in a moment")
    })
}

pub(super) async fn describe(node: &Node, publisher: PublisherKey) -> Result<api::PublisherResponse, Refusal> {
    let state = node.registry.publisher(publisher).await.map_err(catalog)?;
    let (epoch, now) = state.authority.now();
    let handle = state.profile.as_ref().map(|profile| profile.handle.clone());
    let (claimants, resolved_by) = match &handle {
        Some(handle) => claims(node, handle, publisher).await?,
        None => Default::default(),
    };
    let keys = node.home.signing_keys()?;
    let advisers = node.registry.advisers().await.map_err(catalog)?;
    let contested = (0..).zip(&state.authority.epochs).filter(|(_, epoch)| !epoch.rivals.is_empty());
    Ok(api::PublisherResponse {
        publisher: publisher.to_string(),
        handle: handle.map(|handle| handle.to_string()).unwrap_or_default(),
        display_name: state.profile.as_ref().map(|profile| profile.display_name.clone()).unwrap_or_default(),
        epoch,
        signing_key: now.signing_key.to_string(),
        recovery_key: now.recovery_key.map(|key| key.to_string()).unwrap_or_default(),
        members: now.members.iter().map(PublisherKey::to_string).collect(),
        own: keys.iter().any(|key| state.authority.signs_in(epoch, key.public())),
        claimants,
        resolved_by,
        adviser: advisers.contains(&publisher),
        contested_epochs: contested.map(|(epoch, _)| epoch).collect(),
    })
}

/// Who else claims the handle, and why it means this publisher here if it does.
async fn claims(node: &Node, handle: &Handle, publisher: PublisherKey) -> Result<(Vec<String>, String), Refusal> {
    let claimants = node.registry.claimants(handle).await.map_err(catalog)?;
    let others = claimants.iter().filter(|key| **key != publisher).map(PublisherKey::to_string).collect();
    let decided = node.registry.decided_handles().await.map_err(catalog)?;
    let of = |is_trusted| {
        let here =
            |decided: &&cairn_registry::Decided| decided.handle == handle.folded() && decided.is_trusted == is_trusted;
        decided.iter().find(here).map(|decided| decided.publisher)
    };
    let by = match (of(true), of(false)) {
        _ if names::own_keys(node)?.contains(&publisher) => "own",
        (Some(trusted), _) => {
            if trusted == publisher {
                "trusted"
            } else {
                ""
            }
        }
        (None, Some(pinned)) => {
            if pinned == publisher {
                "pinned"
            } else {
                ""
            }
        }
        (None, None) => {
            if claimants == [publisher] {
                "sole"
            } else {
                ""
            }
        }
    };
    Ok((others, by.to_owned()))
}

pub(super) fn parse(publisher: &str) -> Result<Publisher, Refusal> {
    Publisher::from_str(publisher).map_err(|error| bad(publisher, &error))
}

fn optional_key(hex: &str) -> Result<Option<PublisherKey>, Refusal> {
    if hex.is_empty() {
        return Ok(None);
    }
    hex.parse().map(Some).map_err(|error| bad(hex, &error))
}

fn bad(what: &str, error: &dyn std::fmt::Display) -> Refusal {
    Refusal::new(Reason::BadInput, what, error.to_string()).try_this("a handle, or a key of 64 hex digits")
}

pub(super) fn now_ms() -> i64 {
    SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}
