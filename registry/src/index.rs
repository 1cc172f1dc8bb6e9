//! Where the tensors of a revision lie: read from the headers of its safetensors and GGUF files.
//!
//! It reads headers only, never tensor bytes, and never a pickle. What the tensors mean is not known here.
//!
//! Invariant: tensor names are unique in an index. Of several files with a tensor of one name (the same model in two formats or
//! quantisations), the outermost and then the first by path is indexed; the others are ordinary files.

use std::{
    collections::HashSet,
    fs::File,
    io::{self, Read},
    path::Path,
};

use cairn_protocol::{
    gguf::{self, GgufHeader},
    id::BlobHash,
    manifest::TensorEntry,
    name::FilePath,
    safetensors::{self, HeaderError, HeaderTensor},
};

/// First read of a header: enough for most safetensors files at once.
const FIRST_READ: u64 = 256 * 1024;

/// A header that was read.
#[derive(Debug)]
pub(crate) struct Header {
    pub(crate) header_bytes: u64,
    /// The file's first bytes, as many as were hashed, to see later that what was imported still has this header.
    pub(crate) seen: Seen,
    pub(crate) tensors: Vec<HeaderTensor>,
    pub(crate) gguf: Option<GgufHeader>,
}

/// A file's beginning: how many bytes, and their hash.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Seen {
    pub(crate) bytes: u64,
    pub(crate) hash: BlobHash,
}

/// Why a header could not be read.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// The file could not be read.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// It is not what its name says.
    #[error(transparent)]
    Header(#[from] HeaderError),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Format {
    Safetensors,
    Gguf,
}

/// Reads the header of a file whose name says that it has one; `None` for other files. Blocks. Memory: the header and what it
/// describes, both bounded by `protocol::limits`.
pub(crate) fn read_header(path: &FilePath, source: &Path, size: u64) -> Result<Option<Header>, IndexError> {
    let Some(format) = format_of(path) else { return Ok(None) };
    let mut file = File::open(source)?;
    let mut bytes = Vec::new();
    let mut wanted = FIRST_READ;
    loop {
        let more = wanted.min(size).saturating_sub(bytes.len() as u64);
        let read = (&mut file).take(more).read_to_end(&mut bytes)?;
        match parse(format, &bytes, size) {
            // A file that ended early is shorter than it was: what is missing will never come.
            Err(HeaderError::NeedMore(needed))
                if read as u64 == more && needed > bytes.len() as u64 && (bytes.len() as u64) < size =>
            {
                wanted = needed;
            }
            Err(error) => return Err(error.into()),
            Ok(header) => return Ok(Some(header)),
        }
    }
}

fn format_of(path: &FilePath) -> Option<Format> {
    let (_, extension) = path.file_name().rsplit_once('.')?;
    match extension.to_ascii_lowercase().as_str() {
        "safetensors" => Some(Format::Safetensors),
        "gguf" => Some(Format::Gguf),
        _ => None,
    }
}

fn parse(format: Format, bytes: &[u8], size: u64) -> Result<Header, HeaderError> {
    match format {
        Format::Safetensors => {
            let header = safetensors::parse_header(bytes, size)?;
            let seen = seen(bytes, header.header_bytes);
            Ok(Header { header_bytes: header.header_bytes, seen, tensors: header.tensors, gguf: None })
        }
        Format::Gguf => {
            let header = gguf::parse_header(bytes, size)?;
            let seen = seen(bytes, header.header_bytes);
            Ok(Header { header_bytes: header.header_bytes, seen, tensors: header.tensors.clone(), gguf: Some(header) })
        }
    }
}

/// GGUF pads its header up to the first tensor; padding that was not read need not be recognised.
fn seen(bytes: &[u8], header_bytes: u64) -> Seen {
    let header = bytes.get(..header_bytes as usize).unwrap_or(bytes);
    Seen { bytes: header.len() as u64, hash: BlobHash::of(header) }
}

/// The tensors of a revision's files.
#[derive(Default)]
pub(crate) struct TensorIndex {
    pub(crate) tensors: Vec<TensorEntry>,
    /// The header of the GGUF file that is indexed, if one is.
    pub(crate) gguf: Option<GgufHeader>,
    /// Files that have tensors but are not indexed, since another file has tensors of those names.
    pub(crate) left_out: Vec<FilePath>,
}

impl TensorIndex {
    /// Builds the index, and says for every file how many bytes come before its tensors (0 if it is not indexed). `files` are in the
    /// manifest's order, each with its header if it has one.
    pub(crate) fn build(files: Vec<(FilePath, Option<Header>)>) -> (Self, Vec<u64>) {
        let mut header_bytes = vec![0; files.len()];
        let mut order: Vec<(usize, FilePath, Header)> = Vec::new();
        for (number, (path, header)) in files.into_iter().enumerate() {
            order.extend(header.map(|header| (number, path, header)));
        }
        order.sort_by(|(_, a, _), (_, b, _)| (a.parts().count(), a).cmp(&(b.parts().count(), b)));
        let (mut index, mut names) = (Self::default(), HashSet::new());
        for (number, path, header) in order {
            if header.tensors.iter().any(|tensor| names.contains(&tensor.name)) {
                index.left_out.push(path);
                continue;
            }
            header_bytes[number] = header.header_bytes;
            names.extend(header.tensors.iter().map(|tensor| tensor.name.clone()));
            index.tensors.extend(header.tensors.into_iter().map(|tensor| entry(tensor, number)));
            index.gguf = index.gguf.or(header.gguf);
        }
        (index, header_bytes)
    }
}

fn entry(tensor: HeaderTensor, file: usize) -> TensorEntry {
    TensorEntry {
        name: tensor.name,
        file: u32::try_from(file).unwrap_or(u32::MAX),
        offset: tensor.offset,
        length: tensor.length,
        dtype: tensor.dtype,
        shape: tensor.shape,
    }
}
