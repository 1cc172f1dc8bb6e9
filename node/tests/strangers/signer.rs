//! A publisher that signs whatever a test wants signed. Not what a publisher's own tools would let through.

use cairn_protocol::{
    BlobHash, Head, Keypair, Profile, RealmId, Record, RecordId, RefName, RepoKind, Revision, record_pb,
};
use cairn_testnet::Testnet;

/// A publisher that signs whatever a test wants signed.
pub struct Signer {
    pub key: Keypair,
    pub realm: RealmId,
}

impl Signer {
    pub fn new(seed: u8, net: &Testnet) -> Signer {
        Signer { key: Keypair::from_seed([seed; 32]), realm: net.realm().parse().unwrap() }
    }

    pub fn repo(&self, name: &str) -> String {
        format!("{}/{name}", self.key.public())
    }

    /// The profile that begins this epoch, in which the same key goes on signing.
    pub fn profile_of(&self, handle: &str, epoch: u64) -> Record {
        let profile = Profile {
            handle: handle.parse().unwrap(),
            display_name: String::new(),
            epoch,
            recovery_key: None,
            previous: None,
            created_ms: 0,
            publisher: None,
            number: 0,
            signing_key: None,
            members: Vec::new(),
        };
        profile.sign(self.realm, &self.key).unwrap()
    }

    pub fn revision(&self, name: &str, manifest: &[u8]) -> Record {
        let revision = Revision {
            revision: BlobHash::of(manifest).into(),
            manifest_bytes: manifest.len() as u64,
            kind: RepoKind::Model,
            name: name.parse().unwrap(),
            parents: vec![],
            files: 1,
            bytes: 1,
            message: String::new(),
            created_ms: 0,
            architecture: String::new(),
            parameters: 0,
            license: String::new(),
            quantisation: String::new(),
            tags: vec![],
            card: Default::default(),
            publisher: None,
            origins: Vec::new(),
        };
        revision.sign(self.realm, &self.key).unwrap()
    }

    pub fn head(&self, name: &str, place: (u64, u64), previous: Option<RecordId>, manifest: &[u8]) -> Record {
        let head = Head {
            kind: RepoKind::Model,
            name: name.parse().unwrap(),
            ref_name: RefName::main(),
            epoch: place.0,
            number: place.1,
            revision: BlobHash::of(manifest).into(),
            previous,
            created_ms: 0,
            tag: false,
            publisher: None,
        };
        head.sign(self.realm, &self.key).unwrap()
    }
}

/// As they travel.
pub fn envelopes(records: &[&Record]) -> Vec<record_pb::Envelope> {
    records.iter().map(|record| record.envelope().clone()).collect()
}
