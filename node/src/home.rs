//! The node's folder: its lock, its keys, its token, and the note that says it is ready.
//!
//! Not the catalogue and not the blobs, which the registry keeps in the same folder.
//!
//! Invariants: while a [`Home`] lives, no other process has one on the same folder; a secret is never readable by other
//! accounts, not even for a moment, and is written whole or not at all; `ready.json` exists only while doors are open.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cairn_protocol::key::Keypair;
use cairn_protocol::name::Handle;
use cairn_protocol::refusal::{Reason, Refusal};
use serde::{Deserialize, Serialize};
use tempfile::TempDir;

/// A secret file is 64 hex digits and a newline; anything longer is not one.
/// Where files under way lie.
const WORK: &str = "work";
const SECRET_BYTES_MAX: u64 = 256;

/// Locked folder of one running node. Clones share the lock; the last one to go releases it.
#[derive(Clone, Debug)]
pub struct Home {
    root: PathBuf,
    _lock: Arc<File>,
}

/// Why a home can't be used.
#[derive(Debug, thiserror::Error)]
pub enum HomeError {
    /// Another daemon is running on it.
    #[error("{path} is used by the daemon with pid {pid}")]
    Taken {
        /// The folder.
        path: PathBuf,
        /// Who holds it, 0 if it did not say.
        pid: u32,
    },
    /// A file in it could not be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A secret that is not one.
    #[error("{path} holds no key: {why}")]
    BadSecret {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: &'static str,
    },
}

impl From<HomeError> for Refusal {
    fn from(error: HomeError) -> Refusal {
        match error {
            HomeError::Taken { path, pid } => Refusal::new(
                Reason::Conflict,
                path.display().to_string(),
                format!("a daemon is already running on this home, pid {pid}"),
            )
            .try_this(format!("kill {pid}, or another --home")),
            HomeError::Io { path, source } => {
                let is_full = source.kind() == io::ErrorKind::StorageFull;
                let reason = if is_full { Reason::DiskFull } else { Reason::Internal };
                Refusal::new(reason, path.display().to_string(), source.to_string())
                    .try_this("check that the folder is yours and the disk not full".to_string())
            }
            HomeError::BadSecret { path, why } => {
                Refusal::new(Reason::Corrupt, path.display().to_string(), format!("holds no key: {why}"))
                    .try_this("restore the file from a backup".to_string())
            }
        }
    }
}

/// What `ready.json` says: where the open doors are.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Ready {
    /// Always `ready`.
    pub event: String,
    /// The daemon's process.
    pub pid: u32,
    /// Its node id, hex.
    pub node_id: String,
    /// The same key as libp2p writes it.
    pub peer_id: String,
    /// Whole multiaddresses ending in `/p2p/<peer_id>`.
    pub listen: Vec<String>,
    /// `IP:PORT` of the iroh endpoint.
    pub data: String,
    /// `IP:PORT` of the gRPC door.
    pub api: String,
    /// `IP:PORT` of the HTTP door, if it is open.
    pub http: Option<String>,
}

impl Home {
    /// Creates the folder if need be, takes its lock, and clears what a killed daemon left.
    pub fn open(root: &Path) -> Result<Home, HomeError> {
        create_private_folder(root)?;
        let lock = take_lock(root)?;
        let home = Home { root: root.to_path_buf(), _lock: Arc::new(lock) };
        home.remove_ready()?;
        create_private_folder(&home.keys())?;
        home.clear_work()?;
        Ok(home)
    }

    /// The folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// A path inside the folder.
    pub fn join(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// The node's own key, made on first use.
    pub fn identity(&self) -> Result<Keypair, HomeError> {
        let seed = read_or_create_secret(&self.join("node.key"))?;
        Ok(Keypair::from_seed(seed))
    }

    /// The token that calls need which take paths, sign or administer; made on first use.
    pub fn api_token(&self) -> Result<String, HomeError> {
        read_or_create_secret(&self.join("api.token")).map(hex::encode)
    }

    /// The key behind one of our handles, if we have it.
    pub fn publisher(&self, handle: &Handle) -> Result<Option<Keypair>, HomeError> {
        read_secret(&self.key_path(handle)).map(|seed| seed.map(Keypair::from_seed))
    }

    /// Stores a handle's new key, durably; if there is one already, that one stays and is returned.
    pub fn keep_publisher(&self, handle: &Handle, key: &Keypair) -> Result<Keypair, HomeError> {
        read_or_keep_secret(&self.key_path(handle), &key.seed()).map(Keypair::from_seed)
    }

    /// Every handle whose key is here, with its key, in order of handle.
    pub fn publishers(&self) -> Result<Vec<(Handle, Keypair)>, HomeError> {
        let folder = self.keys();
        let entries = fs::read_dir(&folder).map_err(io_at(&folder))?;
        let mut found = Vec::new();
        for entry in entries {
            let name = entry.map_err(io_at(&folder))?.file_name();
            let handle = name.to_str().and_then(|name| name.strip_suffix(".key")).and_then(|stem| stem.parse().ok());
            if let Some(handle) = handle
                && let Some(key) = self.publisher(&handle)?
            {
                found.push((handle, key));
            }
        }
        found.sort_by_key(|(handle, _)| handle.to_string());
        Ok(found)
    }

    /// Stores a key that is to sign for one of our handles from its next epoch on, durably.
    pub fn keep_signing_key(&self, handle: &Handle, key: &Keypair) -> Result<(), HomeError> {
        let name = format!("{}.{}.signing", handle.to_string().to_ascii_lowercase(), key.public().short());
        read_or_keep_secret(&self.keys().join(name), &key.seed()).map(drop)
    }

    /// Every key that may sign for a publisher: those of our handles, and those of later epochs.
    pub fn signing_keys(&self) -> Result<Vec<Keypair>, HomeError> {
        let mut keys: Vec<Keypair> = self.publishers()?.into_iter().map(|(_, key)| key).collect();
        let folder = self.keys();
        for entry in fs::read_dir(&folder).map_err(io_at(&folder))? {
            let path = entry.map_err(io_at(&folder))?.path();
            if path.extension().is_some_and(|extension| extension == "signing") {
                keys.extend(read_secret(&path)?.map(Keypair::from_seed));
            }
        }
        Ok(keys)
    }

    /// Says where the doors are. Written whole: a reader sees the old file, the new one, or none.
    pub fn write_ready(&self, ready: &Ready) -> Result<(), HomeError> {
        let path = self.join("ready.json");
        let draft = self.join("ready.json.draft");
        let text = serde_json::to_string(ready).expect("a struct of texts and numbers is always JSON");
        fs::write(&draft, text + "\n").map_err(io_at(&draft))?;
        fs::rename(&draft, &path).map_err(io_at(&path))
    }

    /// Takes the note down; fine if there is none.
    pub fn remove_ready(&self) -> Result<(), HomeError> {
        let path = self.join("ready.json");
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_at(&path)(error)),
            _ => Ok(()),
        }
    }

    /// A folder for files under way, gone when it is dropped.
    pub fn working(&self, prefix: &str) -> Result<TempDir, HomeError> {
        let work = self.join(WORK);
        create_private_folder(&work)?;
        tempfile::Builder::new().prefix(prefix).tempdir_in(&work).map_err(io_at(&work))
    }

    /// Removes what a killed daemon was at work on.
    fn clear_work(&self) -> Result<(), HomeError> {
        let work = self.join(WORK);
        match fs::remove_dir_all(&work) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_at(&work)(error)),
            _ => Ok(()),
        }
    }

    fn keys(&self) -> PathBuf {
        self.join("keys")
    }

    /// Handles are unique without regard to case, so their files are too.
    fn key_path(&self, handle: &Handle) -> PathBuf {
        self.keys().join(format!("{}.key", handle.to_string().to_ascii_lowercase()))
    }
}

fn io_at(path: &Path) -> impl FnOnce(io::Error) -> HomeError + use<> {
    let path = path.to_path_buf();
    move |source| HomeError::Io { path, source }
}

fn create_private_folder(path: &Path) -> Result<(), HomeError> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(io_at(path))?;
    }
    match fs::DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        Err(error) => Err(io_at(path)(error)),
        Ok(()) => Ok(()),
    }
}

/// The lock goes with the process, however it ends; the pid in the file is only for the message.
fn take_lock(root: &Path) -> Result<File, HomeError> {
    let path = root.join("lock");
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(io_at(&path))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(fs::TryLockError::WouldBlock) => {
            return Err(HomeError::Taken { path: root.to_path_buf(), pid: read_pid(&mut file) });
        }
        Err(fs::TryLockError::Error(error)) => return Err(io_at(&path)(error)),
    }
    file.set_len(0).map_err(io_at(&path))?;
    file.write_all(format!("{}\n", std::process::id()).as_bytes()).map_err(io_at(&path))?;
    Ok(file)
}

fn read_pid(file: &mut File) -> u32 {
    let mut text = String::new();
    let _ = file.take(32).read_to_string(&mut text);
    text.trim().parse().unwrap_or(0)
}

fn read_secret(path: &Path) -> Result<Option<[u8; 32]>, HomeError> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(io_at(path))?,
    };
    let mode = file.metadata().map_err(io_at(path))?.permissions().mode();
    if mode & 0o077 != 0 {
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(io_at(path))?;
        tracing::warn!(path = %path.display(), "a secret was readable by other accounts; now it is not");
    }
    let mut text = String::new();
    let bad = |why| HomeError::BadSecret { path: path.to_path_buf(), why };
    file.take(SECRET_BYTES_MAX).read_to_string(&mut text).map_err(|_| bad("it is not text"))?;
    let mut seed = [0; 32];
    hex::decode_to_slice(text.trim(), &mut seed).map_err(|_| bad("a key is 64 hex digits"))?;
    Ok(Some(seed))
}

fn read_or_create_secret(path: &Path) -> Result<[u8; 32], HomeError> {
    read_or_keep_secret(path, &rand::random())
}

/// A draft with the secret is linked to its name, which fails if the name was taken meanwhile: the first writer wins.
fn read_or_keep_secret(path: &Path, seed: &[u8; 32]) -> Result<[u8; 32], HomeError> {
    if let Some(seed) = read_secret(path)? {
        return Ok(seed);
    }
    let draft = path.with_extension(format!("draft-{:016x}", rand::random::<u64>()));
    let written = write_secret(&draft, seed).and_then(|()| fs::hard_link(&draft, path));
    let _ = fs::remove_file(&draft);
    match written {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(io_at(path)(error)),
        _ => {}
    }
    if let Some(folder) = path.parent() {
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(io_at(path))?;
    }
    read_secret(path)?.ok_or(HomeError::BadSecret { path: path.to_path_buf(), why: "it vanished while it was made" })
}

fn write_secret(path: &Path, seed: &[u8; 32]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(format!("{}\n", hex::encode(seed)).as_bytes())?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn secrets_are_made_once_and_are_private() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("home");
        let home = Home::open(&root).unwrap();
        let node = home.identity().unwrap().node_id();
        let token = home.api_token().unwrap();
        assert_eq!(home.identity().unwrap().node_id(), node);
        assert_eq!(home.api_token().unwrap(), token);
        assert_eq!(token.len(), 64);
        assert_eq!([mode(&root), mode(&root.join("node.key")), mode(&root.join("api.token"))], [0o700, 0o600, 0o600]);
        assert_eq!(mode(&root.join("keys")), 0o700);
    }

    #[test]
    fn a_home_has_one_owner_and_a_crash_frees_it() {
        let folder = tempfile::tempdir().unwrap();
        let home = Home::open(folder.path()).unwrap();
        let error = Home::open(folder.path()).unwrap_err();
        assert!(matches!(error, HomeError::Taken { pid, .. } if pid == std::process::id()), "{error}");
        fs::write(folder.path().join("ready.json"), "stale").unwrap();
        drop(home);
        let _again = Home::open(folder.path()).unwrap();
        assert!(!folder.path().join("ready.json").exists(), "a note left by a killed daemon is cleared");
    }

    #[test]
    fn a_secret_that_others_could_read_is_closed() {
        let folder = tempfile::tempdir().unwrap();
        let home = Home::open(folder.path()).unwrap();
        home.api_token().unwrap();
        let path = folder.path().join("api.token");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        home.api_token().unwrap();
        assert_eq!(mode(&path), 0o600);
    }

    #[test]
    fn a_spoilt_key_is_named_and_never_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let home = Home::open(folder.path()).unwrap();
        let path = folder.path().join("node.key");
        fs::write(&path, "not a key").unwrap();
        assert!(matches!(home.identity().unwrap_err(), HomeError::BadSecret { .. }));
        assert_eq!(fs::read_to_string(&path).unwrap(), "not a key");
    }

    #[test]
    fn publishers_are_found_by_handle_without_regard_to_case() {
        let folder = tempfile::tempdir().unwrap();
        let home = Home::open(folder.path()).unwrap();
        let acme: Handle = "Acme".parse().unwrap();
        assert!(home.publisher(&acme).unwrap().is_none());
        let key = Keypair::from_seed([1; 32]);
        let made = home.keep_publisher(&acme, &key).unwrap().public();
        assert_eq!(home.keep_publisher(&acme, &Keypair::from_seed([2; 32])).unwrap().public(), made, "the first stays");
        let lower: Handle = "acme".parse().unwrap();
        assert_eq!(home.publisher(&lower).unwrap().unwrap().public(), made);
        assert_eq!(home.publishers().unwrap().len(), 1);
    }
}
