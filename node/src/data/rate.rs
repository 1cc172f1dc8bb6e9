//! How fast bytes of blobs may go, out and in, in all and for one peer, at which hours.
//!
//! Out: a served stream waits before it writes. In: a fetch waits after it read, so that QUIC's flow control slows the sender and nothing is
//! thrown away. Streams between stages and talk are not counted. What is limited is what the blob protocol carries: data and proofs.
//!
//! Invariant: over any time, no more than rate × time + a quarter second's worth goes through a [`Flow`], whoever asks and in what pieces.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    str::FromStr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use cairn_registry::mirror::{Hours, RulesError};
use iroh::endpoint::{Connection, VarInt};
use iroh_blobs::{
    api::remote::GetStreamPair,
    get::StreamPair,
    util::{RecvStream, SendStream},
};

use crate::config::parse_bytes;

/// What may go at once after a pause: so many milliseconds' worth, at least [`BURST_BYTES_MIN`].
const BURST_MS: u64 = 250;
/// Less would have each group of 16 KiB wait for itself.
const BURST_BYTES_MIN: u64 = 64 << 10;

/// What an operator set. Bytes a second; `None` is as fast as it goes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rates {
    /// To all peers.
    pub up: Option<u64>,
    /// From all sources.
    pub down: Option<u64>,
    /// To one peer.
    pub up_per_peer: Option<u64>,
    /// From one source.
    pub down_per_source: Option<u64>,
    /// Whether sources of other networks are asked too while near ones suffice.
    pub far_always: bool,
    /// Hours at which each direction's total is this instead; the first that fits counts.
    pub hours: Vec<RateHours>,
}

/// A total for part of every day.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateHours {
    hours: Hours,
    rate: Option<u64>,
}

/// Which way bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// To peers.
    Up,
    /// From sources.
    Down,
}

impl Rates {
    /// The total of a direction at a minute of the day, UTC.
    pub fn total(&self, way: Way, minute: u16) -> Option<u64> {
        match self.hours.iter().find(|span| span.hours.contain(minute)) {
            Some(span) => span.rate,
            None if way == Way::Up => self.up,
            None => self.down,
        }
    }

    fn of_one(&self, way: Way) -> Option<u64> {
        if way == Way::Up { self.up_per_peer } else { self.down_per_source }
    }
}

/// A count of bytes a second, e.g. `20MiB`; 0 is no limit.
pub fn parse_rate(text: &str) -> Result<Option<u64>, String> {
    let bytes = parse_bytes(text.strip_suffix("/s").unwrap_or(text))?;
    Ok((bytes > 0).then_some(bytes))
}

/// `when_needed` or `always`: whether far sources are asked while near ones suffice.
pub fn parse_far(text: &str) -> Result<bool, String> {
    match text {
        "when_needed" => Ok(false),
        "always" => Ok(true),
        _ => Err("far sources are asked when_needed or always".to_owned()),
    }
}

/// Whether a node with `theirs` is on this host or in a private network of `ours`: the same address, or one that shares the first 24 bits (IPv4)
/// or 64 (IPv6). Loopback, which every advert has, says something only where there is nothing else.
pub fn is_near(theirs: &[SocketAddr], ours: &[SocketAddr]) -> bool {
    let outside = |address: &&SocketAddr| !address.ip().is_loopback();
    let shares_network = |one: IpAddr, other: IpAddr| match (one, other) {
        (IpAddr::V4(a), IpAddr::V4(b)) => (a.is_private() || a.is_link_local()) && a.octets()[..3] == b.octets()[..3],
        (IpAddr::V6(a), IpAddr::V6(b)) => {
            (a.is_unique_local() || a.is_unicast_link_local()) && a.octets()[..8] == b.octets()[..8]
        }
        _ => false,
    };
    let is_near = |one: IpAddr| ours.iter().any(|own| own.ip() == one || shares_network(one, own.ip()));
    theirs.iter().filter(outside).count() == 0 || theirs.iter().filter(outside).any(|address| is_near(address.ip()))
}

impl FromStr for RateHours {
    type Err = String;

    /// `08:00-18:00=5MiB`, UTC.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (hours, rate) = text.split_once('=').ok_or("hours and a rate look like 08:00-18:00=5MiB (UTC)")?;
        let hours = hours.trim().parse().map_err(|error: RulesError| error.to_string())?;
        Ok(RateHours { hours, rate: parse_rate(rate.trim())? })
    }
}

/// A bucket that may be in debt: whoever takes waits until it is paid, so waiting ones go in the order in which they took. Pure.
#[derive(Clone, Copy, Debug, Default)]
struct Bucket {
    /// Thousandths of bytes; below zero is debt.
    level: i128,
    at_ms: u64,
    is_used: bool,
}

impl Bucket {
    /// Takes `bytes` and answers how many milliseconds to wait before they may go, or count as gone.
    fn take(&mut self, now_ms: u64, rate: u64, bytes: u64) -> u64 {
        let burst = i128::from((rate.saturating_mul(BURST_MS) / 1000).max(BURST_BYTES_MIN)) * 1000;
        let earned = i128::from(now_ms.saturating_sub(self.at_ms)) * i128::from(rate);
        self.level = if self.is_used { (self.level + earned).min(burst) } else { burst };
        (self.at_ms, self.is_used) = (self.at_ms.max(now_ms), true);
        self.level -= i128::from(bytes) * 1000;
        let debt = (-self.level).max(0);
        u64::try_from(debt.div_euclid(i128::from(rate.max(1)))).unwrap_or(u64::MAX) + u64::from(debt > 0)
    }
}

/// What goes through one place: all of a direction, or one peer's part of it.
#[derive(Debug)]
pub struct Flow {
    began: Instant,
    /// Held for the arithmetic only.
    bucket: Mutex<Bucket>,
}

impl Default for Flow {
    fn default() -> Self {
        Flow { began: Instant::now(), bucket: Mutex::default() }
    }
}

impl Flow {
    fn take(&self, rate: Option<u64>, bytes: u64) -> Duration {
        let Some(rate) = rate else { return Duration::ZERO };
        let now_ms = self.began.elapsed().as_millis() as u64;
        let mut bucket = self.bucket.lock().unwrap_or_else(PoisonError::into_inner);
        Duration::from_millis(bucket.take(now_ms, rate, bytes))
    }
}

/// The rates of a node and what has gone; clones share it.
#[derive(Clone, Debug, Default)]
pub struct Limits {
    rates: Arc<Rates>,
    up: Arc<Flow>,
    down: Arc<Flow>,
}

impl Limits {
    /// With nothing gone yet.
    pub fn new(rates: Rates) -> Limits {
        Limits { rates: Arc::new(rates), up: Arc::default(), down: Arc::default() }
    }

    /// Whether far sources are asked while near ones suffice.
    pub fn far_always(&self) -> bool {
        self.rates.far_always
    }

    /// For one stream of a peer, whose own part is `one`.
    pub fn pace(&self, way: Way, one: Arc<Flow>) -> Pace {
        let all = if way == Way::Up { self.up.clone() } else { self.down.clone() };
        Pace { rates: self.rates.clone(), way, all, one, is_held: Arc::default() }
    }
}

/// Lets a stream's bytes pass at the node's rates.
#[derive(Clone, Debug)]
pub struct Pace {
    rates: Arc<Rates>,
    way: Way,
    all: Arc<Flow>,
    one: Arc<Flow>,
    is_held: Arc<AtomicBool>,
}

impl Pace {
    /// Whether it has bytes wait now: then nobody else is to blame for slowness.
    pub fn is_held(&self) -> bool {
        self.is_held.load(Ordering::Relaxed)
    }

    async fn pass(&self, bytes: usize) {
        let minute = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs() / 60 % (24 * 60);
        let all = self.all.take(self.rates.total(self.way, minute as u16), bytes as u64);
        let wait = all.max(self.one.take(self.rates.of_one(self.way), bytes as u64));
        if !wait.is_zero() {
            self.is_held.store(true, Ordering::Relaxed);
            tokio::time::sleep(wait).await;
            self.is_held.store(false, Ordering::Relaxed);
        }
    }
}

/// A stream at a pace.
#[derive(Debug)]
pub struct Paced<S> {
    stream: S,
    pace: Pace,
}

impl<S> Paced<S> {
    /// Nothing has passed yet.
    pub fn new(stream: S, pace: Pace) -> Paced<S> {
        Paced { stream, pace }
    }
}

impl<S: SendStream> SendStream for Paced<S> {
    async fn send_bytes(&mut self, bytes: Bytes) -> io::Result<()> {
        self.pace.pass(bytes.len()).await;
        self.stream.send_bytes(bytes).await
    }

    async fn send(&mut self, buf: &[u8]) -> io::Result<()> {
        self.pace.pass(buf.len()).await;
        self.stream.send(buf).await
    }

    async fn sync(&mut self) -> io::Result<()> {
        self.stream.sync().await
    }

    fn reset(&mut self, code: VarInt) -> io::Result<()> {
        self.stream.reset(code)
    }

    async fn stopped(&mut self) -> io::Result<Option<VarInt>> {
        self.stream.stopped().await
    }

    fn id(&self) -> u64 {
        self.stream.id()
    }
}

impl<S: RecvStream> RecvStream for Paced<S> {
    async fn recv_bytes(&mut self, len: usize) -> io::Result<Bytes> {
        let bytes = self.stream.recv_bytes(len).await?;
        self.pace.pass(bytes.len()).await;
        Ok(bytes)
    }

    async fn recv_bytes_exact(&mut self, len: usize) -> io::Result<Bytes> {
        let bytes = self.stream.recv_bytes_exact(len).await?;
        self.pace.pass(len).await;
        Ok(bytes)
    }

    async fn recv_exact(&mut self, target: &mut [u8]) -> io::Result<()> {
        self.stream.recv_exact(target).await?;
        self.pace.pass(target.len()).await;
        Ok(())
    }

    fn stop(&mut self, code: VarInt) -> io::Result<()> {
        self.stream.stop(code)
    }

    fn id(&self) -> u64 {
        self.stream.id()
    }
}

/// A connection whose next request is read at a pace.
#[derive(Debug)]
pub struct PacedConnection {
    /// To the source.
    pub connection: Connection,
    /// How fast.
    pub pace: Pace,
}

impl GetStreamPair for PacedConnection {
    async fn open_stream_pair(self) -> io::Result<StreamPair<impl RecvStream, impl SendStream>> {
        let connection_id = self.connection.stable_id() as u64;
        let (send, recv) = self.connection.open_bi().await?;
        Ok(StreamPair::new(connection_id, Paced::new(recv, self.pace), send))
    }
}

#[cfg(test)]
#[path = "rate_tests.rs"]
mod tests;
