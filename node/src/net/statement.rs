//! What this node says of itself: the [`Statement`] that the rest of the node keeps up to date, and its signed form,
//! the advert.
//!
//! Invariant: (incarnation, sequence) only ever grows, also over restarts: the incarnation is raised on disk, durably,
//! before the first advert is signed. An advert is never larger than the protocol allows; the list of holdings gives
//! way first.

use std::{
    fs,
    io::{self, Write},
    net::SocketAddr,
    path::{Path, PathBuf},
};

use cairn_protocol::{
    advert::{Advert, AdvertError, Capacity, Grants, Load, SignedAdvert},
    id::{RealmId, RevisionId},
    limits::{ADVERT_ADDRESSES_MAX, ADVERT_HOLDS_MAX, ADVERT_TASKS_MAX, ADVERT_WARM_MAX},
    record::Keypair,
};

use super::{
    NetError,
    bounds::{ADVERT_INTERVAL_MS, ADVERT_PAUSE_MS, ADVERT_TTL_MS},
};

/// The changing part of an advert.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Statement {
    /// What this machine can do.
    pub capacity: Capacity,
    /// Who may use it for what.
    pub grants: Grants,
    /// How busy it is.
    pub load: Load,
    /// Revisions kept whole, newest first.
    pub holds: Vec<RevisionId>,
    /// Tasks that it computes.
    pub tasks: Vec<String>,
    /// Revisions whose models are loaded for a task, the last used first.
    pub warm: Vec<RevisionId>,
    /// Whether it keeps copies of others' repos by policy.
    pub mirrors: bool,
    /// Where the byte stack (iroh) listens.
    pub data_addresses: Vec<SocketAddr>,
    /// Relays of the byte stack.
    pub relay_urls: Vec<String>,
}

/// Signs adverts, in order.
pub(super) struct Advertiser {
    identity: Keypair,
    realm: RealmId,
    agent: String,
    incarnation: u64,
    sequence: u64,
    is_changed: bool,
    is_told: bool,
    told_at_ms: Option<u64>,
    current: Option<SignedAdvert>,
}

impl Advertiser {
    /// The advertiser of one run of a node.
    pub(super) fn new(identity: Keypair, realm: RealmId, agent: String, incarnation: u64) -> Advertiser {
        Advertiser {
            identity,
            realm,
            agent,
            incarnation,
            sequence: 0,
            is_changed: true,
            is_told: false,
            told_at_ms: None,
            current: None,
        }
    }

    /// The realm that its adverts name.
    pub(super) fn realm(&self) -> RealmId {
        self.realm
    }

    /// Something in it changed.
    pub(super) fn change(&mut self) {
        self.is_changed = true;
    }

    /// Somebody new listens: what was told before is told again, soon.
    pub(super) fn tell_again(&mut self) {
        self.is_told = false;
    }

    /// Whether it is time to gossip: on a change, though not too soon after the last, and before the last runs out.
    pub(super) fn is_due(&self, now_ms: u64) -> bool {
        let age_ms = self.told_at_ms.map_or(u64::MAX, |at| now_ms.saturating_sub(at));
        let is_news = self.is_changed || !self.is_told;
        age_ms >= ADVERT_INTERVAL_MS || is_news && age_ms >= ADVERT_PAUSE_MS
    }

    /// The newest one; signed anew if something changed since.
    pub(super) fn current(&mut self, statement: &Statement, talk: Vec<String>) -> Option<&SignedAdvert> {
        if self.is_changed || self.current.is_none() {
            self.sign(statement, talk);
        }
        self.current.as_ref()
    }

    /// The next one, to be gossiped now.
    pub(super) fn tell(&mut self, now_ms: u64, statement: &Statement, talk: Vec<String>) -> Option<&SignedAdvert> {
        self.sign(statement, talk);
        self.is_told = true;
        self.told_at_ms = Some(now_ms);
        self.current.as_ref()
    }

    fn sign(&mut self, statement: &Statement, talk: Vec<String>) {
        self.sequence += 1;
        self.is_changed = false;
        self.is_told = false;
        match self.signed(self.compose(statement, talk)) {
            Ok(signed) => self.current = Some(signed),
            Err(error) => tracing::warn!(%error, "this node's advert can't be signed"),
        }
    }

    /// What is too large is told without its last holdings, then without its last GPUs.
    fn signed(&self, mut advert: Advert) -> Result<SignedAdvert, AdvertError> {
        loop {
            match SignedAdvert::sign(&advert, &self.identity) {
                Err(AdvertError::TooLarge(_)) if !advert.holds.is_empty() => {
                    advert.holds.truncate(advert.holds.len() / 2);
                }
                Err(AdvertError::TooLarge(_)) if !advert.capacity.gpus.is_empty() => {
                    advert.capacity.gpus.truncate(advert.capacity.gpus.len() / 2);
                }
                done => return done,
            }
        }
    }

    fn compose(&self, statement: &Statement, mut talk: Vec<String>) -> Advert {
        talk.truncate(ADVERT_ADDRESSES_MAX);
        Advert {
            realm: self.realm,
            node: self.identity.node_id(),
            incarnation: self.incarnation,
            sequence: self.sequence,
            ttl_ms: ADVERT_TTL_MS,
            talk_addresses: talk,
            data_addresses: statement.data_addresses.iter().copied().take(ADVERT_ADDRESSES_MAX).collect(),
            relay_urls: statement.relay_urls.clone(),
            capacity: statement.capacity.clone(),
            grants: statement.grants,
            load: statement.load,
            agent: self.agent.clone(),
            holds: statement.holds.iter().copied().take(ADVERT_HOLDS_MAX).collect(),
            tasks: statement.tasks.iter().take(ADVERT_TASKS_MAX).cloned().collect(),
            warm: statement.warm.iter().copied().take(ADVERT_WARM_MAX).collect(),
            mirrors: statement.mirrors,
        }
    }
}

/// Raises the incarnation in the home and returns it. Blocks on the disk.
pub(super) fn next_incarnation(home: &Path) -> Result<u64, NetError> {
    let path = home.join("incarnation");
    let fail = |source: io::Error| NetError::Home { path: path.clone(), source };
    let last = match fs::read_to_string(&path) {
        Ok(text) => text.trim().parse::<u64>().map_err(|e| fail(io::Error::new(io::ErrorKind::InvalidData, e)))?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
        Err(error) => return Err(fail(error)),
    };
    let next = last.saturating_add(1);
    write_durably(&path, next.to_string().as_bytes()).map_err(fail)?;
    Ok(next)
}

/// Writes beside, syncs, renames, syncs the folder: the file is the old one or the new one, never a part.
pub(super) fn write_durably(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let folder = path.parent().map(Path::to_path_buf).unwrap_or_else(|| PathBuf::from("."));
    let mut file = tempfile::NamedTempFile::new_in(&folder)?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error)?;
    fs::File::open(&folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use cairn_protocol::advert::Gpu;

    use super::*;

    #[test]
    fn the_incarnation_grows_with_every_start() {
        let home = tempfile::tempdir().expect("a folder");
        assert_eq!(next_incarnation(home.path()).expect("written"), 1);
        assert_eq!(next_incarnation(home.path()).expect("written"), 2);
    }

    #[test]
    fn a_spoilt_incarnation_file_is_an_error_and_not_a_restart_from_one() {
        let home = tempfile::tempdir().expect("a folder");
        fs::write(home.path().join("incarnation"), "many").expect("written");
        assert!(matches!(next_incarnation(home.path()), Err(NetError::Home { .. })));
    }

    #[test]
    fn a_change_is_told_soon_but_not_at_once_and_silence_ends_after_the_interval() {
        let mut own = Advertiser::new(Keypair::from_seed([1; 32]), RealmId::PUBLIC, "test".into(), 1);
        assert!(own.is_due(0));
        assert!(own.tell(0, &Statement::default(), vec![]).is_some());
        assert!(!own.is_due(ADVERT_PAUSE_MS));
        own.change();
        assert!(!own.is_due(ADVERT_PAUSE_MS - 1));
        assert!(own.is_due(ADVERT_PAUSE_MS));
        own.tell(ADVERT_PAUSE_MS, &Statement::default(), vec![]);
        assert!(!own.is_due(ADVERT_PAUSE_MS + ADVERT_INTERVAL_MS - 1));
        assert!(own.is_due(ADVERT_PAUSE_MS + ADVERT_INTERVAL_MS));
    }

    #[test]
    fn an_advert_that_is_too_large_is_told_with_fewer_holdings() {
        let gpu = Gpu { name: "g".repeat(100), memory_bytes: 1, driver: "d".repeat(100) };
        let statement = Statement {
            holds: (0..32).map(|n| RevisionId::from([n; 32])).collect(),
            capacity: Capacity { gpus: vec![gpu; 16], ..Capacity::default() },
            ..Statement::default()
        };
        let mut own = Advertiser::new(Keypair::from_seed([1; 32]), RealmId::PUBLIC, "test".into(), 1);
        let advert = own.tell(0, &statement, vec![]).expect("signed").verify().expect("valid");
        assert_eq!(advert.capacity.gpus.len(), 16);
        assert!((1..32).contains(&advert.holds.len()), "{}", advert.holds.len());
    }

    #[test]
    fn what_only_a_hello_told_is_still_gossiped() {
        let mut own = Advertiser::new(Keypair::from_seed([1; 32]), RealmId::PUBLIC, "test".into(), 1);
        own.tell(0, &Statement::default(), vec![]);
        own.change();
        assert!(own.current(&Statement::default(), vec![]).is_some());
        assert!(own.is_due(ADVERT_PAUSE_MS));
    }
}
