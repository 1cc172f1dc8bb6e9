//! Catching up: catalogues are compared with other nodes', so that what gossip missed comes in. The catalogue of a node of before, which
//! can't compare, is read page by page.
//!
//! Whose turn it is and where to go on is decided by `turns`; here is what carries it out. Invariant: every exchange with one
//! peer is bounded in pages, records and time, and one that was cut short goes on where it stopped, so that a flood of early
//! records can't hide the later ones for ever.

use std::time::Duration;

use cairn_protocol::{
    id::NodeId,
    peer_pb::{Answer, Heads, Question, answer::Say, question::Ask},
    record::Record,
};
use cairn_registry::{Inserted, Registry};
use tokio::{sync::mpsc, task::JoinSet, time::Instant};

use super::{
    agree::{Agreed, Agreeing},
    records::{FORGED_MAX, PAGE_RECORDS_MAX, count_unknown, is_forged, verify_answer},
    turns::{Place, Turns},
};
use crate::net::{AskError, NetHandle, Severity};

/// Pages taken of one peer in one go: 512 pages of up to 512 KiB, about a million records.
const PAGES_MAX: usize = 512;
/// Bytes of a place in a peer's catalogue that are remembered; ours are 33.
const PLACE_BYTES_MAX: usize = 256;
/// Time for one page.
const PAGE_DEADLINE: Duration = Duration::from_secs(10);
/// Time for catching up with one peer.
const CATCH_UP_DEADLINE: Duration = Duration::from_secs(300);
/// One connected peer is looked at again this often, in turn.
const ROUND: Duration = Duration::from_secs(60);

/// Pages through the catalogues of newcomers at once, a moment later, and of everyone in turn. Ends with `arrivals`.
pub(super) async fn catch_up(registry: Registry, net: NetHandle, mut arrivals: mpsc::Receiver<NodeId>) {
    let (mut turns, agreeing) = (Turns::default(), Agreeing::default());
    let mut reading = JoinSet::new();
    let mut round = tokio::time::interval(ROUND);
    let mut tick = tokio::time::interval(Duration::from_millis(250));
    loop {
        tokio::select! {
            arrival = arrivals.recv() => {
                let Some(node) = arrival else { return };
                turns.arrived(Instant::now(), node);
            }
            _ = tick.tick() => turns.keep_connected(&net.connected()),
            _ = round.tick() => {
                if let Some(node) = any_of(&net.connected()) {
                    turns.look_again(Instant::now(), node);
                }
                net.remember_peers().await;
            }
            Some(read) = reading.join_next() => match read {
                Ok((node, place)) => turns.ended(node, place),
                Err(error) => tracing::warn!(%error, "catching up with a peer broke"),
            }
        }
        while let Some((node, place)) = turns.begin(Instant::now()) {
            reading.spawn(read_on(agreeing.clone(), registry.clone(), net.clone(), node, place));
        }
    }
}

/// A connected peer; which one changes from minute to minute.
fn any_of(connected: &[NodeId]) -> Option<NodeId> {
    let turn = rand::random_range(0..connected.len().max(1));
    connected.get(turn).copied()
}

/// Answers with where to go on another time.
async fn read_on(
    agreeing: Agreeing,
    registry: Registry,
    net: NetHandle,
    node: NodeId,
    mut place: Place,
) -> (NodeId, Place) {
    let reading = async {
        if agreeing.agree(&registry, &net, node).await == Agreed::Unsupported {
            read_pages(&registry, &net, node, &mut place, PAGES_MAX).await;
        }
    };
    if tokio::time::timeout(CATCH_UP_DEADLINE, reading).await.is_err() {
        tracing::debug!(node = %node.short(), "catching up took too long; the rest follows another time");
    }
    (node, place)
}

/// Takes page after page of one peer's records. `place` is where it begins, and then where it stopped: empty after the last
/// page. Dropped, it has taken whole pages, and `place` says which.
pub(super) async fn read_pages(
    registry: &Registry,
    net: &NetHandle,
    node: NodeId,
    place: &mut Place,
    pages_max: usize,
) {
    let (mut new, mut forged) = (0, 0);
    for _ in 0..pages_max {
        let heads = Heads { after: place.clone(), limit: PAGE_RECORDS_MAX as u32 };
        let question = Question { ask: Some(Ask::Heads(heads)) };
        let page = match net.ask(node, question, PAGE_DEADLINE).await {
            Ok(Answer { say: Some(Say::Heads(page)) }) => page,
            Ok(_) => {
                return net.report(node, Severity::Fault, "it was asked for a page and answered something else").await;
            }
            Err(error) => {
                if matches!(error, AskError::Refused { .. }) {
                    // Perhaps it no longer understands the place.
                    place.clear();
                }
                return tracing::debug!(node = %node.short(), %error, "catching up stopped");
            }
        };
        let (records, forgeries) = verify_answer(net, node, page.records).await;
        let Some(kept) = keep(registry, net, node, records).await else { return };
        new += kept;
        forged += forgeries;
        let is_last = page.next.is_empty() || page.next == *place || page.next.len() > PLACE_BYTES_MAX;
        *place = if is_last { Place::new() } else { page.next };
        if is_last || forged >= FORGED_MAX {
            break;
        }
    }
    if new > 0 {
        tracing::info!(node = %node.short(), new, "caught up with a peer");
    }
}

/// Hands a page to the catalogue in one step and counts what was new; `None` if the catalogue fails.
async fn keep(registry: &Registry, net: &NetHandle, node: NodeId, records: Vec<Record>) -> Option<usize> {
    let inserted = registry.insert_peers_page(records).await;
    let inserted = inserted.inspect_err(|error| tracing::warn!(%error, "a page of records was not kept")).ok()?;
    net.note_unknown_records(count_unknown(&inserted));
    let forged = inserted.iter().filter(|inserted| inserted.as_ref().is_err_and(is_forged)).count();
    for _ in 0..forged.min(FORGED_MAX) {
        net.report(node, Severity::Breach, "a record in its catalogue breaks a rule").await;
    }
    Some(inserted.iter().filter(|inserted| matches!(inserted, Ok(Inserted::New))).count())
}
