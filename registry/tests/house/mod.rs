//! A home in a temporary folder, a publisher's key, and tiny folders to publish. Not tests.
//!
//! Invariant: a [`House`] closes its registry before its folder goes.

#![allow(dead_code)] // Each test program uses its part.

use std::{
    fs,
    path::{Path, PathBuf},
};

use cairn_protocol::{
    Keypair, RealmId, Record, RecordId, RefName, RepoId, RepoKind, RevisionId,
    record::{Head, Profile, Revision},
};
use cairn_registry::{Committed, NextHead, PrepareOptions, Prepared, PublishError, Registry};
use tempfile::TempDir;

pub const REALM: RealmId = RealmId::PUBLIC;

pub struct House {
    pub folder: TempDir,
    pub registry: Registry,
}

impl House {
    pub async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let registry = Registry::open(&folder.path().join("home"), REALM).await.unwrap();
        Self { folder, registry }
    }

    pub fn home(&self) -> PathBuf {
        self.folder.path().join("home")
    }

    pub async fn reopen(self) -> Self {
        self.registry.close().await;
        let registry = Registry::open(&self.home(), REALM).await.unwrap();
        Self { folder: self.folder, registry }
    }

    /// Closed, with this written into the catalogue's counts, and opened again.
    pub async fn with_meta(self, key: &str, count: u64) -> Self {
        self.registry.close().await;
        self.set_meta(key, &count.to_le_bytes());
        let registry = Registry::open(&self.home(), REALM).await.unwrap();
        Self { folder: self.folder, registry }
    }

    /// The registry must be closed.
    pub fn set_meta(&self, key: &str, value: &[u8]) {
        let table: redb::TableDefinition<&str, &[u8]> = redb::TableDefinition::new("meta-0");
        let database = redb::Database::open(self.home().join("catalog.redb")).unwrap();
        let transaction = database.begin_write().unwrap();
        transaction.open_table(table).unwrap().insert(key, value).unwrap();
        transaction.commit().unwrap();
    }

    /// A folder beside the home with these files.
    pub fn source(&self, name: &str, files: &[(&str, Vec<u8>)]) -> PathBuf {
        let folder = self.folder.path().join(name);
        for (path, bytes) in files {
            let path = folder.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        }
        folder
    }

    pub async fn prepare(&self, source: &Path, repo: &RepoId, created_ms: i64) -> Result<Prepared, PublishError> {
        let options = PrepareOptions { created_ms, ..PrepareOptions::default() };
        self.registry.prepare(source.to_owned(), repo.clone(), options, |_| {}).await
    }

    /// Prepares, signs and commits to `main`.
    pub async fn publish(&self, source: &Path, key: &Keypair, name: &str, created_ms: i64) -> Committed {
        let repo = repo(key, name);
        let prepared = self.prepare(source, &repo, created_ms).await.unwrap();
        let next = self.registry.next_head(&repo, &RefName::main()).await.unwrap();
        let records = sign(&prepared, key, next);
        self.registry.commit(prepared, records).await.unwrap()
    }
}

pub fn sign(prepared: &Prepared, key: &Keypair, next: NextHead) -> Vec<Record> {
    let revision = prepared.statement().sign(REALM, key).unwrap();
    let head = prepared.head(RefName::main(), next, false).sign(REALM, key).unwrap();
    vec![revision, head]
}

pub fn key(seed: u8) -> Keypair {
    Keypair::from_seed([seed; 32])
}

pub fn repo(key: &Keypair, name: &str) -> RepoId {
    RepoId { publisher: key.public(), kind: RepoKind::Model, name: name.parse().unwrap() }
}

pub fn bytes(length: usize, seed: u8) -> Vec<u8> {
    (0..length).map(|i| (i as u32).wrapping_mul(2_654_435_761).to_le_bytes()[3] ^ seed).collect()
}

/// The profile of that number in the publisher's first epoch.
pub fn profile(key: &Keypair, handle: &str, number: u64) -> Record {
    let profile = Profile {
        handle: handle.parse().unwrap(),
        display_name: String::new(),
        epoch: 0,
        recovery_key: None,
        previous: None,
        created_ms: 0,
        publisher: None,
        number,
        signing_key: None,
        members: Vec::new(),
    };
    profile.sign(REALM, key).unwrap()
}

pub fn revision(key: &Keypair, name: &str, id: u8) -> Record {
    statement(name, id).sign(REALM, key).unwrap()
}

pub fn statement(name: &str, id: u8) -> Revision {
    Revision {
        revision: RevisionId::from([id; 32]),
        manifest_bytes: 1,
        kind: RepoKind::Model,
        name: name.parse().unwrap(),
        parents: Vec::new(),
        files: 1,
        bytes: 1,
        message: String::new(),
        created_ms: 0,
        architecture: String::new(),
        parameters: 0,
        license: String::new(),
        quantisation: String::new(),
        tags: Vec::new(),
        card: Default::default(),
        publisher: None,
        origins: Vec::new(),
    }
}

pub fn head(name: &str, number: u64, id: u8, previous: Option<RecordId>) -> Head {
    Head {
        kind: RepoKind::Model,
        name: name.parse().unwrap(),
        ref_name: RefName::main(),
        epoch: 0,
        number,
        revision: RevisionId::from([id; 32]),
        previous,
        created_ms: 0,
        tag: false,
        publisher: None,
    }
}

/// A safetensors file with these F32 tensors.
pub fn safetensors(tensors: &[(&str, &[u64])]) -> Vec<u8> {
    let (mut entries, mut data) = (Vec::new(), 0);
    for (name, shape) in tensors {
        let length = shape.iter().product::<u64>() * 4;
        entries
            .push(format!(r#""{name}":{{"dtype":"F32","shape":{shape:?},"data_offsets":[{data},{}]}}"#, data + length));
        data += length;
    }
    let header = format!("{{{}}}", entries.join(","));
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &bytes(data as usize, 9)].concat()
}
