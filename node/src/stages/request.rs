//! What a coordinator asks of a stage, parsed from `OpenStage` into types that cannot be wrong.
//!
//! Not here: whether it may ask ([`super::admission`]). Invariant: a [`StageRequest`] holds only lengths and counts that
//! were held against their limits.

use std::{net::SocketAddr, time::Duration};

use cairn_compute::{
    KvFormat, PAGE_POSITIONS,
    arch::StagePart,
    choose::Demands,
    plan::Privacy,
    quantise::{Target, parse_wish},
};
use cairn_protocol::{
    id::{NodeId, PublisherKey, RealmId, RevisionId, SessionId},
    layers::LayerRange,
    limits, peer_pb,
    refusal::{Reason, Refusal},
};

use super::{bounds, choosing};

/// Parses the privacy word of the API and of openings; empty is the default, `trusted`.
pub fn parse_privacy(word: &str) -> Result<Privacy, Refusal> {
    match word {
        "" | "trusted" => Ok(Privacy::Trusted),
        "local" => Ok(Privacy::Local),
        "realm" => Ok(Privacy::Realm),
        "open" => Ok(Privacy::Open),
        other => Err(Refusal::new(Reason::BadInput, format!("privacy {other:?}"), "there is no such class")
            .try_this("local, trusted, realm or open")),
    }
}

/// The word for a privacy class.
pub fn privacy_word(privacy: Privacy) -> &'static str {
    match privacy {
        Privacy::Local => "local",
        Privacy::Trusted => "trusted",
        Privacy::Realm => "realm",
        Privacy::Open => "open",
    }
}

/// A node that may hold a revision, and where it listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Neighbour {
    /// The node.
    pub node: NodeId,
    /// Its data addresses.
    pub addresses: Vec<SocketAddr>,
}

/// One stage of one session, as its coordinator asks for it.
#[derive(Debug, Clone)]
pub struct StageRequest {
    /// The session.
    pub session: SessionId,
    /// One more with every plan of the session.
    pub epoch: u32,
    /// The realm the coordinator is in.
    pub realm: RealmId,
    /// Which model.
    pub revision: RevisionId,
    /// Who published it.
    pub publisher: PublisherKey,
    /// Which layers, and whether the embedding and the head are among them.
    pub part: StagePart,
    /// Positions the cache must hold.
    pub context: u32,
    /// Int8 planes of the activations.
    pub planes: u32,
    /// Where hidden states go; none for the last stage.
    pub next: Option<Neighbour>,
    /// The only node whose frames are taken; the coordinator for the first stage.
    pub previous: NodeId,
    /// How the last stage chooses tokens.
    pub demands: Demands,
    /// Ids before the first step, for a last stage whose choice depends on them.
    pub history: Vec<u32>,
    /// The session's privacy class.
    pub privacy: Privacy,
    /// Who is known to hold the revision.
    pub sources: Vec<Neighbour>,
    /// Instruction-set level that all stages of the session share; empty for any.
    pub level: String,
    /// What is computed on top of the model's weights.
    pub adapter: Option<AdapterRequest>,
    /// What matrices of more bits are held as.
    pub quantise: Option<Target>,
    /// What keys and values are held as.
    pub kv: KvFormat,
    /// What pages of the ids so far are known by to the asker, 32 bytes each.
    pub prefix: Vec<u8>,
    /// How long it may wait for a place.
    pub wait: Duration,
    /// Which of the asker's clients it is for, as the asker says.
    pub client: u64,
    /// Ids so far. None of an asker that does not know of pages.
    pub positions: Option<u32>,
}

/// An adapter, as a coordinator asks for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdapterRequest {
    /// Which.
    pub revision: RevisionId,
    /// Who published it.
    pub publisher: PublisherKey,
    /// Who is known to hold it.
    pub sources: Vec<Neighbour>,
}

impl StageRequest {
    /// Checks every field.
    pub fn parse(open: peer_pb::OpenStage) -> Result<StageRequest, Refusal> {
        let layers = LayerRange::new(open.first_layer, open.end_layer).filter(|l| l.start < l.end);
        let layers = layers.ok_or_else(|| bad(format!("layers {}..{}", open.first_layer, open.end_layer)))?;
        if !(1..=2).contains(&open.planes) {
            return Err(bad(format!("{} planes; there are one and two", open.planes)));
        }
        if open.context == 0 || open.context > limits::CONTEXT_MAX || open.history.len() > open.context as usize {
            return Err(bad(format!("a context of {} with {} ids before it", open.context, open.history.len())));
        }
        let next =
            if open.next_node.is_empty() { None } else { Some(neighbour(&open.next_node, &open.next_addresses)?) };
        if next.is_none() != open.head {
            return Err(bad("exactly the stage with the head is the last".to_owned()));
        }
        if open.positions > u64::from(open.context) {
            return Err(bad(format!("{} ids before the first step in a context of {}", open.positions, open.context)));
        }
        if open.prefix.len() > open.context as usize / PAGE_POSITIONS * 32 || !open.prefix.len().is_multiple_of(32) {
            return Err(bad(format!("{} bytes of keys for a context of {}", open.prefix.len(), open.context)));
        }
        Ok(StageRequest {
            session: id(&open.session, "session")?,
            epoch: open.epoch,
            realm: id(&open.realm, "realm")?,
            revision: id(&open.revision, "revision")?,
            publisher: id(&open.publisher, "publisher")?,
            part: StagePart { layers, embedding: open.embedding, head: open.head },
            context: open.context,
            planes: open.planes,
            next,
            previous: id(&open.previous_node, "previous node")?,
            demands: choosing::parse(open.sampling.unwrap_or_default(), open.choosing)?,
            history: open.history,
            privacy: parse_privacy(&open.privacy)?,
            sources: sources(&open.sources)?,
            level: open.level,
            adapter: open.adapter.map(adapter).transpose()?,
            quantise: parse_wish(&open.quantise).map_err(|error| bad(error.to_string()))?,
            kv: KvFormat::parse_wish(&open.kv).map_err(|error| bad(error.to_string()))?,
            prefix: open.prefix,
            wait: Duration::from_millis(open.wait_ms).min(bounds::WAIT_MAX),
            client: open.client,
            positions: (open.positions > 0).then_some(open.positions as u32),
        })
    }
}

fn adapter(wire: peer_pb::Adapter) -> Result<AdapterRequest, Refusal> {
    Ok(AdapterRequest {
        revision: id(&wire.revision, "an adapter's revision")?,
        publisher: id(&wire.publisher, "an adapter's publisher")?,
        sources: sources(&wire.sources)?,
    })
}

fn sources(wire: &[peer_pb::Source]) -> Result<Vec<Neighbour>, Refusal> {
    if wire.len() > bounds::SOURCES_MAX {
        return Err(bad(format!("{} sources, at most {} are taken", wire.len(), bounds::SOURCES_MAX)));
    }
    wire.iter().map(|s| neighbour(&s.node, &s.addresses)).collect()
}

pub(crate) fn neighbour(node: &[u8], addresses: &[String]) -> Result<Neighbour, Refusal> {
    if addresses.len() > bounds::ADDRESSES_MAX {
        return Err(bad(format!(
            "{} addresses of one node, at most {} are taken",
            addresses.len(),
            bounds::ADDRESSES_MAX
        )));
    }
    let addresses =
        addresses.iter().map(|a| a.parse().map_err(|_| bad(format!("address {a:?}")))).collect::<Result<_, _>>()?;
    Ok(Neighbour { node: id(node, "node")?, addresses })
}

pub(crate) fn id<'a, T: TryFrom<&'a [u8]>>(bytes: &'a [u8], what: &str) -> Result<T, Refusal> {
    T::try_from(bytes).map_err(|_| bad(format!("{what} of {} bytes", bytes.len())))
}

pub(super) fn bad(why: String) -> Refusal {
    Refusal::new(Reason::BadInput, "a stage request", why).try_this("the same version of cairn on both nodes")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn opening() -> peer_pb::OpenStage {
        peer_pb::OpenStage {
            session: vec![1; 16],
            realm: vec![2; 32],
            revision: vec![3; 32],
            publisher: vec![4; 32],
            previous_node: vec![5; 32],
            end_layer: 1,
            embedding: true,
            head: true,
            context: 64,
            planes: 2,
            ..peer_pb::OpenStage::default()
        }
    }

    #[test]
    fn a_stranger_waits_no_longer_than_anybody_may() {
        for (asked, granted) in [(0, Duration::ZERO), (1500, Duration::from_millis(1500)), (u64::MAX, bounds::WAIT_MAX)]
        {
            let request = StageRequest::parse(peer_pb::OpenStage { wait_ms: asked, ..opening() }).unwrap();
            assert_eq!(request.wait, granted);
        }
    }

    #[test]
    fn keys_and_values_are_halves_unless_asked_for_otherwise_and_nothing_unknown() {
        let kv = |name: &str| StageRequest::parse(peer_pb::OpenStage { kv: name.to_owned(), ..opening() });
        assert_eq!(kv("").unwrap().kv, KvFormat::F16);
        assert_eq!(kv("int8").unwrap().kv, KvFormat::Int8);
        let refused = kv("int4").unwrap_err();
        assert!(refused.reason == Reason::BadInput && refused.to_string().contains("f16 or int8"), "{refused}");
    }
}
