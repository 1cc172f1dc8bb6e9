//! Work on the database whose panics become errors: the database's library checks sums only when it repairs, and panics on some pages that
//! a disk altered. A node that is told so can still serve its blobs.
//!
//! Invariant: nothing of ours panics in such work, so a panic there is a damaged file, and is said to be that.

use std::{any::Any, cell::Cell, panic};

use super::CatalogError;

thread_local! {
    static READING: Cell<bool> = const { Cell::new(false) };
}

/// Whether this thread is at work on the database, so that a panic now is caught. For the process's panic hook.
pub fn is_on_the_database() -> bool {
    READING.try_with(Cell::get).unwrap_or(false)
}

/// Runs the work; a panic is a damaged database.
pub(super) fn guarded<T>(work: impl FnOnce() -> T) -> Result<T, CatalogError> {
    READING.with(|reading| reading.set(true));
    let worked = panic::catch_unwind(panic::AssertUnwindSafe(work));
    READING.with(|reading| reading.set(false));
    worked.map_err(|panic| {
        let why = format!("the database can't be read: {}", message(panic.as_ref()));
        tracing::error!(why, "the catalogue is damaged");
        CatalogError::Damaged(why)
    })
}

fn message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("it said nothing")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_on_the_database_is_an_error_that_says_so() {
        assert!(!is_on_the_database());
        let seen = guarded(|| {
            assert!(is_on_the_database());
            7
        });
        assert_eq!(seen.ok(), Some(7));
        let damaged: Result<(), _> = guarded(|| panic!("unreachable page"));
        assert!(matches!(damaged, Err(CatalogError::Damaged(why)) if why.contains("unreachable page")));
        assert!(!is_on_the_database());
    }
}
