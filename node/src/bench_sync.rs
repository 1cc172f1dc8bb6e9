//! What it costs two sets of records to agree: bytes each way, round trips, time and processor, over a loopback socket, against sending all ids.
//!
//! The sets are those of [`cairn_registry::sync`] in files of their own, without records; ids are hashes, as real ones are. The talk goes over
//! a TCP connection of this process with itself, encoded as between nodes; encryption and libp2p's framing are left out.
//!
//! Invariant: what is measured has found exactly what was lacking.

use std::{
    collections::BTreeSet,
    io::{self, Read, Write},
    net::{TcpListener, TcpStream},
    path::Path,
    thread,
    time::{Duration, Instant},
};

use cairn_protocol::{
    id::RecordId,
    limits::ANSWER_BYTES_MAX,
    peer_pb::{Answer, Question, Reconcile, Reconciled, answer::Say, question::Ask},
    refusal::Refusal,
};
use cairn_registry::sync::{
    machine::{Answered, Reconciler},
    measure::IdStore,
};
use prost::Message;
use serde::Serialize;

/// Ids that are stored in one step.
const STEP: u64 = 100_000;
/// Bytes of an id.
const ID_BYTES: u64 = 32;

/// What one comparison cost.
#[derive(Debug, Serialize)]
pub struct Compared {
    /// Records that the asker lacks, half of them, and that the other lacks, half of them.
    pub differences: u64,
    /// Bytes of questions.
    pub sent_bytes: u64,
    /// Bytes of answers.
    pub heard_bytes: u64,
    /// Questions.
    pub round_trips: u32,
    /// From the first question to the last answer.
    pub seconds: f64,
    /// Processor time of both sides.
    pub cpu_s: f64,
    /// What all ids would take one way.
    pub all_ids_bytes: u64,
    /// All ids, over what was sent and heard.
    pub ratio: f64,
}

/// Fills two sets of `records` ids that differ in each of `differences`, and has them compared. `progress` hears of stored ids.
pub fn run(
    folder: &Path,
    records: u64,
    differences: &[u64],
    progress: impl Fn(u64),
) -> Result<(f64, Vec<Compared>), Refusal> {
    let started = Instant::now();
    let most = differences.iter().copied().max().unwrap_or(0).min(records);
    let theirs = store(folder, "theirs", (0..records - most).map(id), &progress)?;
    let store_s = started.elapsed().as_secs_f64();
    let mine = store(folder, "mine", (0..records - most).map(id), &progress)?;
    let mut compared = Vec::new();
    let mut before = 0;
    let mut sorted = differences.to_vec();
    sorted.sort_unstable();
    for count in sorted {
        // Of each difference one side has the record, in turn.
        let fresh = (before..count.min(records)).map(|n| records - most + n);
        let (even, odd): (Vec<u64>, Vec<u64>) = fresh.partition(|n| n % 2 == 0);
        theirs.insert(even.iter().copied().map(id)).map_err(failed)?;
        mine.insert(odd.into_iter().map(id)).map_err(failed)?;
        before = before.max(count.min(records));
        let lacking = (records - most..records - most + before).filter(|n| n % 2 == 0).map(id).collect();
        compared.push(compare(&mine, &theirs, &lacking, records, before)?);
    }
    Ok((store_s, compared))
}

/// Spread as the hashes of records are.
fn id(n: u64) -> RecordId {
    RecordId::from(*blake3::hash(&n.to_le_bytes()).as_bytes())
}

fn store(
    folder: &Path,
    name: &str,
    ids: impl Iterator<Item = RecordId>,
    progress: impl Fn(u64),
) -> Result<IdStore, Refusal> {
    let store = IdStore::create(&folder.join(name)).map_err(failed)?;
    let (mut ids, mut stored) = (ids.peekable(), 0);
    while ids.peek().is_some() {
        store.insert(ids.by_ref().take(STEP as usize)).map_err(failed)?;
        stored += STEP;
        progress(stored);
    }
    Ok(store)
}

fn compare(
    mine: &IdStore,
    theirs: &IdStore,
    lacking: &BTreeSet<RecordId>,
    records: u64,
    differences: u64,
) -> Result<Compared, Refusal> {
    let listener = TcpListener::bind("127.0.0.1:0").map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    let (cpu, started) = (cpu_time(), Instant::now());
    let (machine, bytes) = thread::scope(|scope| {
        scope.spawn(|| answer_all(&listener, theirs));
        ask_all(address, mine)
    })?;
    let (seconds, cpu_s) = (started.elapsed().as_secs_f64(), (cpu_time() - cpu).as_secs_f64());
    let round_trips = machine.questions();
    if machine.lacking() != *lacking {
        return Err(Refusal::internal("the comparison", "it did not find what is lacking"));
    }
    let all_ids_bytes = records * ID_BYTES;
    let ratio = all_ids_bytes as f64 / (bytes.0 + bytes.1).max(1) as f64;
    let (sent_bytes, heard_bytes) = bytes;
    Ok(Compared { differences, sent_bytes, heard_bytes, round_trips, seconds, cpu_s, all_ids_bytes, ratio })
}

fn ask_all(address: std::net::SocketAddr, mine: &IdStore) -> Result<(Reconciler, (u64, u64)), Refusal> {
    let mut stream = TcpStream::connect(address).map_err(failed)?;
    stream.set_nodelay(true).map_err(failed)?;
    let (mut machine, mut bytes) = (Reconciler::new(BTreeSet::new()), (0, 0));
    while let Some(items) = mine.question(&mut machine).map_err(failed)? {
        let question = Question { ask: Some(Ask::Reconcile(Reconcile { items })) }.encode_to_vec();
        write_frame(&mut stream, &question).map_err(failed)?;
        let answer = read_frame(&mut stream).map_err(failed)?.ok_or_else(|| failed("the other side is gone"))?;
        bytes = (bytes.0 + question.len() as u64, bytes.1 + answer.len() as u64);
        let Some(Say::Reconciled(said)) = Answer::decode(&answer[..]).map_err(failed)?.say else {
            return Err(failed("another answer"));
        };
        let answer = Answered { items: said.items, handled: said.handled as usize };
        mine.take(&mut machine, answer).map_err(failed)?;
    }
    Ok((machine, bytes))
}

/// Answers one connection until it ends. What fails shows as a broken connection on the other side.
fn answer_all(listener: &TcpListener, theirs: &IdStore) {
    let Ok((mut stream, _)) = listener.accept() else { return };
    let _ = stream.set_nodelay(true);
    while let Ok(Some(question)) = read_frame(&mut stream) {
        let Ok(Question { ask: Some(Ask::Reconcile(set)) }) = Question::decode(&question[..]) else { return };
        let Ok(answer) = theirs.answer(&set.items) else { return };
        let said = Reconciled { items: answer.items, handled: answer.handled as u32 };
        let answer = Answer { say: Some(Say::Reconciled(said)) }.encode_to_vec();
        if write_frame(&mut stream, &answer).is_err() {
            return;
        }
    }
}

fn write_frame(stream: &mut TcpStream, bytes: &[u8]) -> io::Result<()> {
    stream.write_all(&[&(bytes.len() as u32).to_le_bytes(), bytes].concat())
}

/// `None` at the end.
fn read_frame(stream: &mut TcpStream) -> io::Result<Option<Vec<u8>>> {
    let mut length = [0; 4];
    match stream.read_exact(&mut length) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        done => done?,
    }
    let length = u32::from_le_bytes(length) as usize;
    if length > ANSWER_BYTES_MAX {
        return Err(io::Error::other("a frame that is too long"));
    }
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes)?;
    Ok(Some(bytes))
}

/// Of this process, all threads.
fn cpu_time() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}

fn failed(error: impl std::fmt::Display) -> Refusal {
    Refusal::internal("the measured sets", error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_sets_agree_and_what_they_cost_is_told() {
        let folder = tempfile::tempdir().expect("a folder");
        let (_, compared) = run(folder.path(), 5_000, &[0, 40], |_| ()).expect("measured");
        assert_eq!((compared[0].differences, compared[0].round_trips, compared[0].heard_bytes < 32), (0, 1, true));
        assert_eq!(compared[1].differences, 40);
        assert!(compared[1].ratio > 1.0 && compared[1].round_trips > 1, "{compared:?}");
    }
}
