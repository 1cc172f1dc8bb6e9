//! Binds the threads of a pool to cores of their own, where the pool has one for every core that the process may use.
//!
//! A scheduler that wakes both threads of a pool on one core lets them take turns for milliseconds before it moves one;
//! a stage that is woken once a token then computes at half its speed. Bound threads can't meet. A pool of fewer threads
//! than cores stays free, since the scheduler knows better which cores are idle. Elsewhere than on Linux nothing is bound.

#[cfg(target_os = "linux")]
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// The core of each of `threads` threads; empty where they should stay free.
#[cfg(target_os = "linux")]
pub fn of_threads(threads: usize) -> Vec<usize> {
    let Ok(allowed) = sched_getaffinity(None) else { return Vec::new() };
    if allowed.count() as usize != threads {
        return Vec::new();
    }
    (0..CpuSet::MAX_CPU).filter(|core| allowed.is_set(*core)).collect()
}

/// The core of each of `threads` threads; empty where they should stay free.
#[cfg(not(target_os = "linux"))]
pub fn of_threads(_threads: usize) -> Vec<usize> {
    Vec::new()
}

/// Binds the calling thread. That it could not be is no error: it only runs as the scheduler likes.
#[cfg(target_os = "linux")]
pub fn bind(core: usize) {
    let mut set = CpuSet::new();
    set.set(core);
    if let Err(error) = sched_setaffinity(None, &set) {
        tracing::debug!(core, %error, "a kernel thread stays unbound");
    }
}

/// Binds the calling thread. That it could not be is no error: it only runs as the scheduler likes.
#[cfg(not(target_os = "linux"))]
pub fn bind(_core: usize) {}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn as_many_threads_as_cores_get_one_each_and_fewer_stay_free() {
        let cores = sched_getaffinity(None).expect("an affinity").count() as usize;
        let mut bound = of_threads(cores);
        bound.dedup();
        assert_eq!(bound.len(), cores);
        assert!(of_threads(cores + 1).is_empty());
        assert!(of_threads(cores - 1).is_empty());
    }

    #[test]
    fn a_bound_thread_stays_on_its_core() {
        let thread = std::thread::spawn(|| {
            let core = (0..CpuSet::MAX_CPU).find(|c| sched_getaffinity(None).expect("an affinity").is_set(*c));
            bind(core.expect("a core"));
            let after = sched_getaffinity(None).expect("an affinity");
            (after.count(), after.is_set(core.expect("a core")))
        });
        assert_eq!(thread.join().expect("a thread"), (1, true));
    }
}
