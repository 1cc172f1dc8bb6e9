//! Activations between stages: a fixed header, then the values. Not the stream they travel on. Invariant: a parsed header
//! promises a payload within the limits, so the receiver allocates exactly [`FrameHeader::payload_bytes`].
//!
//! ```text
//! 0   "CAF1"            4  session (16)       20  epoch u32        24  sequence u64      32  first position u64
//! 40  count u32        44  width u32          48  dtype u8 (1 F32) 49  flags u8 (1 sample)  50  0 0
//! ```
//!
//! All little-endian; `count × width` values follow, token after token.

use crate::id::SessionId;
use crate::limits::{CONTEXT_MAX, FRAME_BYTES_MAX, FRAME_POSITIONS_MAX, FRAME_WIDTH_MAX};

/// Bytes of a header.
pub const HEADER_BYTES: usize = 52;

const MAGIC: &[u8; 4] = b"CAF1";
const SAMPLE: u8 = 1;

/// The element type of a frame's values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameDtype {
    /// IEEE single: what arithmetic between layers is in.
    F32 = 1,
}

/// What a frame holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    /// The generation.
    pub session: SessionId,
    /// Raised by every new plan.
    pub epoch: u32,
    /// Counts the frames of an epoch.
    pub sequence: u64,
    /// Position of the first hidden state.
    pub first_position: u64,
    /// How many positions.
    pub count: u32,
    /// Values of one position.
    pub width: u32,
    /// Their type.
    pub dtype: FrameDtype,
    /// Whether the last stage samples after the last position.
    pub sample: bool,
}

/// Why bytes are not a frame's header.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Not the number of bytes of a header.
    #[error("a frame's header has {HEADER_BYTES} bytes, not {0}")]
    Length(usize),
    /// Not a frame, or one of a later version.
    #[error("not a frame that is understood here")]
    NotAFrame,
    /// A number outside of its limits.
    #[error("the frame's {field} {got} is outside of 1..={max}")]
    Limit {
        /// Which number.
        field: &'static str,
        /// What it is.
        got: u64,
        /// What it may be.
        max: u64,
    },
}

impl FrameHeader {
    /// Appends the header's bytes.
    pub fn encode(&self, to: &mut Vec<u8>) {
        to.extend_from_slice(MAGIC);
        to.extend_from_slice(self.session.as_bytes());
        to.extend_from_slice(&self.epoch.to_le_bytes());
        to.extend_from_slice(&self.sequence.to_le_bytes());
        to.extend_from_slice(&self.first_position.to_le_bytes());
        to.extend_from_slice(&self.count.to_le_bytes());
        to.extend_from_slice(&self.width.to_le_bytes());
        to.extend_from_slice(&[self.dtype as u8, if self.sample { SAMPLE } else { 0 }, 0, 0]);
    }

    /// From the bytes of a header.
    pub fn parse(bytes: &[u8]) -> Result<Self, FrameError> {
        let bytes: &[u8; HEADER_BYTES] = bytes.try_into().map_err(|_| FrameError::Length(bytes.len()))?;
        let sample = match (&bytes[..4] == MAGIC, bytes[48] == FrameDtype::F32 as u8, bytes[49], &bytes[50..]) {
            (true, true, flags @ (0 | SAMPLE), [0, 0]) => flags == SAMPLE,
            _ => return Err(FrameError::NotAFrame),
        };
        let header = Self {
            session: SessionId::from(field::<16>(bytes, 4)),
            epoch: u32::from_le_bytes(field(bytes, 20)),
            sequence: u64::from_le_bytes(field(bytes, 24)),
            first_position: u64::from_le_bytes(field(bytes, 32)),
            count: u32::from_le_bytes(field(bytes, 40)),
            width: u32::from_le_bytes(field(bytes, 44)),
            dtype: FrameDtype::F32,
            sample,
        };
        header.check().map(|()| header)
    }

    /// Whether the numbers are within the limits; parsed headers are.
    pub fn check(&self) -> Result<(), FrameError> {
        let end = self.first_position.saturating_add(u64::from(self.count));
        let bytes = u64::from(self.count) * u64::from(self.width) * 4;
        let numbers = [
            ("count", u64::from(self.count), u64::from(FRAME_POSITIONS_MAX)),
            ("width", u64::from(self.width), u64::from(FRAME_WIDTH_MAX)),
            ("payload", bytes, u64::from(FRAME_BYTES_MAX)),
            ("last position", end, u64::from(CONTEXT_MAX)),
        ];
        match numbers.into_iter().find(|(_, got, max)| !(1..=*max).contains(got)) {
            Some((field, got, max)) => Err(FrameError::Limit { field, got, max }),
            None => Ok(()),
        }
    }

    /// Bytes that follow the header; at most [`FRAME_BYTES_MAX`] once checked.
    pub const fn payload_bytes(&self) -> usize {
        self.count as usize * self.width as usize * 4
    }
}

/// Appends values as they travel.
pub fn put_values(values: &[f32], to: &mut Vec<u8>) {
    to.reserve(values.len() * 4);
    to.extend(values.iter().flat_map(|value| value.to_le_bytes()));
}

/// Values as they travelled, to the bit; bytes after the last whole one are not read.
pub fn values(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks::<4>().0.iter().map(|value| f32::from_le_bytes(*value)).collect()
}

fn field<const N: usize>(bytes: &[u8; HEADER_BYTES], at: usize) -> [u8; N] {
    let mut field = [0; N];
    field.copy_from_slice(&bytes[at..at + N]);
    field
}
