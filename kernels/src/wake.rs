//! How soon threads get to work: what the system's scheduler is asked for on behalf of those that wait
//! more than they work, and when those that compute may sleep.

use std::{
    num::NonZero,
    sync::{
        OnceLock,
        atomic::{AtomicBool, Ordering},
    },
};

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

/// Runs `work` in the pool, whose other threads look for its parts without falling asleep meanwhile.
/// Rayon's sleep after some microseconds without work, as a decode step has them in each layer, and waking
/// one takes as long. They leave their cores to whoever else has something to do; where there are fewer
/// cores than threads, they sleep as ever.
pub fn stay_awake<R: Send>(work: impl FnOnce() -> R + Send) -> R {
    let is_over = &AtomicBool::new(false);
    rayon::scope(|scope| {
        if !(2..=num_cores()).contains(&rayon::current_num_threads()) {
            return work();
        }
        let worker = rayon::current_thread_index();
        scope.spawn_broadcast(move |_, thread| {
            // The worker comes by here while it waits for a part that another thread has.
            while Some(thread.index()) != worker && !is_over.load(Ordering::Acquire) {
                if rayon::yield_now() != Some(rayon::Yield::Executed) {
                    std::thread::yield_now();
                }
            }
        });
        let _end = OnDrop(|| is_over.store(true, Ordering::Release));
        work()
    })
}

/// Cores that this process may use, as they were when it was asked first.
fn num_cores() -> usize {
    static NUM_CORES: OnceLock<usize> = OnceLock::new();
    *NUM_CORES.get_or_init(|| std::thread::available_parallelism().map_or(1, NonZero::get))
}

/// Calls its function when it goes out of scope, by a panic too.
struct OnDrop<F: Fn()>(F);

impl<F: Fn()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
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

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use rayon::prelude::*;

    use super::*;

    fn in_pools(check: impl Fn() + Sync) {
        for num_threads in [1, 2, 5] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(num_threads).build().unwrap();
            pool.install(&check);
        }
    }

    #[test]
    fn what_threads_that_stay_awake_work_on_is_done() {
        in_pools(|| {
            for len in 0..200u64 {
                let sum = stay_awake(|| {
                    let parts = (0..len as usize).into_par_iter().with_max_len(1);
                    parts.map(|i| (0..i as u64).into_par_iter().sum::<u64>()).sum::<u64>()
                });
                assert_eq!(sum, (0..len).map(|i| i * i.saturating_sub(1) / 2).sum::<u64>());
            }
        });
    }

    #[test]
    fn a_panic_ends_the_waiting() {
        in_pools(|| {
            let panicked = catch_unwind(AssertUnwindSafe(|| stay_awake(|| panic!("on purpose"))));
            assert!(panicked.is_err());
        });
        assert_eq!(stay_awake(|| 7), 7, "from outside of any pool");
    }
}
