//! What a node says of itself. Not a peer table: who hears adverts ages them by its own clock. Invariant: an [`Advert`] from
//! [`SignedAdvert::verify`] was signed by the node it names and is within the limits.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

use prost::Message;
use serde::{Deserialize, Serialize};

use crate::id::{NodeId, RealmId, RevisionId};
use crate::key::{ADVERT_DOMAIN, Keypair, is_signed};
use crate::limits::{
    ADDRESS_BYTES_MAX, ADVERT_ADDRESSES_MAX, ADVERT_BYTES_MAX, ADVERT_GPUS_MAX, ADVERT_HOLDS_MAX, ADVERT_TASKS_MAX,
    ADVERT_TTL_MS_MAX, ADVERT_WARM_MAX, WORD_BYTES_MAX,
};
use crate::peer_pb;

/// The version of the payload.
const VERSION: u32 = 1;

/// What a node says of itself.
#[derive(Clone, Debug, PartialEq)]
pub struct Advert {
    /// The mesh it is in.
    pub realm: RealmId,
    /// Who it is.
    pub node: NodeId,
    /// Raised at every start.
    pub incarnation: u64,
    /// Raised with every advert of an incarnation.
    pub sequence: u64,
    /// How long after hearing it the advert holds.
    pub ttl_ms: u32,
    /// libp2p multiaddresses without `/p2p`.
    pub talk_addresses: Vec<String>,
    /// iroh's socket addresses.
    pub data_addresses: Vec<SocketAddr>,
    /// Relays through which it can be reached.
    pub relay_urls: Vec<String>,
    /// What it has.
    pub capacity: Capacity,
    /// What it gives to whom.
    pub grants: Grants,
    /// What it is doing.
    pub load: Load,
    /// Program and version.
    pub agent: String,
    /// The newest revisions that it keeps whole.
    pub holds: Vec<RevisionId>,
    /// Tasks that it computes.
    pub tasks: Vec<String>,
    /// Revisions whose models are loaded for a task, the last used first.
    pub warm: Vec<RevisionId>,
    /// Whether it keeps copies of others' repos by policy.
    pub mirrors: bool,
}

/// What a node has.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Capacity {
    /// The processor's name.
    pub cpu: String,
    /// Physical cores.
    pub cores: u32,
    /// Main memory.
    pub memory_bytes: u64,
    /// "scalar", "avx2", "avx512vnni", "neon".
    pub level: String,
    /// Graphics processors.
    pub gpus: Vec<Gpu>,
    /// Measured when reading memory.
    pub bandwidth_bytes_per_s: u64,
    /// Multiply-adds of the packed int8 product.
    pub macs_per_s: u64,
    /// Most memory that stages may take here.
    pub stage_memory_bytes: u64,
}

/// A graphics processor.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Gpu {
    /// Its name.
    pub name: String,
    /// Its memory.
    pub memory_bytes: u64,
    /// Its driver.
    pub driver: String,
}

/// What a node does at the moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Load {
    /// Stages that run.
    pub sessions: u32,
    /// Stages that may run.
    pub sessions_max: u32,
    /// Stage memory that is free.
    pub stage_memory_free_bytes: u64,
    /// Stages that load.
    pub loads: u32,
    /// Tasks under way.
    #[serde(default)]
    pub tasks: u32,
    /// Tasks that may be.
    #[serde(default)]
    pub tasks_max: u32,
}

/// To whom a node gives something.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Grant {
    /// To nobody.
    Nobody,
    /// To the peers that the operator listed, and those on the same host.
    #[default]
    Listed,
    /// To every member of the realm.
    Realm,
    /// To anyone.
    Anyone,
}

/// What a node gives to whom.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grants {
    /// Keeping others' bytes.
    pub store: Grant,
    /// Running stages.
    pub compute: Grant,
    /// Training.
    pub train: Grant,
}

/// Why bytes are not an advert.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AdvertError {
    /// Larger than any advert may be.
    #[error("the advert has {0} bytes, at most {ADVERT_BYTES_MAX} are accepted")]
    TooLarge(usize),
    /// Not protobuf.
    #[error("the advert is not protobuf")]
    Malformed,
    /// Another version.
    #[error("the advert's version is {0}, version {VERSION} is understood")]
    UnknownVersion(u32),
    /// A field outside of its limits.
    #[error("the advert's {0} is not valid")]
    Invalid(&'static str),
    /// Not signed by the node it names.
    #[error("the advert's signature is not its node's")]
    BadSignature,
}

/// An advert with its signature, verified or not yet.
#[derive(Clone, Debug, PartialEq)]
pub struct SignedAdvert(peer_pb::SignedAdvert);

impl SignedAdvert {
    /// Signs a node's own advert.
    pub fn sign(advert: &Advert, identity: &Keypair) -> Result<Self, AdvertError> {
        let payload = advert.to_pb().encode_to_vec();
        let signature = identity.sign(ADVERT_DOMAIN, &payload).to_vec();
        let signed = Self::from_pb(peer_pb::SignedAdvert { payload, signature })?;
        signed.verify().map(|_| signed)
    }

    /// From bytes; nothing but the size and the shape is checked.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, AdvertError> {
        match bytes.len() > ADVERT_BYTES_MAX {
            true => Err(AdvertError::TooLarge(bytes.len())),
            false => peer_pb::SignedAdvert::decode(bytes).map(Self).map_err(|_| AdvertError::Malformed),
        }
    }

    /// From inside another message; nothing but the size is checked.
    pub fn from_pb(signed: peer_pb::SignedAdvert) -> Result<Self, AdvertError> {
        match signed.encoded_len() {
            got if got > ADVERT_BYTES_MAX => Err(AdvertError::TooLarge(got)),
            _ => Ok(Self(signed)),
        }
    }

    /// To put into another message.
    pub fn to_pb(&self) -> peer_pb::SignedAdvert {
        self.0.clone()
    }

    /// To gossip.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.0.encode_to_vec()
    }

    /// What it says, if the node it names signed it.
    pub fn verify(&self) -> Result<Advert, AdvertError> {
        let pb = peer_pb::Advert::decode(&self.0.payload[..]).map_err(|_| AdvertError::Malformed)?;
        let node = NodeId::try_from(&pb.node[..]).map_err(|_| AdvertError::Invalid("node"))?;
        if !is_signed(node.as_bytes(), ADVERT_DOMAIN, &self.0.payload, &self.0.signature) {
            return Err(AdvertError::BadSignature);
        }
        Advert::from_pb(pb, node)
    }
}

impl Advert {
    /// Whether this one replaces the other of the same node: by incarnation, then sequence.
    pub fn is_newer_than(&self, other: &Self) -> bool {
        (self.incarnation, self.sequence) > (other.incarnation, other.sequence)
    }

    fn to_pb(&self) -> peer_pb::Advert {
        peer_pb::Advert {
            version: VERSION,
            realm: self.realm.to_vec(),
            node: self.node.to_vec(),
            incarnation: self.incarnation,
            sequence: self.sequence,
            ttl_ms: self.ttl_ms,
            talk_addresses: self.talk_addresses.clone(),
            data_addresses: self.data_addresses.iter().map(SocketAddr::to_string).collect(),
            relay_urls: self.relay_urls.clone(),
            capacity: Some(self.capacity.to_pb()),
            grants: Some(self.grants.to_pb()),
            load: Some(self.load.to_pb()),
            agent: self.agent.clone(),
            holds: self.holds.iter().map(RevisionId::to_vec).collect(),
            tasks: self.tasks.clone(),
            warm: self.warm.iter().map(RevisionId::to_vec).collect(),
            mirrors: self.mirrors,
        }
    }

    fn from_pb(pb: peer_pb::Advert, node: NodeId) -> Result<Self, AdvertError> {
        if pb.version != VERSION {
            return Err(AdvertError::UnknownVersion(pb.version));
        }
        if !(1..=ADVERT_TTL_MS_MAX).contains(&pb.ttl_ms) {
            return Err(AdvertError::Invalid("ttl_ms"));
        }
        if pb.holds.len() > ADVERT_HOLDS_MAX {
            return Err(AdvertError::Invalid("holds"));
        }
        if pb.tasks.len() > ADVERT_TASKS_MAX {
            return Err(AdvertError::Invalid("tasks"));
        }
        if pb.warm.len() > ADVERT_WARM_MAX {
            return Err(AdvertError::Invalid("warm"));
        }
        let socket = |text: String| text.parse().map_err(|_| AdvertError::Invalid("data_addresses"));
        let revisions = |ids: &[Vec<u8>], field| {
            let revision = |id: &Vec<u8>| RevisionId::try_from(&id[..]).map_err(|_| AdvertError::Invalid(field));
            ids.iter().map(revision).collect::<Result<_, _>>()
        };
        Ok(Self {
            realm: RealmId::try_from(&pb.realm[..]).map_err(|_| AdvertError::Invalid("realm"))?,
            node,
            incarnation: pb.incarnation,
            sequence: pb.sequence,
            ttl_ms: pb.ttl_ms,
            talk_addresses: addresses(pb.talk_addresses, "talk_addresses")?,
            data_addresses: addresses(pb.data_addresses, "data_addresses")?
                .into_iter()
                .map(socket)
                .collect::<Result<_, _>>()?,
            relay_urls: addresses(pb.relay_urls, "relay_urls")?,
            capacity: Capacity::from_pb(pb.capacity.unwrap_or_default())?,
            grants: Grants::from_pb(pb.grants.unwrap_or_default()),
            load: Load::from_pb(pb.load.unwrap_or_default()),
            agent: word(pb.agent, "agent")?,
            holds: revisions(&pb.holds, "holds")?,
            tasks: pb.tasks.into_iter().map(|task| word(task, "tasks")).collect::<Result<_, _>>()?,
            warm: revisions(&pb.warm, "warm")?,
            mirrors: pb.mirrors,
        })
    }
}

impl Capacity {
    fn to_pb(&self) -> peer_pb::Capacity {
        let gpu = |gpu: &Gpu| peer_pb::Gpu {
            name: gpu.name.clone(),
            memory_bytes: gpu.memory_bytes,
            driver: gpu.driver.clone(),
        };
        peer_pb::Capacity {
            cpu: self.cpu.clone(),
            cores: self.cores,
            memory_bytes: self.memory_bytes,
            level: self.level.clone(),
            gpus: self.gpus.iter().map(gpu).collect(),
            bandwidth_bytes_per_s: self.bandwidth_bytes_per_s,
            macs_per_s: self.macs_per_s,
            stage_memory_bytes: self.stage_memory_bytes,
        }
    }

    fn from_pb(pb: peer_pb::Capacity) -> Result<Self, AdvertError> {
        if pb.gpus.len() > ADVERT_GPUS_MAX {
            return Err(AdvertError::Invalid("gpus"));
        }
        let gpu = |gpu: peer_pb::Gpu| {
            let (name, driver) = (word(gpu.name, "gpus")?, word(gpu.driver, "gpus")?);
            Ok(Gpu { name, memory_bytes: gpu.memory_bytes, driver })
        };
        Ok(Self {
            cpu: word(pb.cpu, "cpu")?,
            cores: pb.cores,
            memory_bytes: pb.memory_bytes,
            level: word(pb.level, "level")?,
            gpus: pb.gpus.into_iter().map(gpu).collect::<Result<_, _>>()?,
            bandwidth_bytes_per_s: pb.bandwidth_bytes_per_s,
            macs_per_s: pb.macs_per_s,
            stage_memory_bytes: pb.stage_memory_bytes,
        })
    }
}

impl Load {
    fn to_pb(self) -> peer_pb::Load {
        peer_pb::Load {
            sessions: self.sessions,
            sessions_max: self.sessions_max,
            stage_memory_free_bytes: self.stage_memory_free_bytes,
            loads: self.loads,
            tasks: self.tasks,
            tasks_max: self.tasks_max,
        }
    }

    fn from_pb(pb: peer_pb::Load) -> Self {
        Self {
            sessions: pb.sessions,
            sessions_max: pb.sessions_max,
            stage_memory_free_bytes: pb.stage_memory_free_bytes,
            loads: pb.loads,
            tasks: pb.tasks,
            tasks_max: pb.tasks_max,
        }
    }
}

impl Grants {
    fn to_pb(self) -> peer_pb::Grants {
        peer_pb::Grants { store: self.store.to_pb(), compute: self.compute.to_pb(), train: self.train.to_pb() }
    }

    fn from_pb(pb: peer_pb::Grants) -> Self {
        Self { store: Grant::from_pb(pb.store), compute: Grant::from_pb(pb.compute), train: Grant::from_pb(pb.train) }
    }
}

impl Grant {
    /// "nobody", "listed", "realm" or "anyone".
    pub const fn name(self) -> &'static str {
        match self {
            Self::Nobody => "nobody",
            Self::Listed => "listed",
            Self::Realm => "realm",
            Self::Anyone => "anyone",
        }
    }

    fn to_pb(self) -> i32 {
        let pb = match self {
            Self::Nobody => peer_pb::Grant::Nobody,
            Self::Listed => peer_pb::Grant::Listed,
            Self::Realm => peer_pb::Grant::Realm,
            Self::Anyone => peer_pb::Grant::Anyone,
        };
        pb as i32
    }

    /// What is not understood is taken for the narrowest.
    fn from_pb(number: i32) -> Self {
        match peer_pb::Grant::try_from(number) {
            Ok(peer_pb::Grant::Listed) => Self::Listed,
            Ok(peer_pb::Grant::Realm) => Self::Realm,
            Ok(peer_pb::Grant::Anyone) => Self::Anyone,
            _ => Self::Nobody,
        }
    }
}

impl fmt::Display for Grant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Grant {
    type Err = GrantError;
    fn from_str(text: &str) -> Result<Self, GrantError> {
        let all = [Self::Nobody, Self::Listed, Self::Realm, Self::Anyone];
        all.into_iter().find(|grant| grant.name() == text).ok_or(GrantError)
    }
}

/// A text that is no grant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a grant is nobody, listed, realm or anyone")]
pub struct GrantError;

fn addresses(list: Vec<String>, field: &'static str) -> Result<Vec<String>, AdvertError> {
    let fit = list.len() <= ADVERT_ADDRESSES_MAX
        && list.iter().all(|text| (1..=ADDRESS_BYTES_MAX).contains(&text.len()) && !text.contains(char::is_control));
    fit.then_some(list).ok_or(AdvertError::Invalid(field))
}

/// Texts of peers end up on terminals: no control characters.
fn word(text: String, field: &'static str) -> Result<String, AdvertError> {
    let fits = text.len() <= WORD_BYTES_MAX && !text.contains(char::is_control);
    fits.then_some(text).ok_or(AdvertError::Invalid(field))
}
