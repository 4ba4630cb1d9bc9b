//! Threads that go through the parallel parts of a step together.
//!
//! A decode step has some eight parts in each layer, of 5 to 150 microseconds. Rayon's threads fall asleep
//! between such parts, waking one takes as long as some of them, and each half that one steals from another
//! costs about a microsecond. A team stays awake from one part to the next. Each of its threads has a share of a
//! part's tasks, neighbours in memory, which it takes one by one; when it has none left it takes the last
//! ones of others, so a thread whose core is slow ends up with fewer.

use std::{
    any::Any,
    cell::{Cell, UnsafeCell},
    num::NonZero,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    ptr,
    sync::{
        Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use rayon::prelude::*;

/// How often a thread looks for a task, in a microsecond or two, before it lets others have its core.
const LOOKS: usize = 32;
/// Tasks of a part of many chunks.
const TASKS_PER_THREAD: usize = 64;
/// How long a thread waits for the next part of a step. Rayon may have given it to the team in the middle of
/// another job, for whose end the step may have to wait: it must go on with that. Much longer than parts are
/// apart, and than a busy system keeps a thread from its core; who has left is called back by the next part.
const PATIENCE: Duration = Duration::from_millis(10);

thread_local!(
    /// The team that this thread leads, unless it is at work on a task.
    static LED: Cell<*const Led<'static>> = const { Cell::new(ptr::null()) };
    /// Whether this thread leads or helps a team. What it finds in rayon meanwhile may be of another one: that
    /// must not hold it, for each of two leaders would wait for the other's step to end.
    static IS_BUSY: Cell<bool> = const { Cell::new(false) }
);

/// Runs `step` in the pool, whose other threads are its team meanwhile, unless they are another's. Where there
/// are fewer cores than threads there is no team: they would take the cores from one another.
pub fn with_team<R: Send>(step: impl FnOnce() -> R + Send) -> R {
    let Some(leader) = rayon::current_thread_index() else {
        return rayon::scope(|_| with_team(step));
    };
    let num_threads = rayon::current_num_threads();
    if !(2..=num_cores()).contains(&num_threads) || IS_BUSY.replace(true) {
        return step();
    }
    let team = &Team::new(num_threads, leader);
    rayon::scope(|scope| {
        let call = &|| team.call(scope);
        call();
        // Before what unsets it, and so there for longer.
        let led = Led { team, call };
        LED.set(ptr::from_ref(&led).cast());
        let _end = OnDrop(|| {
            LED.set(ptr::null());
            IS_BUSY.set(false);
            team.is_over.store(true, Ordering::Release);
        });
        step()
    })
}

/// Calls `task` with each of `0..num_tasks`, on all threads, in any order. Returns when all are done; if some
/// panicked, the panic of one goes on then. Tasks shall not wait for what rayon gives to all threads, and use rayon
/// only where no other step runs in the pool: who leads a part takes none of rayon's jobs meanwhile.
pub fn each_task(num_tasks: usize, task: impl Fn(usize) + Sync) {
    let led = LED.replace(ptr::null());
    let _end = OnDrop(|| LED.set(led));
    // SAFETY: what is set outlives the step.
    match (unsafe { led.as_ref() }, u16::try_from(num_tasks)) {
        (_, Ok(0 | 1)) => (0..num_tasks).for_each(task),
        (Some(led), Ok(num_tasks)) => led.lead(num_tasks, &task),
        _ => (0..num_tasks).into_par_iter().with_max_len(1).for_each(&task),
    }
}

/// Calls `task` with the number of each chunk, and with the chunk of all `values`, as [`each_task`] does. Each of
/// them comes with the length of its chunks, not 0; what is left at its end belongs to no chunk. `unled`: chunks
/// of a task where there is no team, so many that they are worth waking a thread.
pub fn each_chunk<const N: usize, T: Send>(
    values: [(&mut [T], usize); N],
    unled: usize,
    task: impl Fn(usize, [&mut [T]; N]) + Sync,
) {
    let num_chunks = values.iter().map(|(values, len)| values.len() / len).min().unwrap_or(0);
    let chunks = values.map(|(values, len)| Chunks { start: values.as_mut_ptr(), len });
    let chunks = &chunks;
    let most = TASKS_PER_THREAD * rayon::current_num_threads();
    let run = if LED.get().is_null() { unled } else { num_chunks.div_ceil(most).max(1) };
    each_task(num_chunks.div_ceil(run), |first| {
        for index in (first * run..num_chunks).take(run) {
            // SAFETY: each index below the least number of chunks comes once.
            task(index, std::array::from_fn(|i| unsafe { chunks[i].get(index) }));
        }
    });
}

/// A slice that several threads write, each its own chunks.
struct Chunks<T> {
    start: *mut T,
    len: usize,
}

// SAFETY: the only access is `get`, whose callers get different chunks.
unsafe impl<T: Send> Sync for Chunks<T> {}

impl<T> Chunks<T> {
    /// # Safety
    /// There are more than `index` chunks, and nobody else has this one.
    #[expect(clippy::mut_from_ref, reason = "callers have different chunks")]
    unsafe fn get(&self, index: usize) -> &mut [T] {
        // SAFETY: as the caller promises.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(index * self.len), self.len) }
    }
}

type Task<'a> = &'a (dyn Fn(usize) + Sync);

/// A team as its leader sees it.
struct Led<'a> {
    team: &'a Team,
    /// Calls the threads to it.
    call: &'a dyn Fn(),
}

impl Led<'_> {
    /// Has all tasks done. Not from within a task.
    fn lead(&self, num_tasks: u16, task: Task) {
        // One call at a time: what rayon gives to all threads would pile up where one of them is long away.
        if self.team.has_left.load(Ordering::Relaxed)
            && self.team.num_awaited.load(Ordering::Relaxed) == 0
        {
            (self.call)();
        }
        self.team.lead(num_tasks, task);
    }
}

struct Team {
    leader: usize,
    /// Others that were called and have not answered.
    num_awaited: AtomicU32,
    /// Whether a thread has lost its patience since they were called.
    has_left: AtomicBool,
    /// By thread.
    shares: Vec<Slot>,
    /// Number of the latest part.
    part: AtomicU32,
    /// What the part's tasks do.
    task: UnsafeCell<Option<Task<'static>>>,
    num_done: AtomicU32,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    is_over: AtomicBool,
}

// SAFETY: the leader writes `task` while nobody has a task; others read it while they have one.
unsafe impl Sync for Team {}

impl Team {
    fn new(num_threads: usize, leader: usize) -> Self {
        Self {
            leader,
            num_awaited: AtomicU32::new(0),
            has_left: AtomicBool::new(false),
            shares: (0..num_threads).map(|_| Slot::default()).collect(),
            part: AtomicU32::new(0),
            task: UnsafeCell::new(None),
            num_done: AtomicU32::new(0),
            panic: Mutex::new(None),
            is_over: AtomicBool::new(false),
        }
    }

    fn call<'scope>(&'scope self, scope: &rayon::Scope<'scope>) {
        self.has_left.store(false, Ordering::Relaxed);
        self.num_awaited.store(self.shares.len() as u32 - 1, Ordering::Relaxed);
        scope.spawn_broadcast(|_, thread| self.help(thread.index()));
    }

    /// As [`Led::lead`], with those who are there.
    fn lead(&self, num_tasks: u16, task: Task) {
        // SAFETY: no task is left of the last part, and this part's are done before `task` ends.
        unsafe { *self.task.get() = Some(std::mem::transmute::<Task<'_>, Task<'static>>(task)) };
        self.num_done.store(0, Ordering::Relaxed);
        let part = self.part.load(Ordering::Relaxed).wrapping_add(1);
        let (num_threads, all) = (self.shares.len(), usize::from(num_tasks));
        let cut = |i: usize| (i * all / num_threads) as u16;
        for i in 0..num_threads {
            // The first is the leader's.
            let slot = &self.shares[(self.leader + i) % num_threads];
            slot.put(Share { part, start: cut(i), end: cut(i + 1) });
        }
        self.part.store(part, Ordering::Release);
        self.work(self.leader);
        let mut looks = 0;
        while self.num_done.load(Ordering::Acquire) < u32::from(num_tasks) {
            pause(&mut looks);
        }
        let panic = self.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }

    /// Takes tasks, of rayon's too, until the step is over or its next part is long in coming. Rayon gives this
    /// to the leader as well, and to those who help others.
    fn help(&self, thread: usize) {
        if thread == self.leader {
            return;
        }
        self.num_awaited.fetch_sub(1, Ordering::Relaxed);
        if IS_BUSY.replace(true) {
            return;
        }
        let _end = OnDrop(|| IS_BUSY.set(false));
        let (mut last, mut looks, mut since) = (0, 0, Instant::now());
        while !self.is_over.load(Ordering::Acquire) {
            let part = self.part.load(Ordering::Acquire);
            if part != last {
                self.work(thread);
                (last, looks, since) = (part, 0, Instant::now());
            }
            if looks + 1 == LOOKS {
                if since.elapsed() > PATIENCE {
                    return self.has_left.store(true, Ordering::Relaxed);
                }
                if rayon::yield_now() == Some(rayon::Yield::Executed) {
                    looks = 0;
                }
            }
            pause(&mut looks);
        }
    }

    /// Takes tasks and does them until none is left.
    fn work(&self, thread: usize) {
        let mut num_done = 0;
        while let Some(index) = self.take(thread) {
            // SAFETY: written before the task could be taken, and there until it counts as done.
            let task = unsafe { (*self.task.get()).expect("written before") };
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| task(usize::from(index)))) {
                self.keep(panic);
            }
            num_done += 1;
        }
        if num_done > 0 {
            self.num_done.fetch_add(num_done, Ordering::Release);
        }
    }

    fn take(&self, thread: usize) -> Option<u16> {
        let num_threads = self.shares.len();
        let steal = |i: usize| self.shares[(thread + i) % num_threads].take(Share::last);
        let own = self.shares[thread].take(Share::first);
        own.or_else(|| (1..num_threads).find_map(steal))
    }

    /// Keeps the first panic. Others are not even dropped: that could panic again.
    fn keep(&self, panic: Box<dyn Any + Send>) {
        let mut kept = self.panic.lock().unwrap_or_else(PoisonError::into_inner);
        match *kept {
            None => *kept = Some(panic),
            Some(_) => std::mem::forget(panic),
        }
    }
}

/// The tasks of a part that a thread has before it. The part's number is with them, so that nobody takes a
/// task of another part than the one seen.
#[derive(Clone, Copy, Default)]
struct Share {
    part: u32,
    start: u16,
    end: u16,
}

impl Share {
    /// The first task, and what is left.
    fn first(self) -> (u16, Self) {
        (self.start, Self { start: self.start + 1, ..self })
    }

    /// The last task, and what is left.
    fn last(self) -> (u16, Self) {
        (self.end - 1, Self { end: self.end - 1, ..self })
    }

    fn to_bits(self) -> u64 {
        u64::from(self.part) << 32 | u64::from(self.start) << 16 | u64::from(self.end)
    }

    fn from_bits(bits: u64) -> Self {
        Self { part: (bits >> 32) as u32, start: (bits >> 16) as u16, end: bits as u16 }
    }
}

/// A [`Share`], apart from others in the cache.
#[derive(Default)]
#[repr(align(128))]
struct Slot(AtomicU64);

impl Slot {
    fn put(&self, share: Share) {
        self.0.store(share.to_bits(), Ordering::Release);
    }

    /// Takes the task that `cut` cuts off; `None` if none is left.
    fn take(&self, cut: impl Fn(Share) -> (u16, Share)) -> Option<u16> {
        let mut seen = self.0.load(Ordering::Relaxed);
        loop {
            let share = Share::from_bits(seen);
            if share.start == share.end {
                return None;
            }
            let (index, rest) = cut(share);
            let (taken, failed) = (Ordering::Acquire, Ordering::Relaxed);
            match self.0.compare_exchange_weak(seen, rest.to_bits(), taken, failed) {
                Ok(_) => return Some(index),
                Err(now) => seen = now,
            }
        }
    }
}

/// Once in [`LOOKS`] times others may have the core.
fn pause(looks: &mut usize) {
    *looks += 1;
    if *looks < LOOKS {
        std::hint::spin_loop();
    } else {
        *looks = 0;
        std::thread::yield_now();
    }
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

#[cfg(test)]
mod tests;
