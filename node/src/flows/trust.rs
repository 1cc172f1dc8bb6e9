//! Whose names and warnings an operator believes: handles that mean a key here, and publishers whose advisories count.
//!
//! Invariant: only a person's act changes any of it; what peers say never does.

use cairn_protocol::{
    api,
    id::PublisherKey,
    name::{Handle, Publisher},
    refusal::{Reason, Refusal},
};

use super::{publishers, show::catalog};
use crate::shell::Node;

/// Answers `TrustList`.
pub async fn list(node: &Node) -> Result<api::TrustListResponse, Refusal> {
    let advisers = node.registry.advisers().await.map_err(catalog)?;
    let decided = node.registry.decided_handles().await.map_err(catalog)?;
    let mut trusted: Vec<api::Trusted> = decided
        .into_iter()
        .map(|decided| api::Trusted {
            handle: decided.handle,
            publisher: decided.publisher.to_string(),
            adviser: advisers.contains(&decided.publisher),
            pinned: !decided.is_trusted,
        })
        .collect();
    let is_listed = |key: &PublisherKey| trusted.iter().any(|trusted| trusted.publisher == key.to_string());
    let alone: Vec<_> = advisers.iter().filter(|key| !is_listed(key)).copied().collect();
    trusted.extend(alone.into_iter().map(|key| api::Trusted {
        publisher: key.to_string(),
        adviser: true,
        ..api::Trusted::default()
    }));
    Ok(api::TrustListResponse { trusted })
}

/// Answers `TrustSet`.
pub async fn set(node: &Node, request: api::TrustSetRequest) -> Result<api::TrustSetResponse, Refusal> {
    let named = publishers::parse(&request.handle)?;
    let publisher = match request.publisher.is_empty() {
        true if request.remove => decided(node, &named).await?,
        true => publishers::whose(node, &named).await?,
        false => request.publisher.parse().map_err(|_| {
            Refusal::new(Reason::BadInput, request.publisher.clone(), "a key is 64 hex digits")
                .try_this("cairn trust add HANDLE --key KEY")
        })?,
    };
    let changed = match (&named, request.adviser, request.remove) {
        (_, true, is_removed) => node.registry.heed(publisher, !is_removed).await.map_err(catalog)?,
        (Publisher::Handle(handle), false, true) => forget(node, handle, publisher).await?,
        (Publisher::Key(_), false, true) => node.registry.heed(publisher, false).await.map_err(catalog)?,
        (Publisher::Handle(handle), false, false) => {
            node.registry.trust_handle(handle, Some(publisher)).await.map_err(catalog)?;
            true
        }
        (Publisher::Key(key), false, false) => {
            let why = "a key means itself everywhere; a handle can be made to mean it, or its advisories be heeded";
            return Err(Refusal::new(Reason::BadInput, key.to_string(), why)
                .try_this("cairn trust add HANDLE --key KEY, or --adviser"));
        }
    };
    Ok(api::TrustSetResponse { changed })
}

/// The key that the handle was made to mean.
async fn decided(node: &Node, named: &Publisher) -> Result<PublisherKey, Refusal> {
    let Publisher::Handle(handle) = named else { return publishers::whose(node, named).await };
    let decided = node.registry.decided_handles().await.map_err(catalog)?;
    match decided.into_iter().find(|decided| decided.handle == handle.folded()) {
        Some(decided) => Ok(decided.publisher),
        None => publishers::whose(node, named).await,
    }
}

/// The handle resolves as if nobody had decided on it.
async fn forget(node: &Node, handle: &Handle, publisher: PublisherKey) -> Result<bool, Refusal> {
    let decided = node.registry.decided_handles().await.map_err(catalog)?;
    let is_decided = decided.iter().any(|decided| decided.handle == handle.folded());
    node.registry.trust_handle(handle, None).await.map_err(catalog)?;
    let was_pinned = node.registry.unpin_handle(handle).await.map_err(catalog)?;
    let was_heeded = node.registry.heed(publisher, false).await.map_err(catalog)?;
    Ok(is_decided || was_pinned || was_heeded)
}
