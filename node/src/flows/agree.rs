//! Agreeing with one peer about the realm's records: what this node lacks is found by comparing sets, and fetched by its ids.
//!
//! The talk is [`cairn_registry::sync`]'s, pure; here questions go out and records come in. Each side asks for itself.
//!
//! Invariant: one id is fetched from one peer at a time; what was heard and not kept is not asked for again, as long as it is remembered;
//! a peer whose words make no sense, or that sends what nobody asked for, pays.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use cairn_protocol::{
    id::{NodeId, RecordId},
    limits::FETCH_IDS_MAX,
    peer_pb::{Answer, Fetch, Question, RangeItem, Reconcile, answer::Say, question::Ask},
    record::Record,
    refusal::Reason,
};
use cairn_registry::{
    InsertError, Inserted, Registry,
    sync::{
        SyncError,
        machine::{Answered, Reconciler},
    },
};

use super::records::{FORGED_MAX, count_unknown, is_forged, verify_answer};
use crate::net::{AskError, NetHandle, Severity};

/// Time for one answer.
const DEADLINE: Duration = Duration::from_secs(10);
/// Ids that were heard and not kept, and are remembered; the oldest make way.
const DECLINED_MAX: usize = 65_536;

/// What several talks share.
#[derive(Clone, Default)]
pub(super) struct Agreeing(Arc<Mutex<Ids>>);

#[derive(Default)]
struct Ids {
    declined: BTreeSet<RecordId>,
    declined_order: VecDeque<RecordId>,
    under_way: BTreeSet<RecordId>,
}

/// How a talk ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Agreed {
    /// All that the peer had beside is here, declined, or under way from another.
    Yes,
    /// It broke off; what came is kept.
    Not,
    /// The peer does not know the question.
    Unsupported,
}

/// Why a talk broke off. It has been told where it matters.
enum Broken {
    Off,
    Unsupported,
}

impl Agreeing {
    /// Learns what the peer has and this node lacks, and fetches it. Dropped, it has taken whole pages.
    pub(super) async fn agree(&self, registry: &Registry, net: &NetHandle, node: NodeId) -> Agreed {
        let mut new = 0;
        let agreed = loop {
            let (lacking, is_cut_short) = match self.compare(registry, net, node).await {
                Ok(found) => found,
                Err(Broken::Off) => break Agreed::Not,
                Err(Broken::Unsupported) => break Agreed::Unsupported,
            };
            let claim = self.claim(lacking);
            let fetched = fetch(self, registry, net, node, &claim.ids).await;
            new += fetched;
            match is_cut_short {
                false => break Agreed::Yes,
                true if fetched == 0 => break Agreed::Not,
                true => {}
            }
        };
        if new > 0 {
            tracing::info!(node = %node.short(), new, "caught up with a peer");
        }
        agreed
    }

    /// One talk: what is lacking, and whether it ended before everything was compared.
    async fn compare(
        &self,
        registry: &Registry,
        net: &NetHandle,
        node: NodeId,
    ) -> Result<(BTreeSet<RecordId>, bool), Broken> {
        let mut machine = Reconciler::new(self.ids().declined.clone());
        loop {
            let (asking, question) = registry.next_question(machine).await.map_err(failed)?;
            let Some(items) = question else {
                tracing::debug!(node = %node.short(), questions = asking.questions(), "compared with a peer");
                let is_cut_short = asking.is_cut_short();
                return Ok((asking.lacking(), is_cut_short));
            };
            let answer = ask(net, node, items).await?;
            machine = match registry.take_answer(asking, answer).await {
                Ok(machine) => machine,
                Err(SyncError::Garbled(_)) => {
                    net.report(node, Severity::Fault, "its answer about what it has makes no sense").await;
                    return Err(Broken::Off);
                }
                Err(SyncError::Catalog(error)) => return Err(failed(error)),
            };
        }
    }

    /// Those of the ids that nobody else is fetching, until it is dropped.
    fn claim(&self, mut ids: BTreeSet<RecordId>) -> Claim {
        let mut shared = self.ids();
        ids.retain(|id| shared.under_way.insert(*id));
        drop(shared);
        Claim { agreeing: self.clone(), ids }
    }

    fn decline(&self, id: RecordId) {
        let mut ids = self.ids();
        if ids.declined.insert(id) {
            ids.declined_order.push_back(id);
        }
        if ids.declined.len() > DECLINED_MAX
            && let Some(oldest) = ids.declined_order.pop_front()
        {
            ids.declined.remove(&oldest);
        }
    }

    /// Held for a step, never across an await.
    fn ids(&self) -> MutexGuard<'_, Ids> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Ids that are being fetched.
struct Claim {
    agreeing: Agreeing,
    ids: BTreeSet<RecordId>,
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut shared = self.agreeing.ids();
        shared.under_way.retain(|id| !self.ids.contains(id));
    }
}

async fn ask(net: &NetHandle, node: NodeId, items: Vec<RangeItem>) -> Result<Answered, Broken> {
    let question = Question { ask: Some(Ask::Reconcile(Reconcile { items })) };
    match net.ask(node, question, DEADLINE).await {
        Ok(Answer { say: Some(Say::Reconciled(said)) }) => {
            Ok(Answered { items: said.items, handled: said.handled as usize })
        }
        Ok(_) => {
            net.report(node, Severity::Fault, "it was asked what it has and answered something else").await;
            Err(Broken::Off)
        }
        Err(AskError::Refused { reason, .. }) if Reason::from_code(&reason) == Some(Reason::Unsupported) => {
            Err(Broken::Unsupported)
        }
        Err(error) => {
            tracing::debug!(node = %node.short(), %error, "comparing with a peer stopped");
            Err(Broken::Off)
        }
    }
}

fn failed(error: impl std::fmt::Display) -> Broken {
    tracing::warn!(%error, "the catalogue could not be compared");
    Broken::Off
}

/// Fetches records by their ids, page by page, until all came or the peer has no more of them. Answers how many were new.
async fn fetch(
    agreeing: &Agreeing,
    registry: &Registry,
    net: &NetHandle,
    node: NodeId,
    ids: &BTreeSet<RecordId>,
) -> usize {
    let (mut open, mut new, mut forged) = (ids.clone(), 0, 0);
    while !open.is_empty() && forged < FORGED_MAX {
        let asked: BTreeSet<RecordId> = open.iter().take(FETCH_IDS_MAX).copied().collect();
        let Some((records, bad)) = page(net, node, &asked).await else { break };
        forged += bad;
        if records.is_empty() {
            // They may have made way meanwhile; but whoever names what it has not, keeps others from being asked.
            net.report(node, Severity::Nuisance, "it sends none of the records that it says it has").await;
            break;
        }
        let came: Vec<RecordId> = records.iter().map(Record::id).collect();
        let Ok(verdicts) = registry.insert_peers_page(records).await else { break };
        net.note_unknown_records(count_unknown(&verdicts));
        let mut is_full = false;
        for (id, verdict) in came.into_iter().zip(&verdicts) {
            open.remove(&id);
            match verdict {
                // What is new is live.
                Ok(Inserted::New) => new += 1,
                Err(InsertError::PageShare) => is_full = true,
                Err(error) if is_forged(error) => {
                    forged += 1;
                    agreeing.decline(id);
                    net.report(node, Severity::Breach, "a record in its catalogue breaks a rule").await;
                }
                _ if is_live(registry, id).await => {}
                _ => agreeing.decline(id),
            }
        }
        if is_full {
            break;
        }
    }
    new
}

/// Whether it is among what this node tells others that it has.
async fn is_live(registry: &Registry, id: RecordId) -> bool {
    registry.is_live(id).await.unwrap_or(true)
}

/// The records of these ids that the peer sends, and how many it forged. `None` when it does not answer.
async fn page(net: &NetHandle, node: NodeId, asked: &BTreeSet<RecordId>) -> Option<(Vec<Record>, usize)> {
    let fetch = Fetch { ids: asked.iter().map(RecordId::to_vec).collect() };
    let records = match net.ask(node, Question { ask: Some(Ask::Fetch(fetch)) }, DEADLINE).await {
        Ok(Answer { say: Some(Say::Records(records)) }) => records.records,
        Ok(_) => {
            net.report(node, Severity::Fault, "it was asked for records and answered something else").await;
            return None;
        }
        Err(error) => {
            tracing::debug!(node = %node.short(), %error, "fetching records stopped");
            return None;
        }
    };
    let (mut good, forged) = verify_answer(net, node, records).await;
    let came = good.len();
    good.retain(|record| asked.contains(&record.id()));
    if good.len() < came {
        net.report(node, Severity::Fault, "it sent records that nobody asked for").await;
    }
    Some((good, forged))
}
