//! What a panic does. It is a bug: the process says so and aborts, rather than go on with a task missing, for nothing that
//! was acknowledged is lost by that. Only the engine's threads catch theirs: a stage is reported lost, and the node goes on.
//!
//! Not for tests, where the test runner catches panics.

use std::{panic, process, thread};

/// Makes every panic but the engine's end the process, after the usual message. Called once, first of all.
pub fn abort_outside_the_engine() {
    let say = panic::take_hook();
    panic::set_hook(Box::new(move |panic| {
        say(panic);
        if !thread::current().name().is_some_and(cairn_compute::engine::is_engine_thread) {
            process::abort();
        }
    }));
}
