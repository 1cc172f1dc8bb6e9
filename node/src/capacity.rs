//! What this machine can do: processor, memory, GPUs, and two measured figures that plans are made from.
//!
//! Measuring takes at most 300 ms and is done once a home: the figures are kept in `capacity.json` and measured again
//! when the processor or the kernels changed. Nodes that start together on one machine take turns, else each would
//! measure what the others left of it.
//!
//! Not the load, which changes by the second. Invariant: a missing GPU library, an unreadable file or a busy machine
//! never keeps a node from starting; it only makes the figures zero, older or slower.

mod nvml;

use std::{
    env, fs,
    fs::{File, TryLockError},
    io,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use cairn_protocol::{
    advert::{Capacity, Gpu},
    limits::{ADVERT_GPUS_MAX, WORD_BYTES_MAX},
};
use serde::{Deserialize, Serialize};

pub use nvml::NvmlError;

/// Where NVIDIA's management library is looked for.
const NVML_LIBRARY: &str = "libnvidia-ml.so.1";
/// Names another library to load in its place.
pub const NVML_VARIABLE: &str = "CAIRN_NVML";
/// Longest time spent on measuring.
const MEASURE_BUDGET: Duration = Duration::from_millis(300);
/// Longest wait for our turn; twenty nodes that start together get theirs.
const TURN_WAIT_MAX: Duration = Duration::from_secs(8);

/// Finds out what this machine can do. Blocks: up to a third of a second of computing on a new home, plus the wait
/// for other nodes that measure at this moment.
pub fn measure(home: &Path, stage_memory_bytes: u64) -> Capacity {
    let machine = Machine::read();
    let measured = recall(home, &machine).unwrap_or_else(|| {
        let measured = take_turn(&env::temp_dir(), || Measured::take(&machine));
        remember(home, &measured);
        measured
    });
    Capacity {
        cpu: machine.cpu,
        cores: machine.cores,
        memory_bytes: machine.memory_bytes,
        level: machine.level,
        gpus: gpus(),
        bandwidth_bytes_per_s: measured.bandwidth_bytes_per_s,
        macs_per_s: measured.macs_per_s,
        stage_memory_bytes,
    }
}

/// The GPUs that NVIDIA's library knows of; none where there is no library.
fn gpus() -> Vec<Gpu> {
    let library = env::var_os(NVML_VARIABLE).map_or_else(|| PathBuf::from(NVML_LIBRARY), PathBuf::from);
    match nvml::gpus(&library, ADVERT_GPUS_MAX) {
        Ok(gpus) => gpus.into_iter().map(printable).collect(),
        Err(NvmlError::Absent { .. }) => Vec::new(),
        Err(error) => {
            tracing::warn!(%error, "the GPUs of this machine can't be listed");
            Vec::new()
        }
    }
}

fn printable(gpu: Gpu) -> Gpu {
    Gpu { name: short_text(&gpu.name), driver: short_text(&gpu.driver), memory_bytes: gpu.memory_bytes }
}

/// What needs no measuring.
#[derive(Clone, Debug, PartialEq)]
struct Machine {
    cpu: String,
    cores: u32,
    memory_bytes: u64,
    level: String,
}

impl Machine {
    fn read() -> Machine {
        let mut system = sysinfo::System::new();
        system.refresh_memory();
        system.refresh_cpu_list(sysinfo::CpuRefreshKind::nothing());
        let cpu = system.cpus().first().map(|cpu| short_text(cpu.brand())).unwrap_or_default();
        Machine {
            cpu,
            cores: thread::available_parallelism().map_or(1, |n| n.get() as u32),
            memory_bytes: system.total_memory(),
            level: cairn_compute::measure::level().to_owned(),
        }
    }
}

/// A name as adverts may hold it.
fn short_text(text: &str) -> String {
    let printable: String = text.trim().chars().filter(|c| !c.is_control()).collect();
    printable.char_indices().take_while(|(at, c)| at + c.len_utf8() <= WORD_BYTES_MAX).map(|(_, c)| c).collect()
}

/// Figures as they are kept in the home, with what they were measured on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Measured {
    version: u32,
    cpu: String,
    cores: u32,
    level: String,
    bandwidth_bytes_per_s: u64,
    macs_per_s: u64,
}

impl Measured {
    /// The format of `capacity.json`.
    const VERSION: u32 = 1;

    fn take(machine: &Machine) -> Measured {
        let figures = cairn_compute::measure::measure(MEASURE_BUDGET);
        Measured {
            version: Measured::VERSION,
            cpu: machine.cpu.clone(),
            cores: machine.cores,
            level: machine.level.clone(),
            bandwidth_bytes_per_s: figures.bandwidth_bytes_per_s,
            macs_per_s: figures.macs_per_s,
        }
    }

    fn is_of(&self, machine: &Machine) -> bool {
        let kept = (self.version, &self.cpu, self.cores, &self.level);
        kept == (Measured::VERSION, &machine.cpu, machine.cores, &machine.level)
    }
}

/// The kept figures, if they are of this machine.
fn recall(home: &Path, machine: &Machine) -> Option<Measured> {
    let bytes = fs::read(path(home)).ok()?;
    let measured: Measured = serde_json::from_slice(&bytes).ok()?;
    measured.is_of(machine).then_some(measured)
}

fn remember(home: &Path, measured: &Measured) {
    let written = serde_json::to_vec_pretty(measured).map_err(io::Error::from).and_then(|bytes| {
        let beside = tempfile::NamedTempFile::new_in(home)?;
        fs::write(beside.path(), bytes)?;
        beside.persist(path(home)).map_err(|error| error.error).map(drop)
    });
    if let Err(error) = written {
        tracing::warn!(%error, "the measured figures can't be kept; they will be measured again");
    }
}

fn path(home: &Path) -> PathBuf {
    home.join("capacity.json")
}

/// Runs `work` while no other process of this machine does; after waiting too long, or where no lock can be had, it
/// runs all the same.
fn take_turn<T>(folder: &Path, work: impl FnOnce() -> T) -> T {
    let lock = open_lock(&folder.join("cairn-measure.lock"));
    if let Ok(file) = &lock {
        wait_for_lock(file);
    }
    let result = work();
    drop(lock);
    result
}

/// Everyone on the machine may lock it, and nobody is led elsewhere by a link.
fn open_lock(path: &Path) -> io::Result<File> {
    use rustix::fs::{Mode, OFlags};
    let flags = OFlags::RDONLY | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::open(path, flags, Mode::from_raw_mode(0o644))?;
    Ok(File::from(file))
}

fn wait_for_lock(file: &File) {
    let start = Instant::now();
    while let Err(TryLockError::WouldBlock) = file.try_lock() {
        if start.elapsed() > TURN_WAIT_MAX {
            tracing::debug!("other nodes measure for long; measuring beside them");
            return;
        }
        thread::sleep(Duration::from_millis(20));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    fn machine() -> Machine {
        Machine { cpu: "test".into(), cores: 3, memory_bytes: 1, level: "scalar".into() }
    }

    fn measured() -> Measured {
        let Machine { cpu, cores, level, .. } = machine();
        Measured { version: 1, cpu, cores, level, bandwidth_bytes_per_s: 7, macs_per_s: 8 }
    }

    #[test]
    fn figures_are_kept_for_the_same_machine_and_measured_again_on_another() {
        let home = tempfile::tempdir().expect("a folder");
        remember(home.path(), &measured());
        assert_eq!(recall(home.path(), &machine()), Some(measured()));
        assert_eq!(recall(home.path(), &Machine { cores: 4, ..machine() }), None);
        assert_eq!(recall(home.path(), &Machine { level: "avx2".into(), ..machine() }), None);
    }

    #[test]
    fn a_spoilt_file_is_measured_over() {
        let home = tempfile::tempdir().expect("a folder");
        fs::write(path(home.path()), b"{").expect("written");
        assert_eq!(recall(home.path(), &machine()), None);
    }

    #[test]
    fn a_second_start_on_one_home_gives_the_same_figures() {
        let home = tempfile::tempdir().expect("a folder");
        let first = measure(home.path(), 5);
        assert!(first.bandwidth_bytes_per_s > 0 && first.macs_per_s > 0, "{first:?}");
        assert!(first.cores > 0 && first.memory_bytes > 0 && first.stage_memory_bytes == 5, "{first:?}");
        assert_eq!(measure(home.path(), 5), first);
    }

    #[test]
    fn only_one_measures_at_a_time() {
        let folder = tempfile::tempdir().expect("a folder");
        let inside = AtomicU32::new(0);
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    take_turn(folder.path(), || {
                        assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                        thread::sleep(Duration::from_millis(5));
                        inside.fetch_sub(1, Ordering::SeqCst);
                    });
                });
            }
        });
    }
}
