//! The life of one session's stage on this node: asked, admitted, loaded, linked, run, ended.
//!
//! The same code serves a coordinator on another node, whose control stream feeds the two channels, and one in this
//! process, which holds them itself. Not here: bytes on streams ([`super::door`]). Invariant: when [`serve`] returns,
//! the stage's cache is free, its links are closed and its place is given back, however the session ended.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use cairn_compute::{StepInput, choose::Chooser};
use cairn_protocol::{
    id::{NodeId, RevisionId},
    limits,
    peer_pb::{self, stage_command::Command, stage_event::Event},
    refusal::{Reason, Refusal},
};
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{Instant, Interval, MissedTickBehavior, interval},
};

use super::{
    admission::Asker,
    bounds, choosing, load, prefix,
    request::{Neighbour, StageRequest},
    rooms::{Held, Place, Rooms},
    run::{Outgoing, Run, RunParts, Step},
};
use crate::{
    data::link::{self, FrameWriter, Introduction, LinkError},
    shell::Node,
};

/// The two ends of a control stream, as a stage sees them.
pub(crate) struct Control {
    pub commands: mpsc::Receiver<peer_pb::StageCommand>,
    pub events: mpsc::Sender<peer_pb::StageEvent>,
}

/// Serves one stage until its coordinator closes it, is silent for the lease, or a link breaks. A refusal has been told
/// to the coordinator. Dropping the future ends the session.
pub(super) async fn serve(
    node: &Arc<Node>,
    rooms: &Arc<Rooms>,
    asker: Asker,
    open: peer_pb::OpenStage,
    control: Control,
) {
    let events = control.events.clone();
    if let Err(refusal) = admitted(node, rooms, asker, open, control).await {
        tracing::info!(peer = %asker.node.short(), reason = refusal.reason.code(), why = %refusal.why, "stage refused");
        let refused = peer_pb::Refused { reason: refusal.reason.code().to_owned(), why: refusal.why };
        let _ = events.try_send(peer_pb::StageEvent { event: Some(Event::Refused(refused)) });
    }
}

async fn admitted(
    node: &Arc<Node>,
    rooms: &Arc<Rooms>,
    asker: Asker,
    open: peer_pb::OpenStage,
    control: Control,
) -> Result<(), Refusal> {
    let request = StageRequest::parse(open)?;
    let held = held(node, &request).await;
    let mut session = Session::new(control, asker.node);
    let events = session.events.clone();
    let told = |place| {
        let waiting = Event::Waiting(peer_pb::StageWaiting { place });
        let _ = events.try_send(peer_pb::StageEvent { event: Some(waiting) });
    };
    let place = tokio::select! {
        // What is decided at once is said, even to one that has gone already.
        biased;
        entered = rooms.enter(&request, &asker, held, told) => entered?,
        why = session.idle() => return Err(cancelled(&why)),
    };
    place.wait_for_predecessor().await;
    let prepared = tokio::select! {
        prepared = prepare(node, rooms, &request, &events, &asker) => prepared,
        why = session.idle() => return Err(cancelled(&why)),
        () = place.cancelled() => return Err(cancelled("a newer plan took its place")),
    };
    match prepared {
        Ok(prepared) => session.run(node, place, &request, prepared).await,
        Err(Unprepared::Refused(refusal)) => return Err(refusal),
        Err(Unprepared::NextLost(next, why)) => {
            session.say(Event::Lost(peer_pb::StageLost { node: next.to_vec(), why }));
            session.idle().await;
        }
    }
    Ok(())
}

/// What of a request's revisions is here.
async fn held(node: &Node, request: &StageRequest) -> Held {
    let is_here = async |revision: RevisionId| matches!(node.registry.blobs().has(revision.blob()).await, Ok(true));
    let adapter = match &request.adapter {
        Some(adapter) => is_here(adapter.revision).await,
        None => false,
    };
    Held { revision: is_here(request.revision).await, adapter }
}

/// Why a stage is not ready.
enum Unprepared {
    /// This node will not.
    Refused(Refusal),
    /// The next stage's node cannot be reached: its loss, not this one's refusal.
    NextLost(NodeId, String),
}

fn cancelled(why: &str) -> Refusal {
    Refusal::new(Reason::Cancelled, "a stage", why).try_this("a new session")
}

/// A stage that is loaded and whose link to the next is open.
struct Prepared {
    loaded: load::Loaded,
    chooser: Option<Chooser>,
    link: Option<FrameWriter>,
}

async fn prepare(
    node: &Arc<Node>,
    rooms: &Arc<Rooms>,
    request: &StageRequest,
    events: &mpsc::Sender<peer_pb::StageEvent>,
    asker: &Asker,
) -> Result<Prepared, Unprepared> {
    let linking = async {
        let Some(next) = &request.next else { return Ok(None) };
        let opened = open_link(node, request, next).await;
        opened.map(Some).map_err(|error| Unprepared::NextLost(next.node, error.to_string()))
    };
    // What a chooser needs is fetched only once the load has held the request against its rules.
    let loading = async {
        let loaded = load::load(node, rooms, request, events, asker).await?;
        Ok((loaded, choosing::chooser(node, request).await?))
    };
    let loading = async { loading.await.map_err(Unprepared::Refused) };
    let ((loaded, chooser), link) = tokio::try_join!(loading, linking)?;
    Ok(Prepared { loaded, chooser, link })
}

async fn open_link(node: &Arc<Node>, request: &StageRequest, next: &Neighbour) -> Result<FrameWriter, LinkError> {
    let connection = link::dial(node.data.endpoint(), next.node, &next.addresses, bounds::DIAL).await?;
    FrameWriter::open(&connection, Introduction { session: request.session, epoch: request.epoch }).await
}

/// What a session's task holds between its selects.
struct Session {
    asker: NodeId,
    commands: mpsc::Receiver<peer_pb::StageCommand>,
    events: mpsc::Sender<peer_pb::StageEvent>,
    beat: Interval,
    beats: u64,
    heard: Instant,
    worked: Instant,
}

impl Session {
    fn new(control: Control, asker: NodeId) -> Session {
        let mut beat = interval(bounds::BEAT);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let now = Instant::now();
        Session { asker, commands: control.commands, events: control.events, beat, beats: 0, heard: now, worked: now }
    }

    /// Beats while the stage loads; says why the session ended.
    async fn idle(&mut self) -> String {
        loop {
            tokio::select! {
                command = self.commands.recv() => match command.and_then(|c| c.command) {
                    Some(Command::Beat(_)) => self.heard = Instant::now(),
                    Some(Command::Close(_)) | None => return "its coordinator closed it".to_owned(),
                    Some(_) => return "it was used before it was ready".to_owned(),
                },
                _ = self.beat.tick() => self.say_beat(|count| peer_pb::StageBeat { count, ..Default::default() }),
            }
            if self.heard.elapsed() > bounds::LEASE {
                return "its coordinator has been silent for the lease".to_owned();
            }
        }
    }

    fn say_beat(&mut self, beat: impl FnOnce(u64) -> peer_pb::StageBeat) {
        self.beats += 1;
        self.say(Event::Beat(beat(self.beats)));
    }

    /// A full queue holds what will be taken for a sign of life; its reader is gone, or the lease ends this.
    fn say(&self, event: Event) {
        let _ = self.events.try_send(peer_pb::StageEvent { event: Some(event) });
    }

    async fn run(mut self, node: &Arc<Node>, place: Place, request: &StageRequest, prepared: Prepared) {
        let Prepared { loaded, chooser, link } = prepared;
        let ready = loaded.report.clone();
        let (frames, outgoing) = mpsc::channel(bounds::STEPS_MAX + 1);
        let run = Run::new(RunParts {
            session: request.session,
            epoch: request.epoch,
            previous: request.previous,
            me: node.identity.node_id(),
            width: loaded.width,
            handle: loaded.handle.clone(),
            understands_eviction: request.positions.is_some(),
            chooser,
            events: self.events.clone(),
            frames: link.is_some().then_some(frames),
        });
        let mut links = JoinSet::new();
        if let (Some(writer), Some(next)) = (link, &request.next) {
            links.spawn(send_frames(run.clone(), writer, outgoing, next.node));
        }
        place.ready(run.clone());
        run.say(Event::Ready(ready));
        let idle_lease = Duration::from_secs(node.config.lease_idle_s);
        let why = self.steps(&run, &place, idle_lease).await;
        run.closed.cancel();
        links.shutdown().await;
        drop(loaded);
        tracing::debug!(session = %request.session, epoch = request.epoch, why, "stage ended");
    }

    /// Takes commands until the session ends; says why.
    async fn steps(&mut self, run: &Arc<Run>, place: &Place, idle_lease: Duration) -> &'static str {
        let mut waiting: VecDeque<peer_pb::StageInput> = VecDeque::new();
        loop {
            tokio::select! {
                command = self.commands.recv() => match command.and_then(|c| c.command) {
                    Some(Command::Input(input)) => {
                        self.touch();
                        if !take_input(run, &mut waiting, input) { return "its coordinator broke the rules" }
                    }
                    Some(Command::Truncate(truncate)) => {
                        self.touch();
                        if truncate.epoch == run.epoch() { run.truncate(truncate.length) }
                    }
                    Some(Command::Beat(_)) => self.heard = Instant::now(),
                    Some(Command::Close(close)) => {
                        if let Some(keys) = prefix::of_asker(&close.prefix, self.asker) { run.name_pages(keys) }
                        return "its coordinator closed it";
                    }
                    None => return "its coordinator closed it",
                },
                permit = run.permit(), if !waiting.is_empty() => {
                    if let Some(input) = waiting.pop_front() { submit_input(run, input, permit) }
                }
                _ = self.beat.tick() => self.say_beat(|count| run.beat(count)),
                () = run.closed.cancelled() => return "its coordinator reads nothing",
                () = place.cancelled() => return "a newer plan took its place",
            }
            if run.take_worked() {
                self.worked = Instant::now();
            }
            if self.heard.elapsed() > bounds::LEASE {
                return "its coordinator has been silent for the lease";
            }
            if self.worked.elapsed() > idle_lease {
                run.lose(run.me(), "idle for the lease".to_owned());
                return "it was idle for the lease";
            }
        }
    }

    fn touch(&mut self) {
        self.heard = Instant::now();
        self.worked = self.heard;
    }
}

/// Queues an input, or submits it at once when nothing waits; false when it is none that a coordinator may send.
fn take_input(run: &Arc<Run>, waiting: &mut VecDeque<peer_pb::StageInput>, input: peer_pb::StageInput) -> bool {
    if input.epoch != run.epoch() || !run.is_new(input.sequence) {
        return true;
    }
    let is_sound = !input.tokens.is_empty() && input.tokens.len() <= limits::FRAME_POSITIONS_MAX as usize;
    if !is_sound || waiting.len() >= bounds::INPUTS_MAX {
        return false;
    }
    match run.try_permit() {
        Some(permit) if waiting.is_empty() => submit_input(run, input, permit),
        _ => waiting.push_back(input),
    }
    true
}

fn submit_input(run: &Arc<Run>, input: peer_pb::StageInput, permit: tokio::sync::OwnedSemaphorePermit) {
    let step = Step {
        sequence: input.sequence,
        first_position: input.first_position,
        count: input.tokens.len() as u32,
        sample: input.sample,
    };
    let first_position = input.first_position;
    run.submit(step, StepInput::Tokens { first_position, ids: input.tokens, sample: input.sample }, permit);
}

/// Sends what the engine makes to the next stage; tells the coordinator at once when that fails.
async fn send_frames(run: Arc<Run>, mut writer: FrameWriter, mut outgoing: mpsc::Receiver<Outgoing>, next: NodeId) {
    let stopped = writer.stopped();
    tokio::pin!(stopped);
    loop {
        let out = tokio::select! {
            out = outgoing.recv() => out,
            why = &mut stopped => return run.lose(next, why),
        };
        let Some(out) = out else { return };
        if let Err(error) = writer.write(&out.header, &out.values).await {
            return run.lose(next, error.to_string());
        }
    }
}
