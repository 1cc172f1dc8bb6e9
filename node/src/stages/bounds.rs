//! What stages may take here: this module's own bounds and intervals, each with its reason. Bounds that both ends of a
//! wire check stand in `cairn_protocol::limits`.

use std::time::Duration;

/// Holders named in an opening. More would not make a fetch faster.
pub const SOURCES_MAX: usize = 32;

/// Addresses of one node: as many as an advert holds, and more.
pub const ADDRESSES_MAX: usize = 32;

/// How often each end of a control stream says that it lives (see the walls: QUIC by itself tells nothing for 15 s).
pub const BEAT: Duration = Duration::from_millis(100);

/// Silence that, after a node's talk connections closed, says that it is gone: two beats and a half.
pub const GONE: Duration = Duration::from_millis(250);

/// A stage that hears nothing from its coordinator for this long closes: the state is worth nothing without it.
pub const LEASE: Duration = Duration::from_secs(10);

/// Time a stranger has for the first message of a connection, and a data stream for its session to be opened.
pub const INTRODUCTION: Duration = Duration::from_secs(5);

/// Time to reach another node: many round trips of the farthest that serves a stage (80 ms). A dead one answers nothing, and
/// a replacement must be found within two seconds.
pub const DIAL: Duration = Duration::from_millis(1200);

/// Most sessions on a node, all peers together. Memory bounds them long before; this bounds what else they hold.
pub const SESSIONS_MAX: usize = 32;

/// Most tasks on a node, all peers together: each holds its texts and two pieces of its answer.
pub const TASKS_MAX: usize = 32;

/// Most stage connections that have not said yet what they are for.
pub const STRANGERS_MAX: usize = 64;

/// Steps of one session that wait for the engine or the next link: one computes, one is ready, so the engine never waits
/// for the wire, and a slow next stage holds at most two outputs here.
pub const STEPS_MAX: usize = 2;

/// Inputs that a coordinator may have on the way to a first stage. A prompt of 128 Ki ids in chunks of 512 is 256.
pub const INPUTS_MAX: usize = 512;

/// Events that wait for a control stream's writer. A coordinator that does not read for so long is lost.
pub const EVENTS_MAX: usize = 64;

/// Commands that wait for a control stream's writer: all inputs of a prompt.
pub const COMMANDS_MAX: usize = INPUTS_MAX + 16;

/// Models whose placements a coordinator remembers: more than nodes keep loaded for it.
pub const PLACED_MODELS_MAX: usize = 32;

/// Placements remembered of one model: on one node, on two, on three, and the one before.
pub const PLACEMENTS_MAX: usize = 4;

/// How long an advert may still count a session that has ended: twice the pause between adverts.
pub const ADVERT_LAG: Duration = Duration::from_millis(1000);

/// Stages whose weights stay loaded after their session, for the next one of the same model.
pub const IDLE_STAGES_MAX: usize = 8;

/// Adapters that stay loaded after their session: they are small, and users of many share one model.
pub const IDLE_ADAPTERS_MAX: usize = 64;

/// Positions that weights are loaded for at least, where the model holds as many: some megabytes of angles.
pub const CONTEXT_LOADED: u32 = 8192;

/// How long a session waits for room for its keys and values while others go on: longer than most answers take.
pub const PAGES_PATIENCE: Duration = Duration::from_secs(120);

/// How often one that waits looks: pages are also given back without anybody leaving.
pub const PAGES_LOOK: Duration = Duration::from_millis(50);

/// Sessions that may wait for a place, of all clients together: each has a stream open and holds nothing else.
pub const WAITING_MAX: usize = 256;

/// How long a stage of several may wait for its place at a time: its session holds places elsewhere meanwhile.
pub const WAIT_AMONG_OTHERS_MS: u64 = 2000;

/// Longest that a session stays in line, whatever its coordinator asks for: nobody holds places there for ever.
pub const WAIT_MAX: Duration = Duration::from_secs(600);
