//! Elementwise work of SmolLM2-135M, and its writes to the cache, on every backend of the host: time and
//! bytes a second. Those of a step stay in the caches, whose bytes come faster than memory's.
//!
//! `cargo bench -p keepwell-kernels --bench elementwise [-- words in a name]`

mod rates;

use candle_core::{Device, Tensor};
use criterion::Throughput;
use keepwell_kernels::{
    Arena, AttentionPlan, Backend, PageId, PageLayout, Rope, Slot, Span, Tier, plan::Write,
};
use rates::{Arithmetic, Bench, each_backend, group};

const NUM_ROWS: [usize; 3] = [1, 8, 512];
const WIDTH: usize = 576;
const FEED_FORWARD: usize = 1536;
const HEAD_DIM: usize = 64;
const NUM_KV_HEADS: usize = 3;
const NUM_HEADS: usize = 9;

fn main() {
    each_backend(Arithmetic::F32, |bench, backend| {
        for rows in NUM_ROWS {
            states(bench, backend, rows);
            cache_writes(bench, backend, rows);
        }
    });
}

fn states(bench: &mut Bench, backend: &dyn Backend, rows: usize) {
    let (x, y) = (uniform(rows, WIDTH), uniform(rows, WIDTH));
    let weight = uniform(1, WIDTH).flatten_all().expect("host memory");
    let gate_up = uniform(rows, 2 * FEED_FORWARD);
    let mut measure = |name: &str, floats: usize, run: &dyn Fn() -> Tensor| {
        let work = Throughput::Bytes(4 * (rows * floats) as u64);
        group(bench, backend, work)
            .bench_function(format!("{name} x {rows}"), |bencher| bencher.iter(run));
    };
    measure("rms_norm", 2 * WIDTH, &|| backend.rms_norm(&x, &weight, 1e-5).expect("shapes"));
    measure("add", 3 * WIDTH, &|| backend.add(&x, &y).expect("shapes"));
    measure("silu_mul", 3 * FEED_FORWARD, &|| backend.silu_mul(&gate_up).expect("shapes"));
}

/// RoPE, rotation and K and V in F16: as many floats out as in, the cached ones of two bytes.
fn cache_writes(bench: &mut Bench, backend: &dyn Backend, rows: usize) {
    let layout = PageLayout::new(HEAD_DIM);
    let capacity = layout.capacity(Tier::F16);
    let num_slots = NUM_KV_HEADS * rows;
    let slot =
        |i: usize| Slot { page: PageId((i / capacity) as u32), index: (i % capacity) as u16 };
    let plan = AttentionPlan {
        num_kv_heads: NUM_KV_HEADS,
        positions: (0..rows as u32).collect(),
        spans: vec![Span { rows: 0..rows, scoring: None }],
        writes: (0..num_slots).map(|i| Write { slot: slot(i), offset: 0 }).collect(),
        ..Default::default()
    };
    let mut arena = Arena::host(layout, num_slots.div_ceil(capacity)).expect("host memory");
    let frequencies = (0..HEAD_DIM / 2).map(|i| 0.7f32.powi(i as i32)).collect();
    let rope = Rope { frequencies, attention_factor: 1.0 }.table(&plan.positions);
    let (queries, cached) = (NUM_HEADS * HEAD_DIM, 2 * NUM_KV_HEADS * HEAD_DIM);
    let qkv = uniform(rows, queries + cached);
    let work = Throughput::Bytes((rows * (8 * queries + 6 * cached)) as u64);
    group(bench, backend, work).bench_function(format!("write_kv x {rows}"), |bencher| {
        bencher.iter(|| backend.write_kv(&mut arena, 0, &qkv, &rope, &plan).expect("shapes"));
    });
}

fn uniform(rows: usize, cols: usize) -> Tensor {
    Tensor::rand(-1f32, 1.0, (rows, cols), &Device::Cpu).expect("host memory")
}
