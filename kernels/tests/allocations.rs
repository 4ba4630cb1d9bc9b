//! How often a decode step asks for memory, once it has run before.

mod world;

use std::{
    alloc::{GlobalAlloc, Layout, System},
    sync::atomic::{AtomicUsize, Ordering},
};

use candle_core::{
    Device, Tensor,
    quantized::{GgmlDType, QTensor},
};
use keepwell_kernels::{Backend, RawMatrix, available};

use world::{ALL, Case, PLAIN, Sequences, World};

/// Counts what the whole process asks for: this file has one test.
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

/// Allocations of one of many equal steps.
fn per_step(step: impl Fn()) -> usize {
    const STEPS: usize = 50;
    (0..STEPS).for_each(|_| step());
    let before = COUNT.load(Ordering::Relaxed);
    (0..STEPS).for_each(|_| step());
    (COUNT.load(Ordering::Relaxed) - before) / STEPS
}

fn of_attention(backend: &dyn Backend, sequences: Sequences) -> usize {
    let world = World::new(&Case { sequences, tiers: ALL, num_kv_heads: 3, ..PLAIN });
    per_step(|| drop(world.attend(backend)))
}

fn of_product(backend: &dyn Backend, rows: usize) -> usize {
    let x = Tensor::ones((1, 64), candle_core::DType::F32, &Device::Cpu).unwrap();
    let weights = Tensor::ones((rows, 64), candle_core::DType::F32, &Device::Cpu).unwrap();
    let dtype = GgmlDType::Q4_1;
    let data = QTensor::quantize(&weights, dtype).unwrap().data().unwrap().into_owned();
    let linear = backend.linear(vec![RawMatrix { dtype, rows, cols: 64, data }]).unwrap();
    per_step(|| drop(linear.forward(&x).unwrap()))
}

/// Results and lists of what is to be done are allocated; nothing for each part of the work.
#[test]
fn a_decode_step_allocates_no_more_often_the_more_there_is_to_read() {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
    let on_host = available().into_iter().filter(|backend| !backend.has_own_memory());
    for backend in on_host.filter(|backend| backend.name() != "portable") {
        pool.install(|| {
            let (short, long) =
                (of_attention(&*backend, &[(600, 1)]), of_attention(&*backend, &[(6000, 1)]));
            let (small, large) = (of_product(&*backend, 32), of_product(&*backend, 8192));
            let name = backend.name();
            println!("{name}: attention {short}, {long}; product {small}, {large}");
            assert!(long <= short + 8 && long <= 32, "{name}: {short} and {long}");
            assert!(large <= small + 4 && large <= 16, "{name}: {small} and {large}");
        });
    }
}
