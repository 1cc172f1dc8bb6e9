//! Who is in: the sessions that have a stage here, the loads under way and the memory they may take.
//!
//! Not here: what a session does. Invariant: a [`Place`], a [`Turn`], a [`Promise`] or a [`Reservation`] gives back what it took when
//! it is dropped, so a session that ends in any way leaves nothing behind.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, Instant},
};

use cairn_compute::{Engine, StageHandle};
use cairn_protocol::{
    id::{NodeId, RevisionId, SessionId},
    refusal::{Reason, Refusal},
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{
    adapters,
    admission::{self, Asker, House, Usage},
    bounds,
    queue::{self, Client, Queue, Ticket},
    request::StageRequest,
    run::Run,
    warm::{Base, Kept, Key, Warm},
};
use crate::{
    data::link::Introduction,
    flows::tasks::{TaskModel, TaskRequest},
};

/// How long a newer plan's stage waits for the older one of its session to leave.
const PREDECESSOR: Duration = Duration::from_millis(500);

/// The sessions of this node.
pub(crate) struct Rooms {
    house: House,
    memory_max: u64,
    engine: Engine,
    /// Whoever waits for pages, in the order in which they came.
    gate: tokio::sync::Mutex<()>,
    /// Guards the tables below; never held across an await.
    state: Mutex<State>,
    changed: watch::Sender<()>,
}

#[derive(Default)]
struct State {
    seats: HashMap<SessionId, Seat>,
    loading: BTreeSet<NodeId>,
    /// Tasks under way, by who asked.
    tasks: BTreeMap<NodeId, usize>,
    /// Models that are being loaded for a task.
    loading_tasks: BTreeSet<RevisionId>,
    memory_used: u64,
    /// Bytes of pages that sessions were let in for.
    promised: u64,
    queue: Queue,
    waits: Waits,
    warm: Warm,
    adapters: adapters::Warm,
    next_id: u64,
}

struct Seat {
    id: u64,
    asker: NodeId,
    epoch: u32,
    previous: NodeId,
    cancel: CancellationToken,
    gone: CancellationToken,
    run: Option<Arc<Run>>,
}

/// What stages take here now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Occupancy {
    /// Sessions with a stage here.
    pub sessions: u32,
    /// Loads under way.
    pub loads: u32,
    /// Memory that another stage could have; warm stages give way.
    pub memory_free_bytes: u64,
    /// Tasks under way.
    pub tasks: u32,
    /// Sessions in line.
    pub waiting: u32,
    /// What waiting there was.
    pub waits: Waits,
}

/// Waiting since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Waits {
    /// Sessions that were let in after they had waited.
    pub let_in: u64,
    /// How long they had, together.
    pub waited: Duration,
    /// Sessions that found the line full, or waited as long as they might.
    pub refused: u64,
}

/// What of a request's revisions is here already: the manifest or more.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Held {
    pub revision: bool,
    pub adapter: bool,
}

impl Rooms {
    pub fn new(house: House, memory_max: u64, engine: Engine) -> Arc<Rooms> {
        let (changed, _) = watch::channel(());
        let gate = tokio::sync::Mutex::default();
        Arc::new(Rooms { house, memory_max, engine, gate, state: Mutex::default(), changed })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    pub fn occupancy(&self) -> Occupancy {
        let state = self.state();
        // Pages may be more than what was reserved for them with the weights.
        let in_use = self.engine.memory().0.saturating_sub(self.engine.keys_and_values().idle_bytes);
        let idle = state.warm.idle_bytes() + state.adapters.idle_bytes();
        Occupancy {
            sessions: state.seats.len() as u32,
            loads: state.loading.len() as u32,
            memory_free_bytes: self.memory_max.saturating_sub(state.memory_used.max(in_use).saturating_sub(idle)),
            tasks: state.tasks.values().sum::<usize>() as u32,
            waiting: state.queue.len() as u32,
            waits: state.waits,
        }
    }

    /// Woken when a session comes, is ready, or goes.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// Admits a session's stage. One of the same session with an older epoch makes room for it. Where all places are taken it
    /// waits in line, as long as it may; `told` hears its place there. Dropping the future leaves the line.
    pub async fn enter(
        self: &Arc<Self>,
        request: &StageRequest,
        asker: &Asker,
        held: Held,
        mut told: impl FnMut(u32),
    ) -> Result<Place, Refusal> {
        let mut changes = self.changes();
        changes.borrow_and_update();
        let refusal = match self.try_enter(request, asker, held, None) {
            Err(refusal) if refusal.reason == Reason::Busy && !request.wait.is_zero() => refusal,
            decided => return decided,
        };
        let in_line = self.line_up(request, asker, refusal)?;
        let (came, mut place_told) = (Instant::now(), 0);
        let waiting = async {
            loop {
                match self.try_enter(request, asker, held, Some(in_line.ticket)) {
                    Err(refusal) if refusal.reason == Reason::Busy => {}
                    decided => return decided,
                }
                let place = self.state().queue.place(in_line.ticket) as u32;
                if place != std::mem::replace(&mut place_told, place) {
                    told(place);
                }
                if changes.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
        };
        let decided = tokio::time::timeout(jittered(request.wait), waiting).await;
        let waits = &mut self.state().waits;
        match decided {
            Ok(decided) => {
                if decided.is_ok() {
                    waits.let_in += 1;
                    waits.waited += came.elapsed();
                }
                decided
            }
            Err(_) => {
                waits.refused += 1;
                let why = format!("no place came free in {} s", came.elapsed().as_secs());
                Err(Refusal::new(Reason::Busy, "a stage", why).try_this("again later, or other nodes"))
            }
        }
    }

    /// Takes the last place in line.
    fn line_up(self: &Arc<Self>, request: &StageRequest, asker: &Asker, busy: Refusal) -> Result<InLine, Refusal> {
        let (node, is_self) = (asker.node, asker.is_self);
        let number = if is_self { request.client } else { 0 };
        let mut state = self.state();
        match state.queue.push(Client { node, number, is_self }, self.house.waiting_per_client) {
            Ok(ticket) => Ok(InLine { rooms: self.clone(), ticket }),
            Err(queue::Full) => {
                state.waits.refused += 1;
                Err(Refusal { why: format!("{}, and as many wait as may", busy.why), ..busy })
            }
        }
    }

    /// Admits a stage if it has a place now, and its turn. Without a ticket it has its turn when nobody waits who could enter.
    fn try_enter(
        self: &Arc<Self>,
        request: &StageRequest,
        asker: &Asker,
        held: Held,
        ticket: Option<Ticket>,
    ) -> Result<Place, Refusal> {
        let mut state = self.state();
        let others = |s: &&Seat| s.asker == asker.node;
        let older = state.seats.get(&request.session);
        let is_own = older.is_some_and(|s| s.asker == asker.node);
        if older.is_some_and(|s| s.asker != asker.node || s.epoch >= request.epoch) {
            let why = "this session has a stage here already, of this epoch or a later one";
            return Err(Refusal::new(Reason::Conflict, "a stage", why).try_this("a new session"));
        }
        let own = usize::from(is_own);
        let usage = Usage {
            sessions_of_peer: state.seats.values().filter(others).count() - own,
            sessions: state.seats.len() - own,
            is_revision_held: held.revision,
            is_adapter_held: held.adapter,
        };
        admission::admit(request, asker, &self.house, usage)?;
        // One that has a place already only changes it.
        let turn = if is_own { ticket } else { self.turn_of(&state) };
        if turn != ticket {
            let why = "others wait for a place here";
            return Err(Refusal::new(Reason::Busy, "a stage", why).try_this("again in a moment"));
        }
        if let Some(ticket) = ticket {
            state.queue.let_in(ticket);
        }
        Ok(self.seat(&mut state, request, asker))
    }

    /// Whose turn it is of those who wait, if any of them could enter.
    fn turn_of(&self, state: &State) -> Option<Ticket> {
        let sessions = |node: NodeId| state.seats.values().filter(|seat| seat.asker == node).count();
        let may_enter = |client: Client| self.house.has_place(client.is_self, sessions(client.node), state.seats.len());
        state.queue.next(may_enter)
    }

    fn seat(self: &Arc<Self>, state: &mut State, request: &StageRequest, asker: &Asker) -> Place {
        state.next_id += 1;
        let seat = Seat {
            id: state.next_id,
            asker: asker.node,
            epoch: request.epoch,
            previous: request.previous,
            cancel: CancellationToken::new(),
            gone: CancellationToken::new(),
            run: None,
        };
        let mut place = Place {
            rooms: self.clone(),
            session: request.session,
            id: seat.id,
            cancel: seat.cancel.clone(),
            gone: seat.gone.clone(),
            predecessor: None,
        };
        if let Some(older) = state.seats.insert(request.session, seat) {
            older.cancel.cancel();
            place.predecessor = Some(older.gone);
        }
        self.changed.send_replace(());
        place
    }

    /// The run that a data stream belongs to, once it is ready; none when the stream is not wanted: from another node
    /// than the opener named, of another epoch, or of a session that nobody opened in time.
    pub async fn find(&self, introduction: Introduction, from: NodeId) -> Option<Arc<Run>> {
        let mut changes = self.changes();
        let strangers = tokio::time::sleep(bounds::INTRODUCTION);
        tokio::pin!(strangers);
        loop {
            changes.borrow_and_update();
            let expected = match self.look_for(introduction, from) {
                Sought::Ready(run) => return run.claim(from).then_some(run),
                Sought::Never => return None,
                Sought::Loading => true,
                Sought::Unknown => false,
            };
            tokio::select! {
                changed = changes.changed() => changed.ok()?,
                () = &mut strangers, if !expected => return None,
            }
        }
    }

    fn look_for(&self, introduction: Introduction, from: NodeId) -> Sought {
        let state = self.state();
        let Some(seat) = state.seats.get(&introduction.session) else { return Sought::Unknown };
        match &seat.run {
            _ if seat.epoch < introduction.epoch => Sought::Unknown,
            _ if seat.epoch > introduction.epoch || seat.previous != from => Sought::Never,
            Some(run) => Sought::Ready(run.clone()),
            None => Sought::Loading,
        }
    }

    /// Waits until `peer` has no other load under way.
    pub async fn turn(self: &Arc<Self>, peer: NodeId) -> Turn {
        let mut changes = self.changes();
        loop {
            changes.borrow_and_update();
            if self.state().loading.insert(peer) {
                return Turn { rooms: self.clone(), peer };
            }
            if changes.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Takes memory for a stage, dropping idle adapters and then idle weights as needed.
    pub fn reserve(self: &Arc<Self>, bytes: u64) -> Result<Reservation, Refusal> {
        let mut state = self.state();
        loop {
            let free = self.memory_max.saturating_sub(state.memory_used);
            if bytes <= free {
                state.memory_used += bytes;
                drop(state);
                return Ok(Reservation { rooms: self.clone(), bytes });
            }
            let adapter = state.adapters.pop_idle();
            let base = if adapter.is_none() { state.warm.pop_idle() } else { None };
            drop(state);
            match (adapter, base) {
                // Dropped without the lock, since they give their reservations back.
                (Some(adapter), _) => drop(adapter),
                (None, Some(base)) => drop(base),
                (None, None) => {
                    let why = format!("it needs {bytes} bytes of memory, {free} of {} are free", self.memory_max);
                    return Err(
                        Refusal::new(Reason::NoMemory, "the model", why).try_this("more nodes, or a smaller model")
                    );
                }
            }
            state = self.state();
        }
    }

    /// Weights that are loaded already, if they are.
    pub fn find_warm(&self, key: &Key, context: u32) -> Option<Arc<Base>> {
        self.state().warm.find(key, context)
    }

    /// Lets a session in once there is room for what it will compute first, beside what the others have or were let in for. Who
    /// came first is let in first. More may be needed later: then the last come give way ([`cairn_compute::engine`]).
    pub async fn promise(
        self: &Arc<Self>,
        base: &Base,
        session: &StageHandle,
        request: &StageRequest,
    ) -> Result<Promise, Refusal> {
        // It has to fit alone, or it could never end.
        drop(self.reserve(session.pages_bytes(request.context.into()).saturating_sub(base.pages_bytes))?);
        let bytes = session.pages_bytes(u64::from(request.positions.unwrap_or(0)) + 1);
        let waiting = async {
            let _turn = self.gate.lock().await;
            loop {
                if let Some(promise) = self.try_promise(bytes) {
                    return promise;
                }
                tokio::time::sleep(bounds::PAGES_LOOK).await;
            }
        };
        tokio::time::timeout(bounds::PAGES_PATIENCE, waiting).await.map_err(|_| {
            let why = "other sessions' keys and values have filled the memory for two minutes";
            Refusal::new(Reason::Busy, "a stage", why).try_this("again later, or another node")
        })
    }

    fn try_promise(self: &Arc<Self>, bytes: u64) -> Option<Promise> {
        let (held, max) = self.engine.memory();
        let pages = self.engine.keys_and_values();
        let mut state = self.state();
        let pressure = admission::Pressure {
            memory_max: max,
            weights: held.saturating_sub(pages.bytes),
            pages: pages.bytes.saturating_sub(pages.idle_bytes),
            promised: state.promised,
        };
        pressure.lets_in(bytes).then(|| {
            state.promised += bytes;
            Promise { rooms: self.clone(), bytes }
        })
    }

    /// Keeps weights for the sessions to come.
    pub fn keep_warm(&self, key: Key, base: Arc<Base>) {
        let surplus = self.state().warm.put(Kept::Stage(key, base));
        drop(surplus);
    }

    /// An adapter that is loaded already, if it is.
    pub fn find_adapter(&self, key: &adapters::Key) -> Option<Arc<adapters::Loaded>> {
        self.state().adapters.find(key)
    }

    /// Keeps an adapter for the sessions to come.
    pub fn keep_adapter(&self, key: adapters::Key, adapter: Arc<adapters::Loaded>) {
        let surplus = self.state().adapters.put(key, adapter);
        drop(surplus);
    }

    /// Admits a task; its place is given back when what is returned goes.
    pub fn enter_task(
        self: &Arc<Self>,
        request: &TaskRequest,
        asker: &Asker,
        is_revision_held: bool,
    ) -> Result<TaskPlace, Refusal> {
        let mut state = self.state();
        let usage = Usage {
            sessions_of_peer: state.tasks.get(&asker.node).copied().unwrap_or_default(),
            sessions: state.tasks.values().sum(),
            is_revision_held,
            is_adapter_held: false,
        };
        admission::admit_task(request, asker, &self.house, usage)?;
        *state.tasks.entry(asker.node).or_default() += 1;
        drop(state);
        self.changed.send_replace(());
        Ok(TaskPlace { rooms: self.clone(), asker: asker.node })
    }

    /// Waits until nobody else loads the model of this revision for a task.
    pub async fn task_turn(self: &Arc<Self>, revision: RevisionId) -> TaskTurn {
        let mut changes = self.changes();
        loop {
            changes.borrow_and_update();
            if self.state().loading_tasks.insert(revision) {
                return TaskTurn { rooms: self.clone(), revision };
            }
            if changes.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// The model of this revision, if it is loaded for its task.
    pub fn find_warm_task(&self, revision: RevisionId) -> Option<Arc<TaskModel>> {
        self.state().warm.find_task(revision)
    }

    /// Keeps a model for the tasks to come.
    pub fn keep_warm_task(&self, revision: RevisionId, model: Arc<TaskModel>) {
        let surplus = self.state().warm.put(Kept::Task(revision, model));
        drop(surplus);
        self.changed.send_replace(());
    }

    /// Revisions that are loaded for their task, the last used first.
    pub fn warm_tasks(&self) -> Vec<RevisionId> {
        self.state().warm.tasks()
    }

    /// Ends every session and forgets every warm stage.
    pub fn close(&self) {
        let mut state = self.state();
        state.seats.values().for_each(|seat| seat.cancel.cancel());
        let warm = (std::mem::take(&mut state.warm), std::mem::take(&mut state.adapters));
        drop(state);
        drop(warm);
    }
}

/// As long as a session may wait, a little less for some than for others, so that two that wait for each other's places do not
/// try again in step.
fn jittered(wait: Duration) -> Duration {
    wait.mul_f64(rand::random_range(0.7..=1.0))
}

/// A session's place in line.
struct InLine {
    rooms: Arc<Rooms>,
    ticket: Ticket,
}

impl Drop for InLine {
    fn drop(&mut self) {
        self.rooms.state().queue.remove(self.ticket);
        self.rooms.changed.send_replace(());
    }
}

enum Sought {
    Ready(Arc<Run>),
    Loading,
    Unknown,
    Never,
}

/// A session's place here.
pub(crate) struct Place {
    rooms: Arc<Rooms>,
    session: SessionId,
    id: u64,
    cancel: CancellationToken,
    gone: CancellationToken,
    predecessor: Option<CancellationToken>,
}

impl Place {
    /// Resolves when a newer plan, or the end of the node, takes the place.
    pub async fn cancelled(&self) {
        self.cancel.cancelled().await;
    }

    /// Waits a moment for the same session's older stage to leave, so that its weights and memory can be used.
    pub async fn wait_for_predecessor(&self) {
        if let Some(gone) = &self.predecessor {
            let _ = tokio::time::timeout(PREDECESSOR, gone.cancelled()).await;
        }
    }

    /// Lets data streams in.
    pub fn ready(&self, run: Arc<Run>) {
        let mut state = self.rooms.state();
        if let Some(seat) = state.seats.get_mut(&self.session).filter(|s| s.id == self.id) {
            seat.run = Some(run);
        }
        drop(state);
        self.rooms.changed.send_replace(());
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut state = self.rooms.state();
        if state.seats.get(&self.session).is_some_and(|s| s.id == self.id) {
            state.seats.remove(&self.session);
        }
        drop(state);
        self.gone.cancel();
        self.rooms.changed.send_replace(());
    }
}

/// A peer's one load.
pub(crate) struct Turn {
    rooms: Arc<Rooms>,
    peer: NodeId,
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.rooms.state().loading.remove(&self.peer);
        self.rooms.changed.send_replace(());
    }
}

/// A task's place here.
pub(crate) struct TaskPlace {
    rooms: Arc<Rooms>,
    asker: NodeId,
}

impl Drop for TaskPlace {
    fn drop(&mut self) {
        let mut state = self.rooms.state();
        if let Some(tasks) = state.tasks.get_mut(&self.asker) {
            *tasks -= 1;
            if *tasks == 0 {
                state.tasks.remove(&self.asker);
            }
        }
        drop(state);
        self.rooms.changed.send_replace(());
    }
}

/// The one loading of a model for a task.
pub(crate) struct TaskTurn {
    rooms: Arc<Rooms>,
    revision: RevisionId,
}

impl Drop for TaskTurn {
    fn drop(&mut self) {
        self.rooms.state().loading_tasks.remove(&self.revision);
        self.rooms.changed.send_replace(());
    }
}

/// A session's place among those whose keys and values share the memory.
pub(crate) struct Promise {
    rooms: Arc<Rooms>,
    bytes: u64,
}

impl Drop for Promise {
    fn drop(&mut self) {
        self.rooms.state().promised -= self.bytes;
    }
}

/// Memory of one stage.
pub(crate) struct Reservation {
    rooms: Arc<Rooms>,
    bytes: u64,
}

impl Reservation {
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if self.bytes > 0 {
            let mut state = self.rooms.state();
            state.memory_used = state.memory_used.saturating_sub(self.bytes);
        }
    }
}
