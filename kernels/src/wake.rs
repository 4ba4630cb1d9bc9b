//! What the system's scheduler is asked for on behalf of threads that wait more than they work.

/// Asks that the calling thread, when it has something to do, does not wait for the slices of those
/// that compute. Its share of the processor stays what it was: it gets it in shorter pieces, earlier.
/// False where the system cannot (Linux can from 6.12): then nothing has changed.
#[cfg(target_os = "linux")]
pub fn answer_soon() -> bool {
    linux::set_slice(SLICE_NS)
}

/// Other systems have no such wish to grant.
#[cfg(not(target_os = "linux"))]
pub fn answer_soon() -> bool {
    false
}

/// The shortest that Linux gives; that of a thread which asks for nothing is 0.7 ms and more.
#[cfg(target_os = "linux")]
const SLICE_NS: u64 = 100_000;

#[cfg(target_os = "linux")]
mod linux {
    /// `struct sched_attr` in its first version, which every kernel takes.
    #[repr(C)]
    #[derive(Default)]
    struct SchedAttr {
        size: u32,
        policy: u32,
        flags: u64,
        nice: i32,
        priority: u32,
        /// Nanoseconds; of a thread without a real-time policy: its slice.
        runtime: u64,
        deadline: u64,
        period: u64,
    }

    const SIZE: u32 = size_of::<SchedAttr>() as u32;

    /// Of the calling thread; everything else about it stays.
    pub fn set_slice(nanoseconds: u64) -> bool {
        let Some(before) = attributes() else { return false };
        let wanted = SchedAttr { runtime: nanoseconds, ..before };
        // SAFETY: the kernel reads `size` bytes of `wanted`, which has as many.
        let set = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const wanted, 0) } == 0;
        // Kernels that know no slices take the call and do nothing.
        set && attributes().is_some_and(|now| now.runtime == nanoseconds)
    }

    fn attributes() -> Option<SchedAttr> {
        let mut found = SchedAttr::default();
        // SAFETY: the kernel writes at most `SIZE` bytes to `found`, which has as many.
        let got = unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut found, SIZE, 0) };
        (got == 0).then_some(found)
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn a_thread_s_slice_is_set_and_nothing_else_of_it() {
            let kept = |attr: &SchedAttr| (attr.policy, attr.nice, attr.priority);
            let set = move || {
                let before = attributes().unwrap();
                let is_set = set_slice(super::super::SLICE_NS);
                let after = attributes().unwrap();
                assert_eq!(kept(&before), kept(&after));
                assert_eq!(is_set, after.runtime == super::super::SLICE_NS);
            };
            std::thread::spawn(set).join().unwrap();
        }
    }
}
