//! Exporting: a revision as files that other programs read, in a folder or in the cache of the Hub's own clients.
//!
//! Fetching and writing are [`super::pull`]'s; this only says where to and in which layout. Invariant: as there, what is written was
//! whole and verified.

use std::sync::Arc;

use cairn_protocol::{
    api,
    refusal::{Reason, Refusal},
};
use tokio::sync::mpsc::Sender;

use super::pull::{self, Layout};
use crate::shell::Node;

/// Answers `Export`.
pub async fn export(
    node: Arc<Node>,
    request: api::ExportRequest,
    events: Sender<api::PullEvent>,
) -> Result<(), Refusal> {
    if request.to.is_empty() {
        let why = "no folder was named";
        return Err(Refusal::new(Reason::BadInput, request.repo, why).try_this("--to DIR or --hub-cache"));
    }
    let layout = if request.hub_cache { Layout::HubCache } else { Layout::Folder };
    let api::ExportRequest { repo, to, include, link, .. } = request;
    let pull = api::PullRequest { repo, to, include, link, ..api::PullRequest::default() };
    pull::pull_as(node, pull, layout, events).await
}
