//! A Hub on loopback for tests, with the quirks of real ones and some that none should have. It serves one repo, `org/tiny`, and speaks
//! just enough HTTP by hand, so that it can break connections where it likes.
//!
//! Invariant: its threads end with the test's process; it counts what tests ask about.
#![allow(dead_code, clippy::unwrap_used, clippy::panic)]

use std::{
    collections::BTreeSet,
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use cairn_registry::sums_of;
use serde_json::json;

/// Files of this many bytes and more are listed by SHA-256.
const LARGE: usize = 100_000;

/// How this Hub differs from a plain one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Quirk {
    /// Files lie at another origin.
    Redirect,
    /// The first question for each thing at each origin is refused, with 429 and 503 by turns.
    RefuseFirst,
    /// A connection ends after so many bytes of a file.
    BreakAt(usize),
    /// A connection says nothing more after so many bytes, until it may go on.
    StallAt(usize),
    /// The listing comes in pages.
    PagesOf(usize),
    /// The listing goes on at another origin.
    PagesElsewhere,
    /// Without this token nothing is shown.
    NeedsToken(&'static str),
    /// The last byte of a file is another.
    Lie,
    /// More bytes come than were listed.
    SendMore,
}

/// The Hub.
pub struct Hub {
    shared: Arc<Shared>,
}

struct Shared {
    files: Vec<(&'static str, Vec<u8>)>,
    quirks: Vec<Quirk>,
    api: String,
    elsewhere: String,
    /// What was asked for, and at which origin. Held only to look and add.
    asked: Mutex<BTreeSet<(bool, String)>>,
    ranges: AtomicUsize,
    told: AtomicBool,
    stalled: AtomicBool,
    may_go_on: AtomicBool,
}

struct Question {
    path: String,
    range: Option<usize>,
    token: Option<String>,
    is_elsewhere: bool,
}

impl Hub {
    pub fn start(files: Vec<(&'static str, Vec<u8>)>, quirks: &[Quirk]) -> Hub {
        let doors = [TcpListener::bind("127.0.0.1:0").unwrap(), TcpListener::bind("127.0.0.1:0").unwrap()];
        let address = |door: &TcpListener| format!("http://{}", door.local_addr().unwrap());
        let shared = Arc::new(Shared {
            files,
            quirks: quirks.to_vec(),
            api: address(&doors[0]),
            elsewhere: address(&doors[1]),
            asked: Mutex::default(),
            ranges: AtomicUsize::new(0),
            told: AtomicBool::new(false),
            stalled: AtomicBool::new(false),
            may_go_on: AtomicBool::new(false),
        });
        for (door, is_elsewhere) in doors.into_iter().zip([false, true]) {
            let shared = shared.clone();
            std::thread::spawn(move || {
                for stream in door.incoming().flatten() {
                    let shared = shared.clone();
                    std::thread::spawn(move || shared.answer(stream, is_elsewhere));
                }
            });
        }
        Hub { shared }
    }

    pub fn endpoint(&self) -> String {
        self.shared.api.clone()
    }

    pub fn commit(&self) -> String {
        self.shared.commit()
    }

    pub fn ranges_seen(&self) -> usize {
        self.shared.ranges.load(Ordering::SeqCst)
    }

    pub fn token_was_told_elsewhere(&self) -> bool {
        self.shared.told.load(Ordering::SeqCst)
    }

    pub fn wait_until_stalled(&self) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !self.shared.stalled.load(Ordering::SeqCst) {
            assert!(Instant::now() < deadline, "nobody fetched the large file");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    pub fn go_on(&self) {
        self.shared.may_go_on.store(true, Ordering::SeqCst);
    }
}

impl Shared {
    fn has(&self, quirk: Quirk) -> bool {
        self.quirks.contains(&quirk)
    }

    /// What git would call it is nobody's business; it changes with the files.
    fn commit(&self) -> String {
        let all: Vec<u8> = self.files.iter().flat_map(|(path, bytes)| [path.as_bytes(), bytes].concat()).collect();
        blake3::hash(&all).to_hex()[..40].to_owned()
    }

    /// One question a connection.
    fn answer(&self, stream: TcpStream, is_elsewhere: bool) {
        let Some(question) = read(&stream, is_elsewhere) else { return };
        let mut stream = stream;
        // Whoever hangs up has heard enough.
        let _ = self.tell(&mut stream, &question);
    }

    fn tell(&self, stream: &mut TcpStream, question: &Question) -> std::io::Result<()> {
        if question.is_elsewhere && question.token.is_some() {
            self.told.store(true, Ordering::SeqCst);
        }
        let wanted = self.quirks.iter().find_map(|quirk| match quirk {
            Quirk::NeedsToken(token) => Some(format!("Bearer {token}")),
            _ => None,
        });
        if wanted.is_some() && !question.is_elsewhere && question.token != wanted {
            return plain(stream, "401 Unauthorized", "X-Error-Code: RepoNotFound\r\n", b"{}");
        }
        if self.has(Quirk::RefuseFirst)
            && let Some(count) = self.asks_first(question)
        {
            let status = if count % 2 == 0 { "429 Too Many Requests" } else { "503 Service Unavailable" };
            return plain(stream, status, "Retry-After: 0\r\n", b"{}");
        }
        let path = question.path.as_str();
        if path == "/api/models/org/tiny/revision/main" {
            return plain(stream, "200 OK", "", json!({"id": "org/tiny", "sha": self.commit()}).to_string().as_bytes());
        }
        if let Some(query) = path.strip_prefix(&format!("/api/models/org/tiny/tree/{}?recursive=true", self.commit())) {
            return self.page(stream, query);
        }
        match path.strip_prefix(&format!("/org/tiny/resolve/{}/", self.commit())) {
            Some(file) if self.has(Quirk::Redirect) && !question.is_elsewhere => {
                let to = format!("Location: {}/org/tiny/resolve/{}/{file}\r\n", self.elsewhere, self.commit());
                plain(stream, "302 Found", &to, b"")
            }
            Some(file) => self.file(stream, &decoded(file), question.range),
            None => plain(stream, "404 Not Found", "X-Error-Code: EntryNotFound\r\n", b"{}"),
        }
    }

    /// How many other things were asked for before, if this one was not.
    fn asks_first(&self, question: &Question) -> Option<usize> {
        let mut asked = self.asked.lock().unwrap();
        let count = asked.len();
        asked.insert((question.is_elsewhere, question.path.clone())).then_some(count)
    }

    fn page(&self, stream: &mut TcpStream, query: &str) -> std::io::Result<()> {
        let size =
            self.quirks.iter().find_map(|quirk| if let Quirk::PagesOf(size) = quirk { Some(*size) } else { None });
        let from = query.strip_prefix("&cursor=").map_or(0, |cursor| cursor.parse().unwrap());
        let size = size.unwrap_or(self.files.len());
        let entries: Vec<_> = self.files.iter().skip(from).take(size).map(|(path, bytes)| entry(path, bytes)).collect();
        let tree = format!("/api/models/org/tiny/tree/{}?recursive=true&cursor={}", self.commit(), from + size);
        let link = match from + size < self.files.len() {
            _ if self.has(Quirk::PagesElsewhere) => format!("Link: <{}{tree}>; rel=\"next\"\r\n", self.elsewhere),
            true => format!("Link: <{}{tree}>; rel=\"next\"\r\n", self.api),
            false => String::new(),
        };
        plain(stream, "200 OK", &link, json!(entries).to_string().as_bytes())
    }

    fn file(&self, stream: &mut TcpStream, path: &str, range: Option<usize>) -> std::io::Result<()> {
        let Some((_, bytes)) = self.files.iter().find(|(name, _)| *name == path) else {
            return plain(stream, "404 Not Found", "", b"{}");
        };
        let mut bytes = bytes.clone();
        if self.has(Quirk::Lie) {
            *bytes.last_mut().unwrap() ^= 1;
        }
        let listed = bytes.len();
        if self.has(Quirk::SendMore) {
            bytes.push(0);
        }
        let from = range.unwrap_or(0);
        if range.is_some() {
            self.ranges.fetch_add(1, Ordering::SeqCst);
        }
        let status = if range.is_some() { "206 Partial Content" } else { "200 OK" };
        let length = format!("Content-Length: {}\r\n", bytes.len() - from);
        let part = format!("Content-Range: bytes {from}-{}/{listed}\r\n", listed.saturating_sub(1));
        let part = if range.is_some() { part } else { String::new() };
        write!(stream, "HTTP/1.1 {status}\r\n{length}{part}Connection: close\r\n\r\n")?;
        self.pour(stream, &bytes[from..])
    }

    fn pour(&self, stream: &mut TcpStream, bytes: &[u8]) -> std::io::Result<()> {
        for quirk in &self.quirks {
            match quirk {
                Quirk::BreakAt(at) if bytes.len() > *at => {
                    return stream.write_all(&bytes[..*at]);
                }
                Quirk::StallAt(at) if bytes.len() > *at && !self.may_go_on.load(Ordering::SeqCst) => {
                    stream.write_all(&bytes[..*at])?;
                    self.stalled.store(true, Ordering::SeqCst);
                    while !self.may_go_on.load(Ordering::SeqCst) {
                        std::thread::sleep(Duration::from_millis(10));
                    }
                    return Ok(());
                }
                _ => {}
            }
        }
        stream.write_all(bytes)
    }
}

fn entry(path: &str, bytes: &[u8]) -> serde_json::Value {
    let sums = sums_of(bytes);
    let mut entry = json!({"type": "file", "path": path, "size": bytes.len(), "oid": hex::encode(sums.git_sha1)});
    if bytes.len() >= LARGE {
        entry["oid"] = json!("0".repeat(40));
        entry["lfs"] = json!({"oid": hex::encode(sums.sha256), "size": bytes.len(), "pointerSize": 132});
    }
    entry
}

fn read(stream: &TcpStream, is_elsewhere: bool) -> Option<Question> {
    let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
    let path = lines.next()?.split(' ').nth(1)?.to_owned();
    let mut question = Question { path, range: None, token: None, is_elsewhere };
    for line in lines.take_while(|line| !line.is_empty()) {
        let (name, value) = line.split_once(": ")?;
        match name.to_ascii_lowercase().as_str() {
            "range" => question.range = value.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok(),
            "authorization" => question.token = Some(value.to_owned()),
            _ => {}
        }
    }
    Some(question)
}

fn plain(stream: &mut TcpStream, status: &str, headers: &str, body: &[u8]) -> std::io::Result<()> {
    let length = body.len();
    write!(stream, "HTTP/1.1 {status}\r\nContent-Length: {length}\r\n{headers}Connection: close\r\n\r\n")?;
    stream.write_all(body)
}

fn decoded(path: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = path.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let (byte, after) = match first {
            b'%' => (u8::from_str_radix(std::str::from_utf8(&after[..2]).unwrap(), 16).unwrap(), &after[2..]),
            byte => (*byte, after),
        };
        bytes.push(byte);
        rest = after;
    }
    String::from_utf8(bytes).unwrap()
}
