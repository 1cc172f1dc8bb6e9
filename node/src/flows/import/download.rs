//! Downloads one file of a Hub into a stage: goes on where it stopped, hashes as the bytes come, and keeps nothing that is wrong.
//!
//! Source of the resuming: RFC 9110, section 14. A server that ignores the range starts the file anew. Invariant: a file gets its name
//! only when size and digest are those of the listing. Dropped, it leaves its part on disk for the next time.

use std::{
    io::{self, SeekFrom},
    path::Path,
};

use cairn_protocol::refusal::{Reason, Refusal};
use reqwest::{
    Response, StatusCode, Url,
    header::{CONTENT_RANGE, RANGE},
};
use sha1::Sha1;
use sha2::{Digest as _, Sha256};
use tokio::{
    fs::{File, OpenOptions},
    io::{AsyncReadExt, AsyncSeekExt, AsyncWriteExt, BufWriter},
};

use super::{
    hub::{Failure, Hub, RemoteDigest, RemoteFile, broken},
    stage::{Stage, unwritten},
};

/// Bytes that are read of a part at once.
const PIECE: usize = 256 << 10;
/// Bytes that are collected before they are written.
const BUFFER: usize = 256 << 10;

/// Brings the file and says how many bytes came over the network. `advance` hears of bytes as they are here.
pub(super) async fn download(
    hub: &Hub,
    url: Url,
    file: &RemoteFile,
    stage: &Stage,
    advance: impl Fn(u64),
) -> Result<u64, Refusal> {
    let failed = |error: io::Error| unwritten(&file.path, &error);
    let mut part = Part::open(&stage.part(&file.path), file).await.map_err(failed)?;
    advance(part.written);
    let (mut tries, mut fetched) = (0, 0);
    loop {
        let (before, is_resumed) = (part.written, part.written > 0);
        let outcome = if before == file.size { Ok(()) } else { part.receive(hub, url.clone(), file, &advance).await };
        fetched += part.received;
        match outcome {
            Ok(()) if part.is_right(file) => break,
            // What lay here from before may be what is wrong.
            Ok(()) if is_resumed && tries == 0 => part.start_anew().await.map_err(failed)?,
            Ok(()) => {
                part.start_anew().await.map_err(failed)?;
                return Err(lie(hub, file));
            }
            Err(Failure::Final(refusal)) => return Err(refusal),
            Err(Failure::Passing { why, wait }) => {
                tries = if part.received > 0 { 1 } else { tries + 1 };
                hub.wait_or_give_up(tries, why, wait).await?;
            }
        }
    }
    part.file.get_ref().sync_all().await.map_err(failed)?;
    stage.keep(&file.path).map_err(failed)?;
    Ok(fetched)
}

fn lie(hub: &Hub, file: &RemoteFile) -> Refusal {
    let why = format!("{} sends other bytes than its listing names", hub.endpoint());
    Refusal::new(Reason::Corrupt, file.path.to_string(), why).try_this("another endpoint")
}

/// A file on its way, with the digest of what is here.
struct Part {
    file: BufWriter<File>,
    digest: Running,
    size: u64,
    written: u64,
    /// Of these, what the last answer brought.
    received: u64,
}

#[derive(Clone)]
enum Running {
    Sha256(Sha256),
    Sha1(Sha1),
}

impl Running {
    fn new(file: &RemoteFile) -> Self {
        match file.digest {
            RemoteDigest::Sha256(_) => Self::Sha256(Sha256::new()),
            RemoteDigest::GitSha1(_) => Self::Sha1(Sha1::new_with_prefix(format!("blob {}\0", file.size))),
        }
    }

    fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(digest) => digest.update(bytes),
            Self::Sha1(digest) => digest.update(bytes),
        }
    }

    fn result(&self) -> RemoteDigest {
        match self.clone() {
            Self::Sha256(digest) => RemoteDigest::Sha256(digest.finalize().into()),
            Self::Sha1(digest) => RemoteDigest::GitSha1(digest.finalize().into()),
        }
    }
}

impl Part {
    /// Opens what an earlier download left and hashes it.
    async fn open(path: &Path, file: &RemoteFile) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        let mut opened = options.read(true).write(true).create(true).truncate(false).open(path).await?;
        let (mut digest, mut written, mut piece) = (Running::new(file), 0, vec![0; PIECE]);
        loop {
            match opened.read(&mut piece).await? {
                0 => break,
                read => {
                    digest.update(&piece[..read]);
                    written += read as u64;
                }
            }
        }
        let file_of = BufWriter::with_capacity(BUFFER, opened);
        let mut part = Self { file: file_of, digest, size: file.size, written, received: 0 };
        if written > file.size {
            part.digest = Running::new(file);
            part.start_anew().await?;
        }
        Ok(part)
    }

    async fn start_anew(&mut self) -> io::Result<()> {
        self.file.flush().await?;
        self.file.get_mut().set_len(0).await?;
        self.file.seek(SeekFrom::Start(0)).await?;
        self.digest = match &self.digest {
            Running::Sha256(_) => Running::Sha256(Sha256::new()),
            Running::Sha1(_) => Running::Sha1(Sha1::new_with_prefix(format!("blob {}\0", self.size))),
        };
        self.written = 0;
        Ok(())
    }

    fn is_right(&self, file: &RemoteFile) -> bool {
        self.written == file.size && self.digest.result() == file.digest
    }

    /// Asks for what is missing and takes it in, to the end of the file or of the connection.
    async fn receive(&mut self, hub: &Hub, url: Url, file: &RemoteFile, advance: &impl Fn(u64)) -> Result<(), Failure> {
        self.received = 0;
        let mut request = hub.get(url);
        if self.written > 0 {
            request = request.header(RANGE, format!("bytes={}-", self.written));
        }
        let response = hub.answer(request).await?;
        if !begins_at(&response, self.written) {
            self.start_anew().await.map_err(|error| disk(file, &error))?;
            if response.status() != StatusCode::OK {
                return Err(Failure::Passing { why: "it answers with another range".to_owned(), wait: None });
            }
        }
        let taken = self.take(response, hub, file, advance).await;
        // What came before a connection broke is kept.
        self.file.flush().await.map_err(|error| disk(file, &error))?;
        taken
    }

    async fn take(
        &mut self,
        mut response: Response,
        hub: &Hub,
        file: &RemoteFile,
        advance: &impl Fn(u64),
    ) -> Result<(), Failure> {
        while let Some(piece) = response.chunk().await.map_err(|error| broken(&error))? {
            if self.written + piece.len() as u64 > self.size {
                self.start_anew().await.map_err(|error| disk(file, &error))?;
                return Err(Failure::Final(lie(hub, file)));
            }
            self.file.write_all(&piece).await.map_err(|error| disk(file, &error))?;
            self.digest.update(&piece);
            self.written += piece.len() as u64;
            self.received += piece.len() as u64;
            advance(piece.len() as u64);
        }
        if self.written < self.size {
            return Err(Failure::Passing { why: "the connection ended early".to_owned(), wait: None });
        }
        Ok(())
    }
}

/// Whether the answer's bytes follow those that are here.
fn begins_at(response: &Response, written: u64) -> bool {
    match response.status() {
        StatusCode::PARTIAL_CONTENT => {
            let range = response.headers().get(CONTENT_RANGE).and_then(|value| value.to_str().ok());
            let from = range.and_then(|range| range.strip_prefix("bytes ")?.split('-').next()?.parse::<u64>().ok());
            from == Some(written)
        }
        StatusCode::OK => written == 0,
        _ => false,
    }
}

fn disk(file: &RemoteFile, error: &io::Error) -> Failure {
    Failure::Final(unwritten(&file.path, error))
}
