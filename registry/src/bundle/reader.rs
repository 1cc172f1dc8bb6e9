//! Reads a bundle frame by frame, lengths checked before memory is taken, and holds it against the digest at its end.
//!
//! It knows the layout and not what may follow what; that is [`super::check`].
//!
//! Invariant: it never has more than one frame in memory.

use std::io;

use bytes::Bytes;
use cairn_protocol::id::{BlobHash, RealmId};
use tokio::io::{AsyncRead, AsyncReadExt};

use super::{
    BundleError, Totals,
    format::{self, FRAME_HEAD_BYTES, HEADER_BYTES, Kind, SEGMENT_HEAD_BYTES},
};

/// A bundle that is being read.
pub(super) struct Reader<R> {
    source: R,
    digest: blake3::Hasher,
    at: u64,
}

/// Part of a blob. Its proof and data are still to be read, or skipped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Segment {
    pub(super) hash: BlobHash,
    pub(super) size: u64,
    pub(super) offset: u64,
    /// Bytes of proof and data.
    pub(super) length: usize,
}

/// What comes next.
pub(super) enum Frame {
    Record(Bytes),
    Manifest(Bytes),
    Segment(Segment),
    End,
}

impl<R: AsyncRead + Unpin> Reader<R> {
    /// Reads the header.
    pub(super) async fn open(source: R) -> Result<(Self, RealmId, Totals), BundleError> {
        let mut reader = Self { source, digest: blake3::Hasher::new(), at: 0 };
        let mut header = [0; HEADER_BYTES];
        reader.fill(&mut header).await.map_err(|error| match error {
            BundleError::Truncated { .. } if !header.starts_with(format::MAGIC) => BundleError::NotABundle,
            error => error,
        })?;
        let (version, realm, totals) = format::parse_header(&header).ok_or(BundleError::NotABundle)?;
        if version != format::VERSION {
            return Err(BundleError::Version(version));
        }
        Ok((reader, realm, totals))
    }

    /// Where the next byte stands.
    pub(super) fn at(&self) -> u64 {
        self.at
    }

    /// The next frame. After [`Frame::End`], which was held against the digest, there is none.
    pub(super) async fn next(&mut self) -> Result<Frame, BundleError> {
        let before = self.at;
        let damaged = |reason| BundleError::Frame { at: before, reason };
        let digest = self.digest.finalize();
        let mut head = [0; FRAME_HEAD_BYTES];
        self.fill(&mut head).await?;
        let [kind, length @ ..] = head;
        let kind = Kind::from_byte(kind).ok_or_else(|| damaged("a frame of a kind that does not exist"))?;
        let length = u32::from_le_bytes(length);
        if !kind.permits(length.into()) {
            return Err(damaged("a frame longer or shorter than its kind may be"));
        }
        match kind {
            Kind::Record => self.body(length as usize).await.map(Frame::Record),
            Kind::Manifest => self.body(length as usize).await.map(Frame::Manifest),
            Kind::Segment => self.segment_head(length as usize).await.map(Frame::Segment),
            Kind::End => match self.body(length as usize).await?[..] == digest.as_bytes()[..] {
                true => Ok(Frame::End),
                false => Err(damaged("the digest at the end is not that of the bundle")),
            },
        }
    }

    /// Proof and data of the segment just read, begun with the blob's size, as its verifier reads them.
    pub(super) async fn encoding(&mut self, segment: &Segment) -> Result<Bytes, BundleError> {
        let mut bytes = vec![0; 8 + segment.length];
        bytes[..8].copy_from_slice(&segment.size.to_le_bytes());
        self.read_exact(&mut bytes[8..]).await?;
        Ok(bytes.into())
    }

    /// Goes past proof and data of the segment just read.
    pub(super) async fn skip(&mut self, segment: &Segment) -> Result<(), BundleError> {
        let length = segment.length as u64;
        let skipped = tokio::io::copy(&mut (&mut self.source).take(length), &mut tokio::io::sink()).await;
        let skipped = skipped.map_err(BundleError::Read)?;
        self.at += skipped;
        if skipped == length { Ok(()) } else { Err(BundleError::Truncated { at: self.at }) }
    }

    async fn segment_head(&mut self, length: usize) -> Result<Segment, BundleError> {
        let mut head = [0; SEGMENT_HEAD_BYTES];
        self.fill(&mut head).await?;
        let number = |at: usize| head[at..at + 8].iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte));
        let mut hash = [0; 32];
        hash.copy_from_slice(&head[..32]);
        let length = length - SEGMENT_HEAD_BYTES;
        Ok(Segment { hash: BlobHash::from(hash), size: number(32), offset: number(40), length })
    }

    async fn body(&mut self, length: usize) -> Result<Bytes, BundleError> {
        let mut bytes = vec![0; length];
        self.fill(&mut bytes).await?;
        Ok(bytes.into())
    }

    /// Reads what the digest covers.
    async fn fill(&mut self, bytes: &mut [u8]) -> Result<(), BundleError> {
        self.read_exact(bytes).await?;
        self.digest.update(bytes);
        Ok(())
    }

    async fn read_exact(&mut self, bytes: &mut [u8]) -> Result<(), BundleError> {
        match self.source.read_exact(bytes).await {
            Ok(_) => {
                self.at += bytes.len() as u64;
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(BundleError::Truncated { at: self.at }),
            Err(error) => Err(BundleError::Read(error)),
        }
    }
}
