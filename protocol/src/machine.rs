//! The one shape of everything that decides. Not a runtime: whoever owns a machine feeds it inputs and carries out its
//! effects. Invariant: time is an argument and nothing waits, so a recorded list of inputs replays exactly.

/// A pure state machine. Times are milliseconds of the owner's monotonic clock.
pub trait Machine {
    /// What happens to it.
    type Input;
    /// What it wants done.
    type Effect;

    /// Takes one input; effects are appended in the order in which they are to be carried out.
    fn step(&mut self, now_ms: u64, input: Self::Input, effects: &mut Vec<Self::Effect>);

    /// Called at or after [`Machine::wake_at`]; calling it early or often does nothing.
    fn wake(&mut self, now_ms: u64, effects: &mut Vec<Self::Effect>);

    /// When it next wants to be woken; `None` while only inputs matter.
    fn wake_at(&self) -> Option<u64>;
}
