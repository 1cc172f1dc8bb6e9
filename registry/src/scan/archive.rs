//! Looks into zip archives (`torch.save`, TorchScript, numpy's `.npz`, Keras) and numpy arrays for what would be unpickled or run.
//! It unpacks nothing to disk.
//!
//! Readers of archives differ in which entry of two they take and which of two headers they believe, so an archive that leaves room
//! for that is unsafe. Invariant: at most [`DIRECTORY_BYTES_MAX`] of directory and a head of an entry are in memory, and at most
//! [`UNPACKED_BYTES_MAX`] are unpacked.

use std::io::{self, Read, Seek, SeekFrom};

use zip::{ZipArchive, result::ZipError};

use super::{
    FileFindings, HEAD_BYTES, Verdict, code,
    kind::{self, Kind, PICKLE_NAMES},
    pickle,
};

/// Entries of an archive; a model's tensors are some ten thousand.
const ENTRIES_MAX: u64 = 200_000;
/// All entries' names and places.
const DIRECTORY_BYTES_MAX: u64 = 64 << 20;
/// Bytes of one archive that are unpacked to be looked at.
const UNPACKED_BYTES_MAX: u64 = 4 << 30;
/// An entry that grows so much is made to fill memories.
const GROWTH_MAX: u64 = 1000;
/// Unpacked, less than this fills none.
const GROWN_BYTES_MIN: u64 = 1 << 30;
/// A configuration of Keras.
const CONFIG_BYTES_MAX: u64 = 16 << 20;
/// The header of a numpy array.
const NUMPY_HEADER_BYTES_MAX: u32 = 1 << 20;

/// Scans an archive.
pub(super) fn zip(reader: &mut (impl Read + Seek), name: &str, found: &mut FileFindings) -> io::Result<()> {
    if let Some((entries, bytes)) = directory(reader)?
        && (entries > ENTRIES_MAX || bytes > DIRECTORY_BYTES_MAX)
    {
        found.found(Verdict::Unsafe, format!("an archive of {entries} entries is not looked into"));
        return Ok(());
    }
    let opened = ZipArchive::new(&mut *reader);
    let mut archive = match opened {
        Ok(archive) => archive,
        Err(error) => return unreadable("", error, found),
    };
    if archive.has_duplicate_names() {
        found.found(Verdict::Unsafe, "two entries have one name, and readers differ in which they take");
    }
    match archive.has_overlapping_files() {
        Ok(false) => {}
        Ok(true) => found.found(Verdict::Unsafe, "entries share bytes"),
        Err(error) => return unreadable("", error, found),
    }
    if let Err(error) = archive.validate_header_consistency() {
        found.found(Verdict::Unsafe, format!("its two headers of an entry differ: {error}"));
    }
    let mut left = UNPACKED_BYTES_MAX;
    for index in 0..archive.len() {
        match entry(&mut archive, index, name, &mut left, found) {
            Ok(()) => {}
            Err(ZipError::Io(error)) if !is_damage(&error) => return Err(error),
            Err(error) => unreadable(&format!("entry {index}: "), error, found)?,
        }
        if left == 0 {
            found.found(Verdict::Unsafe, "unpacked, it is too large to be looked through");
            break;
        }
    }
    Ok(())
}

/// Damage inside the archive is a finding; only a failing disk is an error.
fn unreadable(place: &str, error: ZipError, found: &mut FileFindings) -> io::Result<()> {
    match error {
        ZipError::Io(error) if !is_damage(&error) => Err(error),
        error => {
            found.found(Verdict::Unsafe, format!("{place}an archive that can't be read: {error}"));
            Ok(())
        }
    }
}

fn is_damage(error: &io::Error) -> bool {
    use io::ErrorKind::{InvalidData, InvalidInput, Other, UnexpectedEof, Unsupported};
    matches!(error.kind(), InvalidData | InvalidInput | UnexpectedEof | Unsupported | Other)
}

fn entry<R: Read + Seek>(
    archive: &mut ZipArchive<R>,
    index: usize,
    archive_name: &str,
    left: &mut u64,
    found: &mut FileFindings,
) -> Result<(), ZipError> {
    let mut entry = archive.by_index(index)?;
    let path = entry.name()?.into_owned();
    if leads_out(&path) {
        found.found(Verdict::Unsafe, format!("{path}: leads out of the folder it is unpacked to"));
    }
    let (size, packed) = (entry.size(), entry.compressed_size());
    if size > GROWN_BYTES_MIN && size / packed.max(1) > GROWTH_MAX {
        found.found(Verdict::Unsafe, format!("{path}: grows from {packed} to {size} bytes"));
        return Ok(());
    }
    if path.ends_with('/') {
        return Ok(());
    }
    let mut limited = entry.by_ref().take(*left);
    let mut head = Vec::new();
    limited.by_ref().take(HEAD_BYTES).read_to_end(&mut head)?;
    let mut whole = io::Cursor::new(&head).chain(limited.by_ref());
    content(&path, archive_name, &head, &mut whole, found)?;
    let unread = limited.limit();
    *left = unread;
    Ok(())
}

/// What an entry would do; `head` is where `whole` begins.
fn content(
    path: &str,
    archive_name: &str,
    head: &[u8],
    whole: &mut impl Read,
    found: &mut FileFindings,
) -> io::Result<()> {
    let name = path.rsplit('/').next().unwrap_or(path).to_lowercase();
    if is_storage(path) && !PICKLE_NAMES.contains(&kind::extension(&name)) {
        return Ok(());
    }
    match kind::of(&name, head) {
        Kind::Pickle => pickle::inside(whole, path, found)?,
        Kind::Numpy => numpy_at(whole, path, found)?,
        Kind::Python => found.found(Verdict::Code, format!("{path}: source code of Python in the archive")),
        Kind::Script => found.found(Verdict::Code, format!("{path}: a script in the archive")),
        Kind::Executable => found.found(Verdict::Unsafe, format!("{path}: machine code in the archive")),
        Kind::Zip | Kind::Tar | Kind::Compressed => {
            found.found(Verdict::Code, format!("{path}: an archive in the archive is not looked into"));
        }
        Kind::Hdf5 => code::keras(whole, found)?,
        Kind::Json if archive_name.ends_with(".keras") || name == "config.json" => {
            let mut bytes = Vec::new();
            whole.take(CONFIG_BYTES_MAX).read_to_end(&mut bytes)?;
            code::text(Kind::Json, &name, &bytes, found);
        }
        _ => {}
    }
    Ok(())
}

/// The raw bytes of a tensor as torch stores them; they may begin with anything.
fn is_storage(path: &str) -> bool {
    let mut parts = path.rsplit('/');
    let is_number = parts.next().is_some_and(|name| !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_digit()));
    is_number && parts.next().is_some_and(|folder| matches!(folder, "data" | "constants" | "tensors"))
}

fn leads_out(path: &str) -> bool {
    path.starts_with(['/', '\\'])
        || path.contains(['\0', '\\'])
        || path.split('/').any(|part| part == "..")
        || path.as_bytes().get(1) == Some(&b':')
}

/// Entries and bytes of the directory, as the archive's end states them.
fn directory(reader: &mut (impl Read + Seek)) -> io::Result<Option<(u64, u64)>> {
    const END_BYTES: u64 = 22;
    let size = reader.seek(SeekFrom::End(0))?;
    let from = size.saturating_sub(END_BYTES + u64::from(u16::MAX));
    reader.seek(SeekFrom::Start(from))?;
    let mut tail = Vec::new();
    reader.by_ref().take(size - from).read_to_end(&mut tail)?;
    reader.seek(SeekFrom::Start(0))?;
    let Some(end) = tail.windows(4).rposition(|window| window == b"PK\x05\x06") else { return Ok(None) };
    let number = |at: usize, bytes: usize, from: &[u8]| {
        let field = from.get(at..at + bytes)?;
        Some(field.iter().rev().fold(0u64, |number, byte| number << 8 | u64::from(*byte)))
    };
    let (entries, bytes) = (number(end + 10, 2, &tail), number(end + 12, 4, &tail));
    let (Some(entries), Some(bytes)) = (entries, bytes) else { return Ok(None) };
    if entries != u64::from(u16::MAX) && bytes != u64::from(u32::MAX) {
        return Ok(Some((entries, bytes)));
    }
    // A larger one says so in a record before, usually right before.
    let larger = tail[..end].windows(4).rposition(|window| window == b"PK\x06\x06");
    let Some(larger) = larger else { return Ok(Some((entries, bytes))) };
    Ok(number(larger + 32, 8, &tail).zip(number(larger + 40, 8, &tail)))
}

/// Scans an array of numpy: of objects, it is a pickle.
pub(super) fn numpy(reader: &mut impl Read, found: &mut FileFindings) -> io::Result<()> {
    numpy_at(reader, "", found)
}

fn numpy_at(reader: &mut impl Read, place: &str, found: &mut FileFindings) -> io::Result<()> {
    match numpy_header(reader) {
        Ok(Some(header)) if is_of_objects(&header) => pickle::inside(reader, place, found),
        Ok(Some(_)) => Ok(()),
        Ok(None) => {
            found.found(Verdict::Unsafe, "an array of numpy whose header can't be read");
            Ok(())
        }
        Err(error) if is_damage(&error) => {
            found.found(Verdict::Unsafe, "an array of numpy that ends in its header");
            Ok(())
        }
        Err(error) => Err(error),
    }
}

fn numpy_header(reader: &mut impl Read) -> io::Result<Option<String>> {
    let mut mark = [0; 8];
    reader.read_exact(&mut mark)?;
    let length = if mark[6] == 1 {
        let mut length = [0; 2];
        reader.read_exact(&mut length)?;
        u16::from_le_bytes(length).into()
    } else {
        let mut length = [0; 4];
        reader.read_exact(&mut length)?;
        u32::from_le_bytes(length)
    };
    if length > NUMPY_HEADER_BYTES_MAX {
        return Ok(None);
    }
    let mut header = vec![0; length as usize];
    reader.read_exact(&mut header)?;
    Ok(Some(String::from_utf8_lossy(&header).into_owned()))
}

/// A type of objects is an `O`, with or without an order of bytes before it.
fn is_of_objects(header: &str) -> bool {
    let is_quote = |char: char| matches!(char, '\'' | '"');
    let mut texts = header.split(is_quote);
    texts.any(|text| {
        let text = text.trim_start_matches(['|', '<', '>', '=']);
        text.strip_prefix('O').is_some_and(|rest| rest.bytes().all(|byte| byte.is_ascii_digit()))
    }) || header.contains("\\")
}
