//! Work on files of ours with libraries that panic where a disk altered them: the database checks sums only when it repairs, the search index
//! when it is asked to. Here such a panic becomes an error, so that a node can say what is damaged, make anew what can be, and serve the rest.
//!
//! Invariant: nothing of ours panics in such work, so a panic there is a damaged file, and is said to be that.

use std::{any::Any, cell::Cell, panic};

thread_local! {
    static GUARDED: Cell<u32> = const { Cell::new(0) };
}

/// Whether this thread is at such work, so that a panic now is caught. For the process's panic hook.
pub fn is_guarded() -> bool {
    GUARDED.try_with(|depth| depth.get() > 0).unwrap_or(false)
}

/// Runs the work; a panic becomes its message.
pub(crate) fn guarded<T>(what: &str, work: impl FnOnce() -> T) -> Result<T, String> {
    let _guard = Guard::begin();
    panic::catch_unwind(panic::AssertUnwindSafe(work)).map_err(|panic| {
        let why = format!("{what} can't be read: {}", message(panic.as_ref()));
        tracing::error!(why, "a file is damaged");
        why
    })
}

fn message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("it said nothing")
}

/// Counts one [`guarded`] for as long as it lives.
struct Guard;

impl Guard {
    fn begin() -> Self {
        GUARDED.with(|depth| depth.set(depth.get() + 1));
        Self
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        GUARDED.with(|depth| depth.set(depth.get() - 1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_on_a_damaged_file_is_an_error_that_says_so() {
        assert!(!is_guarded());
        let seen = guarded("the outer", || {
            let inner: Result<(), _> = guarded("the inner", || panic!("unreachable page"));
            assert_eq!(inner, Err("the inner can't be read: unreachable page".to_owned()));
            assert!(is_guarded(), "the outer one still guards");
            7
        });
        assert_eq!(seen, Ok(7));
        assert!(!is_guarded());
    }
}
