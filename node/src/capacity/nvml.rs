//! The GPUs that NVIDIA's management library (NVML) knows of. The library is loaded at run time and let go at once;
//! nothing is linked against it.
//!
//! This file holds nothing else because calling a foreign library is `unsafe`. Invariant: every call has the
//! signature of NVML's header (`nvml.h`, functions of 2010 to 2015 that later versions keep), every buffer is as long
//! as the call is told, and nothing is used after `nvmlShutdown`.

#![allow(unsafe_code)]

use std::{
    ffi::{CStr, c_char, c_int, c_uint, c_void},
    path::{Path, PathBuf},
};

use cairn_protocol::advert::Gpu;
use libloading::{Library, Symbol};

/// Bytes that NVML's header recommends for names and versions.
const TEXT_BYTES: usize = 96;

/// Why the GPUs can't be listed.
#[derive(Debug, thiserror::Error)]
pub enum NvmlError {
    /// There is no such library, so there is no such GPU.
    #[error("{}: {why}", path.display())]
    Absent {
        /// Where it was looked for.
        path: PathBuf,
        /// What the loader says.
        why: String,
    },
    /// A call that every version has is missing.
    #[error("{0} is missing from the library")]
    Missing(&'static str),
    /// A call failed.
    #[error("{call} failed with code {code}")]
    Failed {
        /// Which.
        call: &'static str,
        /// NVML's `nvmlReturn_t`.
        code: c_int,
    },
}

/// `nvmlMemory_t`.
#[repr(C)]
#[derive(Default)]
struct Memory {
    total: u64,
    free: u64,
    used: u64,
}

type Device = *mut c_void;
type Init = unsafe extern "C" fn() -> c_int;
type GetCount = unsafe extern "C" fn(*mut c_uint) -> c_int;
type GetDevice = unsafe extern "C" fn(c_uint, *mut Device) -> c_int;
type GetName = unsafe extern "C" fn(Device, *mut c_char, c_uint) -> c_int;
type GetMemory = unsafe extern "C" fn(Device, *mut Memory) -> c_int;
type GetDriver = unsafe extern "C" fn(*mut c_char, c_uint) -> c_int;

/// Loads the library, asks it, and lets it go. At most `count_max` GPUs.
pub(super) fn gpus(path: &Path, count_max: usize) -> Result<Vec<Gpu>, NvmlError> {
    // SAFETY: loading runs the library's initialisers; it is the system's own driver library, or the one that the
    // operator named.
    let library = unsafe { Library::new(path) }
        .map_err(|error| NvmlError::Absent { path: path.to_path_buf(), why: error.to_string() })?;
    let init: Symbol<'_, Init> = symbol(&library, "nvmlInit_v2")?;
    let shutdown: Symbol<'_, Init> = symbol(&library, "nvmlShutdown")?;
    // SAFETY: takes nothing, and is called first, as NVML demands.
    check("nvmlInit_v2", unsafe { init() })?;
    let gpus = list(&library, count_max);
    // SAFETY: takes nothing; after it only the library's handle is used.
    check("nvmlShutdown", unsafe { shutdown() })?;
    gpus
}

fn list(library: &Library, count_max: usize) -> Result<Vec<Gpu>, NvmlError> {
    let get_count: Symbol<'_, GetCount> = symbol(library, "nvmlDeviceGetCount_v2")?;
    let get_device: Symbol<'_, GetDevice> = symbol(library, "nvmlDeviceGetHandleByIndex_v2")?;
    let get_driver: Symbol<'_, GetDriver> = symbol(library, "nvmlSystemGetDriverVersion")?;
    // SAFETY: `text` hands over a buffer and its true length.
    let driver = text("nvmlSystemGetDriverVersion", |at, bytes| unsafe { get_driver(at, bytes) })?;
    let mut count = 0;
    // SAFETY: `count` outlives the call.
    check("nvmlDeviceGetCount_v2", unsafe { get_count(&mut count) })?;
    let mut gpus = Vec::new();
    for index in 0..count.min(count_max as c_uint) {
        let mut device = std::ptr::null_mut();
        // SAFETY: `device` outlives the call; the index is below the count.
        check("nvmlDeviceGetHandleByIndex_v2", unsafe { get_device(index, &mut device) })?;
        gpus.push(describe(library, device, &driver)?);
    }
    Ok(gpus)
}

fn describe(library: &Library, device: Device, driver: &str) -> Result<Gpu, NvmlError> {
    let get_name: Symbol<'_, GetName> = symbol(library, "nvmlDeviceGetName")?;
    let get_memory: Symbol<'_, GetMemory> = symbol(library, "nvmlDeviceGetMemoryInfo")?;
    // SAFETY: `text` hands over a buffer and its true length; the device came from NVML and it isn't shut down yet.
    let name = text("nvmlDeviceGetName", |at, bytes| unsafe { get_name(device, at, bytes) })?;
    let mut memory = Memory::default();
    // SAFETY: `memory` has the layout of `nvmlMemory_t` and outlives the call; the device is as above.
    check("nvmlDeviceGetMemoryInfo", unsafe { get_memory(device, &mut memory) })?;
    Ok(Gpu { name, memory_bytes: memory.total, driver: driver.to_owned() })
}

/// Calls something that writes a text into a buffer of ours.
fn text(call: &'static str, write: impl FnOnce(*mut c_char, c_uint) -> c_int) -> Result<String, NvmlError> {
    let mut buffer = [0u8; TEXT_BYTES];
    check(call, write(buffer.as_mut_ptr().cast(), TEXT_BYTES as c_uint - 1))?;
    let text = CStr::from_bytes_until_nul(&buffer).unwrap_or_default();
    Ok(text.to_string_lossy().into_owned())
}

fn check(call: &'static str, code: c_int) -> Result<(), NvmlError> {
    if code == 0 { Ok(()) } else { Err(NvmlError::Failed { call, code }) }
}

fn symbol<'l, T>(library: &'l Library, name: &'static str) -> Result<Symbol<'l, T>, NvmlError> {
    // SAFETY: the callers name the type that NVML's header gives that function.
    unsafe { library.get(name.as_bytes()) }.map_err(|_| NvmlError::Missing(name))
}

#[cfg(test)]
mod tests {
    use std::{fs, process::Command};

    use super::*;

    /// Compiles a stand-in for the library with the system's C compiler.
    fn stand_in(folder: &Path, source: &str) -> PathBuf {
        let (code, library) = (folder.join("nvml.c"), folder.join("libnvml.so"));
        fs::write(&code, source).expect("written");
        let built = Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&code).status();
        assert!(built.expect("a C compiler is needed for this test").success());
        library
    }

    const TWO_GPUS: &str = r#"
        #include <string.h>
        static int is_open;
        int nvmlInit_v2(void) { is_open = 1; return 0; }
        int nvmlShutdown(void) { is_open = 0; return 0; }
        int nvmlDeviceGetCount_v2(unsigned *n) { *n = 2; return is_open ? 0 : 1; }
        int nvmlDeviceGetHandleByIndex_v2(unsigned i, void **d) { *d = (void *)(long)(i + 1); return 0; }
        int nvmlDeviceGetName(void *d, char *s, unsigned n) {
            strncpy(s, (long)d == 1 ? "Stand-in A100" : "Stand-in T4", n); return 0;
        }
        int nvmlDeviceGetMemoryInfo(void *d, unsigned long long *m) {
            m[0] = (long)d == 1 ? 80ULL << 30 : 16ULL << 30; m[1] = 1; m[2] = 2; return 0;
        }
        int nvmlSystemGetDriverVersion(char *s, unsigned n) { strncpy(s, "550.54", n); return 0; }
    "#;

    #[test]
    fn two_gpus_of_a_stand_in_library_are_listed() {
        let folder = tempfile::tempdir().expect("a folder");
        let found = gpus(&stand_in(folder.path(), TWO_GPUS), 16).expect("listed");
        let gpu = |name: &str, gib: u64| Gpu { name: name.into(), memory_bytes: gib << 30, driver: "550.54".into() };
        assert_eq!(found, [gpu("Stand-in A100", 80), gpu("Stand-in T4", 16)]);
    }

    #[test]
    fn more_gpus_than_an_advert_holds_are_left_out() {
        let folder = tempfile::tempdir().expect("a folder");
        assert_eq!(gpus(&stand_in(folder.path(), TWO_GPUS), 1).expect("listed").len(), 1);
    }

    #[test]
    fn a_name_that_fills_its_buffer_without_an_end_is_cut() {
        let folder = tempfile::tempdir().expect("a folder");
        let source =
            TWO_GPUS.replace("strncpy(s, (long)d == 1 ? \"Stand-in A100\" : \"Stand-in T4\", n)", "memset(s, 'x', n)");
        let found = gpus(&stand_in(folder.path(), &source), 16).expect("listed");
        assert_eq!(found[0].name, "x".repeat(TEXT_BYTES - 1));
    }

    #[test]
    fn a_failing_call_and_a_missing_one_are_named() {
        let folder = tempfile::tempdir().expect("a folder");
        let failing = TWO_GPUS.replace("*n = 2; return is_open ? 0 : 1", "return 999");
        let error = gpus(&stand_in(folder.path(), &failing), 16).expect_err("refused");
        assert!(matches!(error, NvmlError::Failed { call: "nvmlDeviceGetCount_v2", code: 999 }), "{error}");
        let folder = tempfile::tempdir().expect("a folder");
        let error = gpus(&stand_in(folder.path(), "int nvmlInit_v2(void) { return 0; }"), 16).expect_err("refused");
        assert!(matches!(error, NvmlError::Missing("nvmlShutdown")), "{error}");
    }

    #[test]
    fn without_a_library_there_is_no_gpu() {
        let error = gpus(Path::new("/nonexistent/libnvidia-ml.so.1"), 16).expect_err("absent");
        assert!(matches!(error, NvmlError::Absent { .. }), "{error}");
    }
}
