//! What the files of a revision would do to whoever opens them: structure, pickles, code. Not a virus scanner, and not a judgement of
//! weights: it reads, it never loads, and what it can't follow to the end it does not call clean.
//!
//! What a file is, its first bytes tell ([`kind`]); its name only what people expect. Pickles are walked, not run ([`pickle`]), also
//! inside archives ([`archive`]). Code that clients may run is pointed at ([`code`]).
//!
//! Invariant: whatever the bytes, a scan ends, never panics, and holds a bounded part of them in memory.

mod archive;
mod code;
mod imports;
mod kind;
mod opcodes;
mod pickle;

use std::{
    fmt,
    io::{self, Read, Seek, SeekFrom},
    ops::ControlFlow,
    path::Path,
};

use cairn_protocol::{
    gguf,
    manifest::ManifestFile,
    name::FilePath,
    safetensors::{self, HeaderError},
};

pub use kind::Kind;

use crate::{
    Registry,
    blobs::BlobError,
    folder::{self, FolderError},
};

/// What found it out, as attestations name it.
pub const SCANNER: &str = "cairn-scan";
/// Raised when the same bytes may be judged otherwise.
pub const SCANNER_VERSION: &str = "1";

/// Findings of one file that are told; a count says what was left out.
const FINDINGS_MAX: usize = 64;
/// Characters of a finding; what it quotes comes from the file.
const FINDING_CHARS_MAX: usize = 300;
/// A file's beginning, from which its kind is told.
const HEAD_BYTES: u64 = 4096;
/// A text file that is read for code.
const TEXT_BYTES_MAX: u64 = 16 << 20;
/// First read of a header.
const HEADER_FIRST_READ: u64 = 256 << 10;

/// How a file, or all of them, is judged. The greater counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Verdict {
    /// Nothing that runs.
    #[default]
    Clean,
    /// Code that clients may run, to be looked at by a person.
    Code,
    /// What may run something by being opened, is not what it says, or can't be followed to its end.
    Unsafe,
}

impl Verdict {
    /// Its word: "clean", "code", "unsafe".
    pub fn name(self) -> &'static str {
        match self {
            Self::Clean => "clean",
            Self::Code => "code",
            Self::Unsafe => "unsafe",
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// One thing that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// How much it weighs.
    pub verdict: Verdict,
    /// What it is, on one line.
    pub what: String,
}

/// What was found in one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileFindings {
    /// The file.
    pub path: String,
    /// What its content is.
    pub kind: Kind,
    /// In order of the file, at most 64.
    pub findings: Vec<Finding>,
    /// How many more there were.
    pub left_out: u64,
    verdict: Verdict,
}

impl FileFindings {
    fn new(path: &str, kind: Kind) -> Self {
        Self { path: path.to_owned(), kind, findings: Vec::new(), left_out: 0, verdict: Verdict::Clean }
    }

    /// The gravest of the findings, also of those that are left out.
    pub fn verdict(&self) -> Verdict {
        self.verdict
    }

    fn found(&mut self, verdict: Verdict, what: impl AsRef<str>) {
        self.verdict = self.verdict.max(verdict);
        let what = printable(what.as_ref());
        if self.findings.iter().any(|finding| finding.what == what) {
            return;
        }
        if self.findings.len() == FINDINGS_MAX {
            self.left_out += 1;
            // What weighs more is not hidden behind what weighs less.
            if let Some(lesser) = self.findings.iter_mut().find(|finding| finding.verdict < verdict) {
                *lesser = Finding { verdict, what };
            }
        } else {
            self.findings.push(Finding { verdict, what });
        }
    }
}

/// Text from a file, so that it can be shown on a terminal.
fn printable(text: &str) -> String {
    let shown = text.chars().take(FINDING_CHARS_MAX);
    shown.map(|char| if char.is_control() || is_direction(char) { '\u{fffd}' } else { char }).collect()
}

/// Marks that reorder what a person reads.
fn is_direction(char: char) -> bool {
    matches!(char, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// What was found in all files.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ScanReport {
    /// Every file, in order of path.
    pub files: Vec<FileFindings>,
}

impl ScanReport {
    /// The gravest of all.
    pub fn verdict(&self) -> Verdict {
        self.files.iter().map(FileFindings::verdict).max().unwrap_or_default()
    }

    /// Files that are judged so.
    pub fn count(&self, verdict: Verdict) -> usize {
        self.files.iter().filter(|file| file.verdict() == verdict).count()
    }

    /// One line for people: how many files are what, and the gravest finding.
    pub fn summary(&self) -> String {
        let counts = format!(
            "{} files: {} clean, {} with code, {} unsafe",
            self.files.len(),
            self.count(Verdict::Clean),
            self.count(Verdict::Code),
            self.count(Verdict::Unsafe)
        );
        match self.gravest() {
            Some((path, finding)) if finding.verdict > Verdict::Clean => format!("{counts}; {path}: {}", finding.what),
            _ => counts,
        }
    }

    /// The first finding of those that weigh most.
    pub fn gravest(&self) -> Option<(&str, &Finding)> {
        let all = self.files.iter().flat_map(|file| file.findings.iter().map(|f| (file.path.as_str(), f)));
        // Of equals, the first.
        all.rev().max_by_key(|(_, finding)| finding.verdict)
    }
}

/// Why a scan did not come to an end.
#[derive(Debug, thiserror::Error)]
pub enum ScanError {
    /// The files could not be listed.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// A file could not be read.
    #[error("{path}: {error}")]
    Read {
        /// The file.
        path: String,
        /// What the system said.
        error: io::Error,
    },
    /// A blob could not be read.
    #[error("{path}: {error}")]
    Blob {
        /// The file.
        path: FilePath,
        /// Why.
        error: BlobError,
    },
}

/// Scans a file or folder as it would be published. `scanned` hears of each file and may stop. Blocks.
pub fn scan_path(
    source: &Path,
    mut scanned: impl FnMut(&FileFindings) -> ControlFlow<()>,
) -> Result<ScanReport, ScanError> {
    let mut report = ScanReport::default();
    for file in folder::list(source)? {
        let failed = |error| ScanError::Read { path: file.path.to_string(), error };
        let mut reader = std::fs::File::open(&file.source).map_err(failed)?;
        let found = scan(file.path.as_str(), &mut reader).map_err(failed)?;
        let goes_on = scanned(&found);
        report.files.push(found);
        if goes_on.is_break() {
            break;
        }
    }
    Ok(report)
}

impl Registry {
    /// Scans files that the store holds whole. Dropping the future stops after the file in hand.
    pub async fn scan(&self, files: &[ManifestFile]) -> Result<ScanReport, ScanError> {
        let mut report = ScanReport::default();
        for file in files {
            report.files.push(self.scan_file(file).await?);
        }
        Ok(report)
    }

    /// Scans one file that the store holds whole.
    pub async fn scan_file(&self, file: &ManifestFile) -> Result<FileFindings, ScanError> {
        let failed = |error| ScanError::Blob { path: file.path.clone(), error };
        // Kept from a collection while it is read.
        let _pin = self.blobs().temp_pin(file.blake3).await;
        let path = self.blobs().path(file.blake3).await;
        let bytes = match &path {
            Some(_) => None,
            None => Some(self.blobs().read(file.blake3, 0..file.size).await.map_err(failed)?),
        };
        let name = file.path.to_string();
        let scanned = tokio::task::spawn_blocking(move || match (path, bytes) {
            (Some(path), _) => scan(&name, &mut std::fs::File::open(path)?),
            (None, bytes) => scan(&name, &mut io::Cursor::new(bytes.unwrap_or_default())),
        });
        scanned.await.map_err(io::Error::other).and_then(|found| found).map_err(|error| failed(BlobError::Io(error)))
    }
}

/// Scans one file, whose name is a path in a repo. Blocks. Only failures of the reader are errors.
pub fn scan(path: &str, reader: &mut (impl Read + Seek)) -> io::Result<FileFindings> {
    let size = reader.seek(SeekFrom::End(0))?;
    let head = read_head(reader, HEAD_BYTES.min(size))?;
    let name = path.rsplit('/').next().unwrap_or(path).to_lowercase();
    let kind = kind::of(&name, &head);
    let mut found = FileFindings::new(path, kind);
    kind::compare(&name, kind, &mut found);
    reader.seek(SeekFrom::Start(0))?;
    match kind {
        Kind::Safetensors | Kind::Gguf => header(kind, reader, size, &mut found)?,
        Kind::Pickle => pickle::file(reader, &name, &mut found)?,
        Kind::Zip => archive::zip(reader, &name, &mut found)?,
        Kind::Numpy => archive::numpy(reader, &mut found)?,
        Kind::Hdf5 => code::keras(reader, &mut found)?,
        Kind::Unknown => pickle::perhaps(reader, &name, &mut found)?,
        Kind::Text | Kind::Json | Kind::Jinja | Kind::Python | Kind::Script | Kind::Notebook => {
            text(kind, &name, reader, size, &mut found)?;
        }
        Kind::Tar | Kind::Compressed | Kind::Onnx | Kind::Executable | Kind::Media => {}
    }
    Ok(found)
}

fn read_head(reader: &mut (impl Read + Seek), bytes: u64) -> io::Result<Vec<u8>> {
    reader.seek(SeekFrom::Start(0))?;
    let mut head = Vec::new();
    reader.take(bytes).read_to_end(&mut head)?;
    Ok(head)
}

fn text(
    kind: Kind,
    name: &str,
    reader: &mut (impl Read + Seek),
    size: u64,
    found: &mut FileFindings,
) -> io::Result<()> {
    let bytes = read_head(reader, size.min(TEXT_BYTES_MAX))?;
    code::text(kind, name, &bytes, found);
    if kind == Kind::Text {
        // Pickles of the first protocols are lines of text.
        reader.seek(SeekFrom::Start(0))?;
        pickle::perhaps(reader, name, found)?;
    }
    Ok(())
}

/// Reads the header as publishing does.
fn header(kind: Kind, reader: &mut impl Read, size: u64, found: &mut FileFindings) -> io::Result<()> {
    let (mut bytes, mut wanted) = (Vec::new(), HEADER_FIRST_READ.min(size));
    loop {
        let more = wanted.min(size).saturating_sub(bytes.len() as u64);
        let read = reader.by_ref().take(more).read_to_end(&mut bytes)? as u64;
        let parsed = match kind {
            Kind::Gguf => gguf::parse_header(&bytes, size).map(Some),
            _ => safetensors::parse_header(&bytes, size).map(|_| None),
        };
        match parsed {
            Err(HeaderError::NeedMore(needed)) if read == more && needed > bytes.len() as u64 => wanted = needed,
            Err(error) => {
                found.found(Verdict::Unsafe, format!("not a whole {} file: {error}", kind.name()));
                return Ok(());
            }
            Ok(header) => {
                header.iter().for_each(|header| code::gguf(header, found));
                return Ok(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_weighs_more_is_told_though_there_is_much_that_weighs_less() {
        let mut found = FileFindings::new("a", Kind::Unknown);
        (0..200).for_each(|n| found.found(Verdict::Code, format!("code {n}")));
        found.found(Verdict::Unsafe, "the worst\u{202e}\n");
        assert_eq!((found.findings.len(), found.left_out), (64, 137));
        assert_eq!(found.verdict(), Verdict::Unsafe);
        assert!(found.findings.iter().any(|finding| finding.what == "the worst\u{fffd}\u{fffd}"));
        let report = ScanReport { files: vec![found] };
        assert!(report.summary().ends_with("a: the worst\u{fffd}\u{fffd}"), "{}", report.summary());
    }
}
