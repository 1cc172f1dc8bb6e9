//! One blob's byte ranges from several peers at once, every byte verified on arrival.
//!
//! The decisions are [`super::schedule`]'s; here they are carried out: connections, requests, what the store has in the end,
//! and the account of who sent how much. Which blobs and ranges are wanted is for flows to say.
//!
//! Invariant: what [`Fetch::run`] reports as fetched is in the store and hashes to what was asked for. Dropping the future
//! stops every request; what had arrived stays and is not fetched again.

use std::{
    collections::BTreeMap,
    fmt,
    net::SocketAddr,
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use cairn_protocol::{
    id::{BlobHash, NodeId},
    machine::Machine,
    refusal::{Reason, Refusal},
};
use cairn_registry::{
    BlobError, Blobs, ComingNote,
    ranges::{joined, total},
};
use futures::StreamExt;
use iroh_blobs::{
    Hash,
    api::remote::GetProgressItem,
    get::{
        GetError,
        fsm::DecodeError,
        request::{get_chunk_probe, get_verified_size},
    },
    protocol::{ChunkRanges, ChunkRangesExt, ERR_LIMIT, ERR_PERMISSION, GetRequest},
};
use tokio::{
    task::JoinSet,
    time::{MissedTickBehavior, interval},
};
use tokio_util::sync::CancellationToken;

use super::{
    endpoint::{DataError, DataHandle},
    ranges::whole_groups,
    rate::{Pace, PacedConnection},
    schedule::{Effect, Failure, FlightId, Input, Outcome, Schedule},
    scout::{self, Found, Scout, Word},
};
use crate::{
    net::{NetHandle, Severity},
    shell::Node,
    telemetry::Counters,
};

/// How often the progress of pieces is looked at: fine enough for a progress bar, and for a stall of 5 s.
const LOOK: Duration = Duration::from_millis(100);
/// Bytes after which a blob under way is worth a flush: below, fetching again costs less.
const KNOWN_AFTER_BYTES: u64 = 1 << 20;
/// Time for a source to prove a blob's size.
const SIZE_DEADLINE: Duration = Duration::from_secs(5);
/// Sources that one fetch uses: more would share one disk and one line here.
const SOURCES_MAX: usize = 16;

/// A node that may have the bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// Who.
    pub node: NodeId,
    /// Where it takes data connections.
    pub addresses: Vec<SocketAddr>,
}

/// What a fetch did. Bytes of all ranges are counted once: needed = local + what was still missing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FetchReport {
    /// Bytes that were asked for.
    pub bytes_needed: u64,
    /// Of these, here before.
    pub bytes_local: u64,
    /// Verified bytes that came in, with those that came twice or that fill the last 16 KiB of a range.
    pub bytes_fetched: u64,
    /// Bytes of proof that came with them.
    pub bytes_overhead: u64,
    /// Verified bytes by sender.
    pub from: BTreeMap<NodeId, u64>,
    /// Senders that failed, with why.
    pub bad_sources: Vec<(NodeId, String)>,
}

impl FetchReport {
    /// Adds another blob's.
    pub fn add(&mut self, other: FetchReport) {
        self.bytes_needed += other.bytes_needed;
        self.bytes_local += other.bytes_local;
        self.bytes_fetched += other.bytes_fetched;
        self.bytes_overhead += other.bytes_overhead;
        for (node, bytes) in other.from {
            *self.from.entry(node).or_default() += bytes;
        }
        for bad in other.bad_sources {
            if !self.bad_sources.contains(&bad) {
                self.bad_sources.push(bad);
            }
        }
    }
}

/// Why not all of it could be fetched. What did arrive stays.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// No source was named.
    #[error("no node is known that holds blob {}", hash.short())]
    NoSource {
        /// The blob.
        hash: BlobHash,
    },
    /// The sources could not deliver, and at least one has or sends damaged bytes.
    #[error("{node} has a damaged copy of blob {hash}: its bytes {}..{} don't verify", range.start, range.end)]
    Damaged {
        /// The blob.
        hash: BlobHash,
        /// Who has it.
        node: NodeId,
        /// Where.
        range: Range<u64>,
    },
    /// The sources could not deliver.
    #[error("{bytes_missing} bytes of blob {} could not be fetched: {}", hash.short(), Failures(failures))]
    Undelivered {
        /// The blob.
        hash: BlobHash,
        /// How much is missing.
        bytes_missing: u64,
        /// Why, by source.
        failures: Vec<(NodeId, Failure)>,
    },
    /// All that its holders have of it is here, and it is not as large as was said: the revision's manifest is false.
    #[error("blob {} does not have the {size} bytes that the revision states", hash.short())]
    WrongSize {
        /// The blob.
        hash: BlobHash,
        /// As stated.
        size: u64,
    },
    /// The fault is here.
    #[error("writing blob {}: {why}", hash.short())]
    Local {
        /// The blob.
        hash: BlobHash,
        /// What the store says.
        why: String,
    },
    /// The store could not say what it has.
    #[error(transparent)]
    Blobs(#[from] BlobError),
}

struct Failures<'a>(&'a [(NodeId, Failure)]);

impl fmt::Display for Failures<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("no source was left");
        }
        for (at, (node, failure)) in self.0.iter().enumerate() {
            write!(f, "{}{} {failure}", if at == 0 { "" } else { "; " }, node.short())?;
        }
        Ok(())
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Unreachable(why) => write!(f, "can't be reached ({why})"),
            Failure::Refused => f.write_str("does not serve this node"),
            Failure::Busy => f.write_str("is busy"),
            Failure::Lost(why) => write!(f, "broke off ({why})"),
            Failure::Stalled => f.write_str("stopped sending"),
            Failure::TooSlow => f.write_str("is too slow"),
            Failure::Absent => f.write_str("does not have them"),
            Failure::Damaged => f.write_str("has a damaged copy"),
            Failure::False => f.write_str("sent bytes that don't match the hash"),
        }
    }
}

impl From<FetchError> for Refusal {
    fn from(error: FetchError) -> Refusal {
        let why = error.to_string();
        match &error {
            FetchError::NoSource { .. } => Refusal::new(Reason::NoHolder, "fetching", why).try_this("cairn peers"),
            FetchError::Damaged { .. } => Refusal::new(Reason::Corrupt, "fetching", why)
                .try_this("again when another holder is there; its owner can run cairn verify"),
            FetchError::Undelivered { failures, .. } => {
                let refused = !failures.is_empty() && failures.iter().all(|(_, failure)| *failure == Failure::Refused);
                let reason = if refused { Reason::NoGrant } else { Reason::NoHolder };
                Refusal::new(reason, "fetching", why).try_this("the same again: what has arrived is kept")
            }
            FetchError::WrongSize { .. } => {
                Refusal::new(Reason::Corrupt, "fetching", why).try_this("its publisher, to publish it again")
            }
            FetchError::Local { why: text, .. } if text.contains("No space left") || text.contains("os error 28") => {
                Refusal::new(Reason::DiskFull, "fetching", why).try_this("making room, then the same again")
            }
            FetchError::Local { .. } | FetchError::Blobs(_) => {
                Refusal::new(Reason::Internal, "fetching", why).try_this("the node's log")
            }
        }
    }
}

impl DataHandle {
    /// Brings these ranges of a blob of `size` bytes into the node's store. `progress` hears how many of the wanted bytes
    /// are here. Holds no pin: the caller does.
    pub async fn fetch_ranges(
        &self,
        node: &Node,
        hash: BlobHash,
        size: u64,
        ranges: &[Range<u64>],
        sources: &[Source],
        progress: impl Fn(u64) + Send,
    ) -> Result<FetchReport, FetchError> {
        let fetch = Fetch { data: self, blobs: node.registry.blobs(), net: Some(&node.net), hash, size };
        let report = fetch.run(ranges, sources, progress).await?;
        Counters::add(&node.counters.blob_bytes_in, report.bytes_fetched);
        Ok(report)
    }
}

impl DataHandle {
    /// Asks a source how large a blob is; the answer is proven by the blob's last bytes.
    pub async fn blob_size(&self, source: &Source, hash: BlobHash) -> Result<u64, FetchError> {
        let undelivered =
            |failure| FetchError::Undelivered { hash, bytes_missing: 1, failures: vec![(source.node, failure)] };
        let connection = self.blob_connection(source.node, &source.addresses).await;
        let connection = connection.map_err(|error| undelivered(Failure::Unreachable(error.to_string())))?;
        let raw = Hash::from_bytes(*hash.as_bytes());
        let asked = tokio::time::timeout(SIZE_DEADLINE, get_verified_size(&connection, &raw)).await;
        match asked {
            Ok(Ok((size, _))) => Ok(size),
            Ok(Err(_)) => Err(undelivered(Failure::Absent)),
            Err(_) => Err(undelivered(Failure::Stalled)),
        }
    }

    /// Whether a source delivers the chunk (1 KiB) at `offset` of a blob, true to its hash. Nothing is kept.
    pub async fn delivers(&self, source: &Source, hash: BlobHash, offset: u64) -> bool {
        let Ok(connection) = self.blob_connection(source.node, &source.addresses).await else { return false };
        let (raw, chunk) = (Hash::from_bytes(*hash.as_bytes()), ChunkRanges::bytes(offset..offset + 1));
        let Some(chunk) = chunk.boundaries().first().copied() else { return false };
        let asked = tokio::time::timeout(SIZE_DEADLINE, get_chunk_probe(&connection, &raw, chunk)).await;
        matches!(asked, Ok(Ok(_)))
    }
}

/// One blob to fetch, and with what.
pub struct Fetch<'a> {
    /// Connections.
    pub data: &'a DataHandle,
    /// Where the bytes go.
    pub blobs: &'a Blobs,
    /// Asks sources what they hold, and hears of those who send false bytes.
    pub net: Option<&'a NetHandle>,
    /// The blob.
    pub hash: BlobHash,
    /// Its bytes.
    pub size: u64,
}

impl Fetch<'_> {
    /// Fetches what of `ranges` is not here. See [`DataHandle::fetch_ranges`].
    pub async fn run(
        &self,
        ranges: &[Range<u64>],
        sources: &[Source],
        progress: impl Fn(u64) + Send,
    ) -> Result<FetchReport, FetchError> {
        let mut report = FetchReport { bytes_needed: total(&joined(ranges, self.size)), ..FetchReport::default() };
        if self.size == 0 {
            self.blobs.add(Bytes::new()).await?;
            return Ok(report);
        }
        let missing = self.blobs.missing(self.hash, self.size, ranges).await?;
        report.bytes_local = report.bytes_needed - total(&missing);
        progress(report.bytes_local);
        if missing.is_empty() {
            return Ok(report);
        }
        if sources.is_empty() {
            return Err(FetchError::NoSource { hash: self.hash });
        }
        let sources = &sources[..sources.len().min(SOURCES_MAX)];
        let far: Vec<bool> = sources.iter().map(|source| self.data.spares(&source.addresses)).collect();
        let schedule =
            Schedule::new(whole_groups(&missing, self.size), sources.len()).sparing(&far).scattered(rand::random());
        Running {
            fetch: self,
            sources: sources.to_vec(),
            schedule,
            coming: self.blobs.note_coming(self.hash),
            scout: Scout::new(self.net.cloned(), self.hash, self.size),
            flying: JoinSet::new(),
            flights: BTreeMap::new(),
            report,
            started: Instant::now(),
            told: 0,
            is_known: false,
        }
        .run(ranges, progress)
        .await
    }
}

/// A fetch under way.
struct Running<'a> {
    fetch: &'a Fetch<'a>,
    sources: Vec<Source>,
    schedule: Schedule,
    scout: Scout,
    /// Tells peers which bytes are under way.
    coming: ComingNote,
    flying: JoinSet<Landed>,
    flights: BTreeMap<FlightId, Flying>,
    report: FetchReport,
    started: Instant,
    told: u64,
    /// Whether the store's database knows of the blob, so that what has come outlives a kill.
    is_known: bool,
}

struct Flying {
    source: usize,
    range: Range<u64>,
    bytes: Arc<AtomicU64>,
    pace: Pace,
    cancel: CancellationToken,
}

/// How a request ended.
struct Landed {
    flight: FlightId,
    result: Result<u64, Trouble>,
}

enum Trouble {
    Remote(Failure),
    /// The bytes did not come, and only the source knows whether it has them.
    Missing,
    Local(String),
    Cancelled,
}

impl Running<'_> {
    async fn run(mut self, ranges: &[Range<u64>], progress: impl Fn(u64) + Send) -> Result<FetchReport, FetchError> {
        let mut effects = Vec::new();
        self.schedule.wake(self.now_ms(), &mut effects);
        let mut looks = interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            self.perform(&mut effects);
            match self.schedule.outcome() {
                Outcome::Pending => {}
                Outcome::Done => break,
                Outcome::Stuck if self.scout.hope(self.report.bytes_fetched, &self.sources) => {}
                Outcome::Stuck => return Err(self.give_up()),
            }
            tokio::select! {
                Some(landed) = self.flying.join_next() => match landed {
                    Ok(landed) => self.land(landed, &mut effects).await?,
                    Err(error) => return Err(self.local(error)),
                },
                found = self.scout.found() => self.take_news(found, &mut effects),
                _ = looks.tick() => self.look(&mut effects, &progress),
            }
            self.make_known().await?;
        }
        self.settle(ranges).await?;
        progress(self.report.bytes_needed);
        self.report.bad_sources = self.bad_sources();
        Ok(self.report)
    }

    fn now_ms(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }

    fn perform(&mut self, effects: &mut Vec<Effect>) {
        let has_news = !effects.is_empty();
        for effect in effects.drain(..) {
            match effect {
                Effect::Start { flight, source, range } => {
                    let bytes = Arc::new(AtomicU64::new(0));
                    let cancel = CancellationToken::new();
                    let pace = self.fetch.data.pace_from(self.sources[source].node);
                    let request = Request {
                        data: self.fetch.data.clone(),
                        blobs: self.fetch.blobs.clone(),
                        source: self.sources[source].clone(),
                        hash: self.fetch.hash,
                        range: range.clone(),
                        bytes: bytes.clone(),
                        pace: pace.clone(),
                    };
                    let cancelled = cancel.clone();
                    self.flying.spawn(async move {
                        let result = cancelled.run_until_cancelled(request.run()).await;
                        Landed { flight, result: result.unwrap_or(Err(Trouble::Cancelled)) }
                    });
                    self.flights.insert(flight, Flying { source, range, bytes, pace, cancel });
                }
                Effect::Cancel { flight } => {
                    if let Some(flying) = self.flights.get(&flight) {
                        flying.cancel.cancel();
                    }
                }
            }
        }
        if has_news {
            self.coming.set(self.flights.values().map(|flying| flying.range.clone()).collect());
        }
    }

    fn look(&mut self, effects: &mut Vec<Effect>, progress: &impl Fn(u64)) {
        let now_ms = self.now_ms();
        let mut under_way = 0;
        for (flight, flying) in &self.flights {
            let bytes = flying.bytes.load(Ordering::Relaxed);
            under_way += bytes;
            self.schedule.step(now_ms, Input::Progress { flight: *flight, bytes }, effects);
            if flying.pace.is_held() {
                self.schedule.step(now_ms, Input::Held { flight: *flight }, effects);
            }
        }
        let here = self.report.bytes_local + self.report.bytes_fetched + under_way;
        self.told = self.told.max(here.min(self.report.bytes_needed));
        progress(self.told);
        self.schedule.wake(now_ms, effects);
        if self.scout.is_due(now_ms) {
            let parts = self.schedule.parts().map(|source| self.sources[source].clone()).collect();
            let room = SOURCES_MAX.saturating_sub(self.schedule.sources_live());
            self.scout.look(now_ms, parts, &self.sources, room);
        }
    }

    /// What peers said they hold: more than before, or anything at all.
    fn take_news(&mut self, found: Vec<Found>, effects: &mut Vec<Effect>) {
        for Found { source, word } in found {
            let known = self.sources.iter().position(|known| known.node == source.node);
            if known.is_none() && (word == Word::default() || self.schedule.sources_live() >= SOURCES_MAX) {
                continue;
            }
            let index = known.unwrap_or_else(|| {
                tracing::debug!(source = %source.node.short(), blob = %self.fetch.hash.short(), "a source has come");
                let is_far = self.fetch.data.spares(&source.addresses);
                self.sources.push(source);
                self.schedule.join(is_far)
            });
            self.schedule.step(
                self.now_ms(),
                Input::Holds { source: index, holdings: word.holdings, coming: word.coming },
                effects,
            );
        }
    }

    /// Flushes the store's database once bytes have come. It batches for up to half a second, and a blob that it does not
    /// know is thrown away at the next start; one that it knows is read back from its files, however much came since.
    async fn make_known(&mut self) -> Result<(), FetchError> {
        let come =
            self.report.bytes_fetched + self.flights.values().map(|f| f.bytes.load(Ordering::Relaxed)).sum::<u64>();
        if self.is_known || come < KNOWN_AFTER_BYTES {
            return Ok(());
        }
        self.is_known = true;
        self.fetch.blobs.store().sync_db().await.map_err(|error| self.local(error))
    }

    async fn land(&mut self, landed: Landed, effects: &mut Vec<Effect>) -> Result<(), FetchError> {
        let Some(flying) = self.flights.remove(&landed.flight) else { return Ok(()) };
        let bytes = flying.bytes.load(Ordering::Relaxed);
        let node = self.sources[flying.source].node;
        if bytes > 0 {
            self.report.bytes_fetched += bytes;
            *self.report.from.entry(node).or_default() += bytes;
        }
        let flight = landed.flight;
        let (failure, holdings) = match landed.result {
            Ok(overhead) => {
                self.report.bytes_overhead += overhead;
                self.schedule.step(self.now_ms(), Input::Done { flight }, effects);
                return Ok(());
            }
            Err(Trouble::Local(why)) => return Err(self.local(why)),
            Err(Trouble::Cancelled) => (self.schedule.cancelled(flight).unwrap_or(Failure::Stalled), None),
            Err(Trouble::Remote(failure)) => (failure, None),
            Err(Trouble::Missing) => {
                let word = match self.fetch.net {
                    Some(net) => scout::word(net, node, self.fetch.hash, self.fetch.size).await,
                    None => None,
                };
                let holdings = word.map(|word| word.holdings);
                (blame(holdings.as_deref(), &flying.range), holdings)
            }
        };
        tracing::debug!(source = %node.short(), blob = %self.fetch.hash.short(), range = ?flying.range, %failure, "a piece failed");
        if matches!(failure, Failure::Stalled | Failure::Lost(_)) {
            self.fetch.data.forget(node);
        }
        if failure == Failure::False
            && let Some(net) = self.fetch.net
        {
            net.report(node, Severity::Breach, "it sent bytes that do not match their hash").await;
        }
        let left =
            self.fetch.blobs.missing(self.fetch.hash, self.fetch.size, std::slice::from_ref(&flying.range)).await?;
        let left = whole_groups(&left, self.fetch.size);
        self.schedule.step(self.now_ms(), Input::Failed { flight, failure, left, holdings }, effects);
        Ok(())
    }

    /// The store's word is the last one.
    async fn settle(&self, ranges: &[Range<u64>]) -> Result<(), FetchError> {
        let missing = self.fetch.blobs.missing(self.fetch.hash, self.fetch.size, ranges).await?;
        if missing.is_empty() {
            return Ok(());
        }
        let (hash, size) = (self.fetch.hash, self.fetch.size);
        match self.fetch.blobs.size(hash).await? {
            Some(actual) if actual != size => Err(FetchError::WrongSize { hash, size }),
            _ => Err(self.local(format!("{} bytes arrived and are not in the store", total(&missing)))),
        }
    }

    fn local(&self, why: impl ToString) -> FetchError {
        FetchError::Local { hash: self.fetch.hash, why: why.to_string() }
    }

    fn give_up(&self) -> FetchError {
        let hash = self.fetch.hash;
        let is_damage = |failure: &Failure| matches!(failure, Failure::False | Failure::Damaged);
        if let Some((source, _, range)) = self.schedule.failures().find(|(_, failure, _)| is_damage(failure)) {
            return FetchError::Damaged { hash, node: self.sources[source].node, range: range.clone() };
        }
        let failures = self.schedule.failures();
        let failures = failures.map(|(source, failure, _)| (self.sources[source].node, failure.clone())).collect();
        FetchError::Undelivered { hash, bytes_missing: total(&self.schedule.missing()), failures }
    }

    fn bad_sources(&self) -> Vec<(NodeId, String)> {
        let bad =
            self.schedule.failures().filter(|(_, failure, _)| !matches!(failure, Failure::Busy | Failure::TooSlow));
        bad.map(|(source, failure, _)| (self.sources[source].node, failure.to_string())).collect()
    }
}

/// What it means that a source did not deliver a range, given what it says it holds.
fn blame(holdings: Option<&[Range<u64>]>, range: &Range<u64>) -> Failure {
    match holdings {
        Some(held) if held.iter().any(|held| held.start <= range.start && range.end <= held.end) => Failure::Damaged,
        _ => Failure::Absent,
    }
}

/// One request to one source.
struct Request {
    data: DataHandle,
    blobs: Blobs,
    source: Source,
    hash: BlobHash,
    range: Range<u64>,
    /// Verified bytes so far.
    bytes: Arc<AtomicU64>,
    pace: Pace,
}

impl Request {
    /// Answers with the bytes of proof. Dropping it ends the stream.
    async fn run(self) -> Result<u64, Trouble> {
        let connection = self.data.blob_connection(self.source.node, &self.source.addresses).await;
        let connection = connection.map_err(|error| match error {
            DataError::Unreachable { why, .. } | DataError::Listen { why, .. } => {
                Trouble::Remote(Failure::Unreachable(why))
            }
        })?;
        let hash = Hash::from_bytes(*self.hash.as_bytes());
        let request = GetRequest::blob_ranges(hash, ChunkRanges::bytes(self.range.clone()));
        let paced = PacedConnection { connection: connection.clone(), pace: self.pace };
        let mut getting = std::pin::pin!(self.blobs.store().remote().execute_get(paced, request).stream());
        while let Some(item) = getting.next().await {
            match item {
                GetProgressItem::Progress(bytes) => self.bytes.store(bytes, Ordering::Relaxed),
                GetProgressItem::Done(stats) => {
                    self.bytes.store(stats.counters.payload_bytes_read, Ordering::Relaxed);
                    return Ok(stats.counters.other_bytes_read);
                }
                GetProgressItem::Error(error) => {
                    let closed = connection.close_reason().map(|reason| reason.to_string());
                    return Err(trouble(&error, closed));
                }
            }
        }
        Err(Trouble::Local("the store ended the request".to_owned()))
    }
}

/// Whose fault an error is. `closed` says why the connection ended, if it did.
fn trouble(error: &GetError, closed: Option<String>) -> Trouble {
    match error {
        GetError::Decode {
            source: DecodeError::ParentHashMismatch { .. } | DecodeError::LeafHashMismatch { .. },
            ..
        } => {
            return Trouble::Remote(Failure::False);
        }
        GetError::Decode { source: DecodeError::Write { source, .. }, .. } => {
            return Trouble::Local(source.to_string());
        }
        _ => {}
    }
    match error.iroh_error_code() {
        Some(code) if code == ERR_PERMISSION => return Trouble::Remote(Failure::Refused),
        Some(code) if code == ERR_LIMIT => return Trouble::Remote(Failure::Busy),
        Some(_) => return Trouble::Missing,
        None => {}
    }
    match error {
        _ if closed.is_some() => Trouble::Remote(Failure::Lost(closed.unwrap_or_default())),
        GetError::LocalFailure { source, .. } => Trouble::Local(format!("{source:#}")),
        GetError::BadRequest { .. } | GetError::IrpcSend { .. } => Trouble::Local(error.to_string()),
        _ => Trouble::Missing,
    }
}

#[cfg(test)]
#[path = "fetch_tests.rs"]
mod tests;
