//! The bounds of this node's talk with others: queues, rates, times. What two nodes must agree on (sizes of
//! messages and records) stands in `cairn_protocol::limits` instead; these are a node's own choices.
//!
//! Invariant: every queue and every table in `net` takes its bound from here.

use std::time::Duration;

/// Commands waiting for the swarm. Full: the caller of the handle waits, the swarm never does.
pub const COMMANDS_MAX: usize = 1024;
/// Questions of peers waiting for the catalogue. Full: the asker is told `busy`.
pub const QUESTIONS_MAX: usize = 256;
/// Gossiped records waiting for the catalogue. Full: the record is neither kept nor forwarded; catching up mends it.
pub const RECORDS_MAX: usize = 512;
/// Peers waiting to be caught up with. Full: dropped; the periodic second look finds them.
pub const ARRIVALS_MAX: usize = 256;
/// Events that a slow listener may lag behind before it loses the oldest.
pub const PEER_EVENTS_MAX: usize = 256;
/// Our own questions under way. More would only wait for the same peers: the caller is told `busy`.
pub const ASKS_MAX: usize = 2048;
/// Searches for providers under way. Full: the search ends at once with what adverts say.
pub const SEARCHES_MAX: usize = 256;
/// Questions of one peer that are being answered or wait for it.
pub const QUESTIONS_PER_PEER_MAX: u32 = 32;
/// Questions that one peer may ask in a burst, then a second: a pull asks tens, catching up about fifty.
pub const QUESTIONS_BURST: u32 = 256;
/// Questions a second after the burst.
pub const QUESTIONS_PER_S: u32 = 128;
/// Gossip messages that one neighbour may pass on in a burst; it forwards the whole realm's, so this is generous.
pub const GOSSIP_BURST: u32 = 2048;
/// Gossip messages a second after the burst. Each costs a signature check, about 60 microseconds.
pub const GOSSIP_PER_S: u32 = 512;
/// Our own questions under way to one peer; a little more than a peer answers at once. More: `busy`.
pub const ASKS_PER_PEER_MAX: u32 = 48;
/// Streams of questions, both ways, that one connection may have open; more than the two bounds above together, so that
/// they are what is met first: what exceeds this one is dropped without an answer.
pub const STREAMS_PER_CONNECTION_MAX: usize = 128;
/// Bytes of a question that are read at all: the largest, a thousand hashes, takes 35 KiB. The protocol allows more,
/// but every open stream may cost this much memory.
pub const QUESTION_READ_BYTES_MAX: usize = 64 * 1024;
/// A gossip message: gossipsub's own default, room for the largest record and its framing.
pub const GOSSIP_BYTES_MAX: usize = 64 * 1024;

/// Nodes remembered in the peer table, about 4 KiB each at most.
pub const PEERS_MAX: usize = 4096;
/// Addresses kept of one peer.
pub const ADDRESSES_PER_PEER_MAX: usize = 16;
/// Nodes with penalties on record.
pub const ACCOUNTS_MAX: usize = 4096;
/// Addresses that are dialled again and again.
pub const DIAL_TARGETS_MAX: usize = 512;
/// A node looks for company of its own accord until it has this many peers.
pub const PEERS_WANTED: usize = 32;
/// Dials begun in one tick.
pub const DIALS_PER_TICK_MAX: usize = 8;

/// Half-open incoming connections: garbage on the ports can hold no more.
pub const PENDING_INCOMING_MAX: u32 = 128;
/// Incoming connections of one address that are half-open or have not shown an advert: a laboratory behind one address
/// needs a place for some round trips a node only, and eight addresses are needed to take every half-open place.
pub const STRANGERS_PER_ADDRESS_MAX: usize = 16;
/// Half-open outgoing connections.
pub const PENDING_OUTGOING_MAX: u32 = 64;
/// Established incoming connections.
pub const INCOMING_MAX: u32 = 256;
/// Established connections in all.
pub const CONNECTIONS_MAX: u32 = 384;
/// Connections with one peer: two that crossed, on two transports.
pub const CONNECTIONS_PER_PEER_MAX: u32 = 4;
/// No new connection is taken while this process uses more than this part of the machine's memory.
pub const MEMORY_PART_MAX: f64 = 0.9;

/// A handshake takes longer only if the other side isn't one of us.
pub const HANDSHAKE: Duration = Duration::from_secs(5);
/// A connection without streams is closed after this.
pub const IDLE_CONNECTION: Duration = Duration::from_secs(600);
/// A connected peer that hasn't shown a valid advert of our realm by then is disconnected.
pub const PROOF_MS: u64 = 12_000;
/// Longest life of a question, ours or a peer's.
pub const QUESTION_DEADLINE: Duration = Duration::from_secs(30);
/// Between two pings of a peer.
pub const PING_INTERVAL: Duration = Duration::from_secs(10);
/// A ping unanswered for so long has failed.
pub const PING_DEADLINE: Duration = Duration::from_secs(8);
/// How often the swarm looks at its clocks.
pub const TICK: Duration = Duration::from_millis(200);
/// How long a stopping node waits for its connections to close in order.
pub const GOODBYE: Duration = Duration::from_millis(400);

/// Our advert is renewed at least this often.
pub const ADVERT_INTERVAL_MS: u64 = 10_000;
/// And at most this often, however quickly the load changes.
pub const ADVERT_PAUSE_MS: u64 = 500;
/// What we say of ourselves holds for so long: four renewals may be lost.
pub const ADVERT_TTL_MS: u32 = 45_000;
/// No advert holds for longer, whatever it says.
pub const ADVERT_TTL_MAX_MS: u32 = 300_000;
/// Newer adverts of one node in a burst.
pub const ADVERTS_BURST: u32 = 16;
/// Newer adverts of one node a second after the burst.
pub const ADVERTS_PER_S: u32 = 4;
/// A disconnected peer without an advert is forgotten after this.
pub const FORGET_MS: u64 = 3_600_000;

/// First wait before dialling again.
pub const REDIAL_FIRST_MS: u64 = 500;
/// Longest wait before dialling again.
pub const REDIAL_LAST_MS: u64 = 30_000;
/// Attempts after which a peer that no one configured is given up.
pub const REDIAL_ATTEMPTS_MAX: u32 = 8;
/// A peer that was given up is left alone for so long, and then tried once.
pub const GIVEN_UP_MS: u64 = 600_000;

/// Records that no one was there to hear, kept for another attempt.
pub const UNSENT_MAX: usize = 256;

/// Revisions in the distributed table that this node keeps for others, one a node and revision. About 3 KiB each.
pub const PROVIDED_MAX: usize = 49_152;
/// Of one other node: its share, and in a large mesh only few of its revisions fall to us.
pub const PROVIDED_PER_PEER_MAX: usize = PROVIDED_MAX / 64;
/// Revisions that this node itself may announce whatever others announce; beyond, as many as others leave room for.
pub const PROVIDED_OWN_MAX: usize = 16_384;
/// Other nodes remembered for one revision: Kademlia's usual number.
pub const PROVIDERS_PER_REVISION_MAX: usize = 20;
/// An announcement holds for so long: it is renewed every 12 hours.
pub const PROVIDED_MS: u64 = 48 * 3_600_000;
/// Bytes of a provider's addresses that are kept with it; one takes ten to fifty.
pub const PROVIDER_ADDRESS_BYTES_MAX: usize = 512;

/// How often the distributed table looks for nodes near its own.
pub const TABLE_REFRESH_MS: u64 = 300_000;
