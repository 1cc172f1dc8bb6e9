//! The digests of one file, in one pass: SHA-256 and git SHA-1, and BLAKE3 where the blob store has not computed it.
//!
//! Invariant: each digest covers exactly the bytes that were fed, in order; git's covers its header too, so the size must be
//! known before the first byte, and a file of another size has no digest.

use std::{
    sync::mpsc::{SyncSender, sync_channel},
    thread::{Builder, Scope, ScopedJoinHandle},
};

use bytes::Bytes;
use sha1::Sha1;
use sha2::{Digest as _, Sha256};

/// Pieces of 1 MiB that may wait for a slower digest.
const PIECES_MAX: usize = 4;

/// The digests that a manifest states beside BLAKE3.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sums {
    /// SHA-256 of the bytes.
    pub sha256: [u8; 32],
    /// SHA-1 of `blob <size>`, a NUL and the bytes: git's name for the file.
    pub git_sha1: [u8; 20],
}

/// Computes both digests on a thread each. `feed` is handed a sink and returns when the file has ended.
pub(crate) fn sums<E>(size: u64, feed: impl FnOnce(&mut dyn FnMut(&Bytes)) -> Result<(), E>) -> Result<Sums, E> {
    std::thread::scope(|scope| {
        let mut sha256 = Lane::start(scope, Sha256::new());
        let mut sha1 = Lane::start(scope, git_header(size));
        feed(&mut |piece| {
            sha256.update(piece);
            sha1.update(piece);
        })?;
        Ok(Sums { sha256: sha256.finish().into(), git_sha1: sha1.finish().into() })
    })
}

/// Both digests of bytes in memory.
pub fn sums_of(bytes: &[u8]) -> Sums {
    let git_sha1 = git_header(bytes.len() as u64).chain_update(bytes).finalize().into();
    Sums { sha256: Sha256::digest(bytes).into(), git_sha1 }
}

fn git_header(size: u64) -> Sha1 {
    Sha1::new_with_prefix(format!("blob {size}\0"))
}

/// One digest, on its own thread where the system gives one, else in place.
enum Lane<'scope, D> {
    Apart(SyncSender<Bytes>, ScopedJoinHandle<'scope, D>),
    InPlace(D),
}

impl<'scope, D: sha2::Digest + Clone + Send + 'scope> Lane<'scope, D> {
    fn start(scope: &'scope Scope<'scope, '_>, digest: D) -> Self {
        let (sender, receiver) = sync_channel::<Bytes>(PIECES_MAX);
        let mut own = digest.clone();
        let thread = Builder::new().name("digest".to_owned()).spawn_scoped(scope, move || {
            while let Ok(piece) = receiver.recv() {
                own.update(&piece);
            }
            own
        });
        match thread {
            Ok(thread) => Self::Apart(sender, thread),
            Err(_) => Self::InPlace(digest),
        }
    }

    fn update(&mut self, piece: &Bytes) {
        match self {
            Self::Apart(sender, _) => sender.send(piece.clone()).expect("the digest's thread ends after its sender"),
            Self::InPlace(digest) => digest.update(piece),
        }
    }

    fn finish(self) -> sha2::digest::Output<D> {
        match self {
            Self::Apart(sender, thread) => {
                drop(sender);
                thread.join().expect("a digest does not panic").finalize()
            }
            Self::InPlace(digest) => digest.finalize(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    fn hex20(sums: Sums) -> String {
        hex::encode(sums.git_sha1)
    }

    #[test]
    fn git_names_the_empty_file_and_hello_as_git_does() {
        // `git hash-object` of an empty file, and of "hello\n".
        assert_eq!(hex20(sums_of(b"")), "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391");
        assert_eq!(hex20(sums_of(b"hello\n")), "ce013625030ba8dba906f756967f9e9ca394464a");
    }

    #[test]
    fn the_threads_agree_with_the_digests_in_memory_whatever_the_pieces() {
        let data: Vec<u8> = (0..100_000u32).map(|i| (i * 7) as u8).collect();
        for piece in [1000, 4096, 99_999, 200_000] {
            let sums = sums::<Infallible>(data.len() as u64, |sink| {
                for piece in data.chunks(piece) {
                    sink(&Bytes::copy_from_slice(piece));
                }
                Ok(())
            });
            assert_eq!(sums.unwrap(), sums_of(&data));
        }
    }
}
