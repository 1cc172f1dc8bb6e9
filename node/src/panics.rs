//! What a panic does. It is a bug: the process says so and aborts, rather than go on with a task missing, for nothing that
//! was acknowledged is lost by that. Three kinds are survived: on the engine's threads, where a stage is reported lost;
//! inside [`catch`], where a library reads a stranger's file; and on a damaged catalogue or
//! search index, which is told as an error.
//!
//! Not for tests, where the test runner catches panics, and not a way to handle errors of our own.

use std::{any::Any, cell::Cell, panic, process, thread};

thread_local! {
    /// How many [`catch`] this thread is in.
    static CATCHING: Cell<u32> = const { Cell::new(0) };
}

/// Makes every panic but the engine's and the caught ones end the process, after the usual message. Called once, first of
/// all.
pub fn abort_outside_the_engine() {
    let say = panic::take_hook();
    panic::set_hook(Box::new(move |panic| {
        // It is told as an error, with the name of what is damaged.
        if cairn_registry::is_guarded() {
            return;
        }
        say(panic);
        if ends_the_process() {
            process::abort();
        }
    }));
}

/// Runs what may panic on a stranger's bytes; a panic on this thread becomes its message. Only for work whose results are
/// thrown away when it fails.
pub(crate) fn catch<T>(what: &str, work: impl FnOnce() -> T) -> Result<T, String> {
    let _catching = Catching::begin();
    panic::catch_unwind(panic::AssertUnwindSafe(work)).map_err(|panic| {
        let why = message(panic.as_ref());
        tracing::warn!(what, why, "a panic was caught");
        why
    })
}

/// Whether a panic on this thread, now, does. A thread that is being torn down catches nothing.
fn ends_the_process() -> bool {
    let is_caught = CATCHING.try_with(|depth| depth.get() > 0).unwrap_or(false);
    !is_caught && !thread::current().name().is_some_and(cairn_compute::engine::is_engine_thread)
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("it said nothing").to_owned()
}

/// Counts one [`catch`] for as long as it lives.
struct Catching;

impl Catching {
    fn begin() -> Catching {
        CATCHING.with(|depth| depth.set(depth.get() + 1));
        Catching
    }
}

impl Drop for Catching {
    fn drop(&mut self) {
        CATCHING.with(|depth| depth.set(depth.get() - 1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_inside_catch_is_an_error_and_one_outside_ends_the_process() {
        assert!(ends_the_process());
        let outer = catch("the outer", || {
            let inner: Result<(), String> = catch("the inner", || panic!("inner {}", 7));
            assert_eq!(inner, Err("inner 7".to_owned()));
            assert!(!ends_the_process(), "the outer one still catches");
            assert!(thread::spawn(ends_the_process).join().unwrap(), "another thread is not caught");
            5
        });
        assert_eq!(outer, Ok(5));
        assert_eq!(catch("a word", || -> u8 { panic!("word") }), Err("word".to_owned()));
        assert!(ends_the_process());
    }
}
