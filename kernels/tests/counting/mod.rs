//! An allocator that counts what the whole process asks for: a file that has it has one test.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    sync::atomic::{AtomicUsize, Ordering},
};

struct Counting;

static COUNT: AtomicUsize = AtomicUsize::new(0);

// SAFETY: passes everything on.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// Allocations of one of many equal steps, once they have run before. The least of three counts: on a busy
/// machine threads are called to their team anew, for which rayon asks for memory.
pub fn per_step(mut step: impl FnMut()) -> usize {
    const STEPS: usize = 50;
    let mut count = || {
        let before = COUNT.load(Ordering::Relaxed);
        (0..STEPS).for_each(|_| step());
        (COUNT.load(Ordering::Relaxed) - before) / STEPS
    };
    count();
    [(); 3].map(|()| count()).into_iter().min().unwrap_or_default()
}
