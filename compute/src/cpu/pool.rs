//! A few threads that run one job after another with little delay: one pool a process, for all stages.
//!
//! A job is handed out by raising an epoch; threads notice by spinning and, after 50 µs without work, sleep until they
//! are unparked. The caller takes part, then waits the same way. [`Pool::split`] is the safe face of it: it cuts one
//! output slice into disjoint parts. Spinning yields the core, so that stages in other processes get on.
//!
//! Invariant: `run` returns, or unwinds, only when no thread holds the job any more. A panic on a pool thread is caught,
//! and goes on in the caller once all are done; the pool stays usable.
#![allow(unsafe_code)]

use std::{
    any::Any,
    cell::UnsafeCell,
    hint::spin_loop,
    io,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering::*},
    },
    thread::{self, JoinHandle, Thread},
    time::{Duration, Instant},
};

use super::cores;

/// How long a thread spins (yielding) before it sleeps. Parking at once costs 4 times in decode; spinning for ever costs
/// 3 times where processes share the cores.
const SPIN: Duration = Duration::from_micros(50);

/// What the names of a pool's threads begin with.
pub const KERNEL_THREADS: &str = "cairn-kernel-";

/// Spins between two looks at the clock and yields.
const SPINS_A_YIELD: u32 = 64;

type Job = *const (dyn Fn(usize) + Sync);

#[repr(align(128))]
struct Padded<T>(T);

struct Shared {
    epoch: Padded<AtomicU32>,
    left: Padded<AtomicU32>,
    stop: AtomicBool,
    job: UnsafeCell<Option<Job>>,
    /// Who sleeps: the caller, then the threads by index.
    asleep: Vec<Padded<AtomicBool>>,
    /// Guards the handle that wakes the caller; held for a clone only.
    caller: Mutex<Option<Thread>>,
    /// Guards the first panic of a pool thread during a job; held for a move only.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

// SAFETY: `job` is written only by the caller of `run` while no thread is between an epoch and its `left` decrement, and
// read only in between.
unsafe impl Sync for Shared {}
// SAFETY: the pointer in `job` is only followed while `run` keeps it alive.
unsafe impl Send for Shared {}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits until `ready`: spins, then sleeps with the flag up.
fn wait(asleep: &AtomicBool, ready: impl Fn() -> bool) {
    let mut since = None;
    let mut turns = 0u32;
    while !ready() {
        turns = turns.wrapping_add(1);
        if !turns.is_multiple_of(SPINS_A_YIELD) {
            spin_loop();
            continue;
        }
        thread::yield_now();
        if since.get_or_insert_with(Instant::now).elapsed() < SPIN {
            continue;
        }
        asleep.store(true, SeqCst);
        while !ready() {
            thread::park();
        }
        asleep.store(false, SeqCst);
        return;
    }
}

/// The threads; dropped, they end.
pub struct Pool {
    shared: Arc<Shared>,
    /// The core of each thread, the caller's first; empty where they are free.
    cores: Vec<usize>,
    helpers: Vec<JoinHandle<()>>,
    /// Held for a whole job: one at a time.
    busy: Mutex<()>,
}

impl Pool {
    /// A pool of `threads`, the caller counted, that run where the scheduler likes.
    pub fn new(threads: usize) -> io::Result<Self> {
        Self::on_cores(threads, Vec::new())
    }

    /// A pool of `threads`, the caller counted, bound to the cores as [`super::cores`] says. The thread that will call
    /// [`Pool::run`] has to be the same always, and calls [`Pool::bind_caller`] first.
    pub fn bound(threads: usize) -> io::Result<Self> {
        Self::on_cores(threads, cores::of_threads(threads))
    }

    fn on_cores(threads: usize, cores: Vec<usize>) -> io::Result<Self> {
        let threads = threads.max(1);
        let shared = Arc::new(Shared {
            epoch: Padded(AtomicU32::new(0)),
            left: Padded(AtomicU32::new(0)),
            stop: AtomicBool::new(false),
            job: UnsafeCell::new(None),
            asleep: (0..threads).map(|_| Padded(AtomicBool::new(false))).collect(),
            caller: Mutex::new(None),
            panic: Mutex::new(None),
        });
        let mut pool = Self { shared, cores, helpers: Vec::new(), busy: Mutex::new(()) };
        for id in 1..threads {
            let (shared, core) = (pool.shared.clone(), pool.cores.get(id).copied());
            let name = format!("{KERNEL_THREADS}{id}");
            pool.helpers.push(thread::Builder::new().name(name).spawn(move || {
                if let Some(core) = core {
                    cores::bind(core);
                }
                help(&shared, id)
            })?);
        }
        Ok(pool)
    }

    /// Binds the calling thread to the core that was left for it.
    pub fn bind_caller(&self) {
        if let Some(core) = self.cores.first() {
            cores::bind(*core);
        }
    }

    /// Threads, the caller counted.
    pub fn threads(&self) -> usize {
        self.helpers.len() + 1
    }

    /// Runs `f(id)` once on every thread; returns when all are done. Panics of `f` go on here.
    pub fn run(&self, f: &(dyn Fn(usize) + Sync)) {
        let _one = locked(&self.busy);
        if self.helpers.is_empty() {
            return f(0);
        }
        self.hand_out(f);
        let own = catch_unwind(AssertUnwindSafe(|| f(0)));
        if self.shared.left.0.load(Acquire) != 0 {
            self.finish();
        }
        let theirs = locked(&self.shared.panic).take();
        if let Some(panic) = own.err().or(theirs) {
            resume_unwind(panic);
        }
    }

    fn hand_out(&self, f: &(dyn Fn(usize) + Sync)) {
        let s = &*self.shared;
        // SAFETY: the lifetime is dropped from the type, but `run` does not return or unwind before every thread has
        // finished with the job.
        let job: Job = unsafe { std::mem::transmute::<&(dyn Fn(usize) + Sync), Job>(f) };
        // SAFETY: no thread is running (see `Shared`): `busy` is held and the last job was waited for.
        unsafe { *s.job.get() = Some(job) };
        s.left.0.store(self.helpers.len() as u32, Relaxed);
        s.epoch.0.fetch_add(1, SeqCst);
        for (helper, asleep) in self.helpers.iter().zip(&s.asleep[1..]) {
            if asleep.0.load(SeqCst) {
                helper.thread().unpark();
            }
        }
    }

    fn finish(&self) {
        let s = &*self.shared;
        let mut caller = locked(&s.caller);
        if caller.as_ref().is_none_or(|thread| thread.id() != thread::current().id()) {
            *caller = Some(thread::current());
        }
        drop(caller);
        wait(&s.asleep[0].0, || s.left.0.load(SeqCst) == 0);
    }

    /// Cuts `out` into one part a thread, each of whole `unit`s, and calls `f(first unit, part)` for each.
    pub fn split<T: Send>(&self, out: &mut [T], unit: usize, f: impl Fn(usize, &mut [T]) + Sync) {
        self.split_parts(out, unit, 1, f);
    }

    /// [`Pool::split`] with `each` parts a thread, taken in turn.
    pub fn split_parts<T: Send>(&self, out: &mut [T], unit: usize, each: usize, f: impl Fn(usize, &mut [T]) + Sync) {
        let units = out.len() / unit;
        assert_eq!(units * unit, out.len(), "whole units");
        let parts = self.threads() * each;
        let base = Base(out.as_mut_ptr());
        let next = AtomicUsize::new(0);
        self.run(&|id| {
            let base = &base;
            let mut take = id;
            loop {
                let part = if each == 1 { take } else { next.fetch_add(1, Relaxed) };
                if part >= parts {
                    return;
                }
                take = parts;
                let (from, to) = (units * part / parts, units * (part + 1) / parts);
                if from < to {
                    // SAFETY: parts do not overlap and lie inside `out`, which this call holds exclusively until `run`
                    // returns.
                    let part = unsafe { std::slice::from_raw_parts_mut(base.0.add(from * unit), (to - from) * unit) };
                    f(from, part);
                }
            }
        });
    }
}

struct Base<T>(*mut T);
// SAFETY: only disjoint parts are made from it, one thread each.
unsafe impl<T: Send> Sync for Base<T> {}

fn help(s: &Shared, id: usize) {
    let mut seen = 0;
    loop {
        wait(&s.asleep[id].0, || s.epoch.0.load(SeqCst) != seen);
        seen = s.epoch.0.load(SeqCst);
        if s.stop.load(SeqCst) {
            return;
        }
        // SAFETY: the epoch was raised after the job was written, and the caller keeps it until `left` is zero.
        let job = unsafe { (*s.job.get()).map(|job| &*job) };
        if let Some(job) = job
            && let Err(panic) = catch_unwind(AssertUnwindSafe(|| job(id)))
        {
            locked(&s.panic).get_or_insert(panic);
        }
        if s.left.0.fetch_sub(1, SeqCst) == 1
            && s.asleep[0].0.load(SeqCst)
            && let Some(caller) = locked(&s.caller).as_ref()
        {
            caller.unpark();
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, SeqCst);
        self.shared.epoch.0.fetch_add(1, SeqCst);
        for helper in self.helpers.drain(..) {
            helper.thread().unpark();
            // A helper catches its panics, so it ends in order.
            let _ = helper.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn split_covers_every_unit_once() {
        for threads in 1..4 {
            let pool = Pool::new(threads).expect("pool");
            for (units, each) in [(0, 1), (1, 1), (2, 4), (3, 1), (17, 4), (64, 1), (64, 8)] {
                let mut out = vec![0u32; units * 3];
                pool.split_parts(&mut out, 3, each, |first, part| {
                    part.iter_mut().enumerate().for_each(|(i, o)| *o += (first * 3 + i) as u32 + 1)
                });
                assert!(out.iter().enumerate().all(|(i, o)| *o == i as u32 + 1));
            }
        }
    }

    #[test]
    fn sleeping_threads_take_part_in_every_job() {
        let pool = Pool::new(3).expect("pool");
        let count = AtomicU32::new(0);
        for round in 0..300 {
            if round % 10 == 0 {
                // Long enough that the threads park; correctness does not depend on it.
                thread::sleep(SPIN * 3);
            }
            pool.run(&|_| {
                count.fetch_add(1, Relaxed);
            });
        }
        assert_eq!(count.load(Relaxed), 900);
    }

    #[test]
    fn a_panic_on_any_thread_reaches_the_caller_and_the_pool_goes_on() {
        let pool = Pool::new(3).expect("pool");
        for bad in 0..3 {
            let finished = AtomicU32::new(0);
            let outcome = catch_unwind(AssertUnwindSafe(|| {
                pool.run(&|id| {
                    if id == bad {
                        resume_unwind(Box::new("planned"));
                    }
                    thread::sleep(Duration::from_millis(2));
                    finished.fetch_add(1, SeqCst);
                })
            }));
            assert_eq!(outcome.expect_err("panics").downcast_ref::<&str>(), Some(&"planned"));
            assert_eq!(finished.load(SeqCst), 2, "the others were waited for");
        }
        let mut out = vec![0; 10];
        pool.split(&mut out, 1, |_, part| part.fill(1));
        assert_eq!(out, [1; 10]);
    }
}
