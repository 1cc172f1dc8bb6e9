//! A stage's weights as a file, in the form in which the engine holds them: a second load reads instead of packing.
//!
//! ```text
//! magic, fingerprint, number of lines, pieces' BLAKE3 digests, zeros to a page; the lines
//! ```
//!
//! The fingerprint is of everything that decides what the lines mean: the layout's version and, tensor by tensor, what it is,
//! how it is stored and how it is held. Where files lie and which go is their keeper's ([`Saves`]). Invariant: lines that are
//! returned are those that were written, digest by digest; anything else is as if there were no file.

use crate::{
    arch::{StagePart, Wanted},
    cpu::lines::{LINE_BYTES, Line, Store},
};
use cairn_protocol::manifest::Model;
use std::{
    fs::File,
    io::{self, Write},
    os::unix::fs::FileExt,
    thread,
};

/// Changes whenever a packed layout, or what a stored type is held as, changes its meaning under its name.
const LAYOUT: u32 = 1;
const MAGIC: &[u8; 16] = b"cairn weights 1\n";
const PAGE: usize = 4096;
/// Lines that have one digest, and are read at once: 8 MiB.
const PIECE_LINES: usize = (8 << 20) / LINE_BYTES;
const DIGEST_BYTES: usize = 32;
const HEADER_BYTES: usize = 16 + DIGEST_BYTES + 8;

/// Keeps files of weights. The name under which a file is found says the revision and the part.
pub trait Saves: Send {
    /// The file, if one is kept.
    fn find(&mut self) -> Option<File>;
    /// Keeps a file of `bytes`, which `write` fills; nothing is kept when it fails.
    fn keep(&mut self, bytes: u64, write: &mut dyn FnMut(&mut File) -> io::Result<()>);
    /// Removes the file: it is not what it should be.
    fn forget(&mut self);
}

/// What a file's lines mean.
pub(crate) fn fingerprint(model: &Model, part: &StagePart, wanted: &[Wanted]) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&LAYOUT.to_le_bytes());
    let rotated = (model.rope_half_split, model.head_width, model.variations.rotary_width);
    hasher.update(format!("{part:?} {} {rotated:?}", model.architecture).as_bytes());
    for Wanted { role, entry } in wanted {
        let held = crate::weights::held(entry.dtype);
        hasher.update(format!("\n{role:?} {} {:?} {held:?} {}", entry.dtype, entry.shape, entry.offset).as_bytes());
    }
    hasher.finalize()
}

/// The weights of a file, if it holds `lines` lines of that meaning. `None` also where memory is short or a digest differs.
pub(crate) fn read(file: &File, fingerprint: &blake3::Hash, lines: usize) -> Option<Store> {
    let pieces = lines.div_ceil(PIECE_LINES);
    let mut header = vec![0; HEADER_BYTES + pieces * DIGEST_BYTES];
    file.read_exact_at(&mut header, 0).ok()?;
    if header[..HEADER_BYTES] != opening(fingerprint, lines) {
        return None;
    }
    let digests = header[HEADER_BYTES..].as_chunks::<DIGEST_BYTES>().0;
    let mut store = Store::with_room(lines)?;
    store.grow(lines);
    let begin = header.len().next_multiple_of(PAGE) as u64;
    let is_whole = each_piece(store.slice_mut(0, lines), |index, piece| {
        let at = begin + (index * PIECE_LINES * LINE_BYTES) as u64;
        let bytes = Line::bytes_mut(piece);
        file.read_exact_at(bytes, at).is_ok() && blake3::hash(bytes) == digests[index]
    });
    store.rewind();
    is_whole.then_some(store)
}

/// Writes weights to a file, durably.
pub(crate) fn write(store: &Store, fingerprint: &blake3::Hash, file: &mut File) -> io::Result<()> {
    let lines = store.slice(0, store.lines());
    let mut header = opening(fingerprint, lines.len());
    lines.chunks(PIECE_LINES).for_each(|piece| header.extend(blake3::hash(Line::bytes(piece)).as_bytes()));
    header.resize(header.len().next_multiple_of(PAGE), 0);
    file.write_all(&header)?;
    file.write_all(Line::bytes(lines))?;
    file.sync_all()
}

/// Bytes of a file of `lines` lines.
pub(crate) fn bytes(lines: usize) -> u64 {
    let header = HEADER_BYTES + lines.div_ceil(PIECE_LINES) * DIGEST_BYTES;
    (header.next_multiple_of(PAGE) + lines * LINE_BYTES) as u64
}

fn opening(fingerprint: &blake3::Hash, lines: usize) -> Vec<u8> {
    [&MAGIC[..], fingerprint.as_bytes(), &(lines as u64).to_le_bytes()].concat()
}

/// Does something with every piece, on all cores; true when all of it succeeded.
fn each_piece(lines: &mut [Line], work: impl Fn(usize, &mut [Line]) -> bool + Sync) -> bool {
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let mut shares: Vec<Vec<(usize, &mut [Line])>> = (0..threads).map(|_| Vec::new()).collect();
    for (index, piece) in lines.chunks_mut(PIECE_LINES).enumerate() {
        shares[index % threads].push((index, piece));
    }
    let work = &work;
    thread::scope(|scope| {
        let all = |share: Vec<(usize, &mut [Line])>| share.into_iter().all(|(index, piece)| work(index, piece));
        let workers: Vec<_> = shares.into_iter().map(|share| scope.spawn(move || all(share))).collect();
        workers.into_iter().all(|worker| worker.join().unwrap_or(false))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        tiny::{self, Tiny},
        weights::{self, SourceError, TensorSource},
    };
    use cairn_protocol::{dtype::Dtype, manifest::TensorEntry};
    use std::{fs, path::PathBuf};

    /// A model's tensors, and a file of its weights. Counts the matrices that are read.
    struct Source<'a> {
        tiny: &'a Tiny,
        path: PathBuf,
        matrices: usize,
    }

    impl TensorSource for Source<'_> {
        fn tensor(&mut self, entry: &TensorEntry) -> Result<Vec<u8>, SourceError> {
            self.matrices += usize::from(entry.shape.len() > 1);
            self.tiny.source().tensor(entry)
        }

        fn saves(&mut self) -> Option<&mut dyn Saves> {
            Some(self)
        }
    }

    impl Saves for Source<'_> {
        fn find(&mut self) -> Option<File> {
            File::open(&self.path).ok()
        }

        fn keep(&mut self, bytes: u64, write: &mut dyn FnMut(&mut File) -> io::Result<()>) {
            write(&mut File::create(&self.path).expect("created")).expect("written");
            assert_eq!(fs::metadata(&self.path).expect("there").len(), bytes);
        }

        fn forget(&mut self) {
            fs::remove_file(&self.path).expect("it was there");
        }
    }

    #[test]
    fn a_second_load_reads_no_matrix_and_holds_the_same_weights() {
        let dir = tempfile::tempdir().expect("folder");
        let types = [Dtype::Q4_1, Dtype::Q5_0, Dtype::F16, Dtype::Q8_0];
        let tiny = Tiny::new(tiny::qwen2(), 5, |role| types[format!("{role:?}").len() % types.len()]);
        let whole = StagePart::whole(tiny.model.layers);
        let mut source = Source { tiny: &tiny, path: dir.path().join("weights"), matrices: 0 };
        let mut load = |part: &StagePart| {
            let before = source.matrices;
            let loaded = weights::load(&tiny.model, &tiny.tensors, part, 16, &mut source).expect("loads");
            let (read, was_packed) = (source.matrices - before, loaded.unsaved.is_some());
            if let Some(meaning) = loaded.unsaved {
                weights::save(&loaded.model, &meaning, &mut source);
            }
            (loaded, read, was_packed)
        };
        let (first, read, was_packed) = load(&whole);
        assert!(read > 10 && was_packed);
        let (second, read, was_packed) = load(&whole);
        assert!(read == 0 && !was_packed);
        let lines = |store: &Store| Line::bytes(store.slice(0, store.lines())).to_vec();
        assert!(lines(&first.model.store) == lines(&second.model.store));
        assert_eq!(first.conversions, second.conversions);
        assert_eq!(first.model.layers[0].bias, second.model.layers[0].bias);
        let (_, read, was_packed) = load(&tiny.headless());
        assert!(read > 5 && was_packed, "a file of another part under its name is not taken");
        assert!(load(&whole).2, "nor that in turn");
    }

    fn store(lines: usize) -> Store {
        let mut store = Store::with_room(lines).expect("memory");
        store.grow(lines);
        for (i, line) in store.slice_mut(0, lines).iter_mut().enumerate() {
            line.0[i % LINE_BYTES] = i as u8;
        }
        store
    }

    #[test]
    fn what_is_read_is_what_was_written_and_anything_else_is_no_file() {
        let dir = tempfile::tempdir().expect("folder");
        let path = dir.path().join("weights");
        let (lines, meaning) = (PIECE_LINES * 2 + 3, blake3::hash(b"meaning"));
        let written = store(lines);
        write(&written, &meaning, &mut File::create(&path).expect("created")).expect("written");
        assert_eq!(fs::metadata(&path).expect("there").len(), bytes(lines));
        let file = File::open(&path).expect("opens");
        let mut back = read(&file, &meaning, lines).expect("reads");
        assert_eq!(back.grow(lines), 0, "it is placed from the beginning again");
        assert!(Line::bytes(back.slice(0, lines)) == Line::bytes(written.slice(0, lines)));
        assert!(read(&file, &blake3::hash(b"another"), lines).is_none());
        assert!(read(&file, &meaning, lines - 1).is_none() && read(&file, &meaning, lines + PIECE_LINES).is_none());

        let good = fs::read(&path).expect("reads");
        for at in [0, 20, 50, HEADER_BYTES + 40, PAGE + 1, good.len() - 1] {
            let mut bad = good.clone();
            bad[at] ^= 1;
            fs::write(&path, &bad).expect("written");
            assert!(read(&File::open(&path).expect("opens"), &meaning, lines).is_none(), "a flipped bit at {at}");
        }
        for length in [0, 10, HEADER_BYTES, PAGE, good.len() - 1] {
            fs::write(&path, &good[..length]).expect("written");
            assert!(read(&File::open(&path).expect("opens"), &meaning, lines).is_none(), "cut at {length}");
        }
    }
}
