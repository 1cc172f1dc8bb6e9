//! Advice to the system about memory: huge pages for weights and key/value stores, prefetch of what is needed next.
//!
//! Advice changes no contents and every call may be ignored by the system.
#![allow(unsafe_code)]

/// Asks the system to back memory with huge pages.
pub fn prefer_huge<T>(memory: &mut [T]) {
    #[cfg(target_os = "linux")]
    {
        const PAGE: usize = 4096;
        let (from, len) = (memory.as_ptr() as usize, std::mem::size_of_val(memory));
        let start = from.next_multiple_of(PAGE);
        let end = (from + len) / PAGE * PAGE;
        if end > start {
            // SAFETY: whole pages inside the slice; this advice changes no contents.
            unsafe { libc::madvise(start as *mut _, end - start, libc::MADV_HUGEPAGE) };
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = memory;
}

/// Asks for a slice to be brought near, without waiting.
#[inline]
pub fn prefetch<T>(memory: &[T]) {
    #[cfg(target_arch = "x86_64")]
    for at in (0..std::mem::size_of_val(memory)).step_by(64) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a prefetch reads nothing and cannot fault; SSE is part of every x86-64 processor.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(memory.as_ptr().cast::<i8>().wrapping_add(at)) };
    }
    #[cfg(target_arch = "aarch64")]
    for at in (0..std::mem::size_of_val(memory)).step_by(64) {
        let line = memory.as_ptr().cast::<u8>().wrapping_add(at);
        // SAFETY: as above; every aarch64 processor has it.
        unsafe { std::arch::asm!("prfm pldl1keep, [{0}]", in(reg) line, options(readonly, nostack, preserves_flags)) };
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let _ = memory;
}
