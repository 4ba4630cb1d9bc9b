//! A device's kernels, one at a time: microseconds a launch, and the bytes that the head of its file
//! counts over the time, in GB/s: to be read as a share of the card's bandwidth.
//!
//! `cargo bench -p keepwell-kernels --features cuda --bench device [words that a line has to contain]`

#[path = "../tests/world/mod.rs"]
mod world;

use std::time::Instant;

use candle_core::{Device, Tensor, quantized::GgmlDType};
use keepwell_kernels::{Backend, Move, RawMatrix, Scoring, Signal, Slot, TIERS, Tier, available};
use world::{Case, PLAIN, World, copy_to, on, on_host};

/// A layer of an 8B model with 8 KV heads, 16 sequences decoding at depth 4096.
const DECODE: Case =
    Case { head_dim: 128, num_kv_heads: 8, group: 4, sequences: &[(4096, 1); 16], ..PLAIN };
const PREFILL: Case = Case { sequences: &[(3584, 512)], ..DECODE };
/// (rows of x, out, in)
const PRODUCTS: [(usize, usize, usize); 3] =
    [(1, 28_672, 4096), (16, 28_672, 4096), (512, 28_672, 4096)];

fn main() {
    for backend in available().into_iter().filter(|backend| backend.has_own_memory()) {
        for info in &TIERS {
            for (name, case) in [("decode", DECODE), ("prefill", PREFILL)] {
                let title = format!("{:6} {name:8} {:6}", backend.name(), info.name);
                if is_wanted(&title) {
                    cache(
                        &*backend,
                        &title,
                        &Case { tiers: std::slice::from_ref(&info.tier), ..case },
                    );
                }
            }
        }
        for (num_rows, out, cols) in PRODUCTS {
            let title = format!("{:6} product  {num_rows} x {out} x {cols} q8_0", backend.name());
            if is_wanted(&title) {
                product(&*backend, &title, (num_rows, out, cols));
            }
        }
    }
}

fn is_wanted(title: &str) -> bool {
    std::env::args().skip(1).all(|arg| arg == "--bench" || title.contains(&arg))
}

/// Attention, attribution and a move of every token to the tier it has.
fn cache(backend: &dyn Backend, title: &str, case: &Case) {
    let mut world = World::new(case);
    for span in &mut world.plan.spans {
        span.scoring = Some(Scoring { rows: 16, signal: Signal::Deletion, decay: 0.9 });
    }
    let (mut arena, q) = (copy_to(&world.arena, backend), on(backend, &world.q));
    let plan = &world.plan;
    let layout = *arena.layout();
    let bytes: usize =
        plan.pages.iter().map(|p| usize::from(p.len) * layout.token_bytes(p.tier)).sum();
    let attended = backend.attention(&arena, 0, &q, plan).expect("shapes");
    let wait = || drop(on_host(&attended.lse));
    let attend = || drop(backend.attention(&arena, 0, &q, plan).expect("shapes"));
    report(&format!("{title} attention"), bytes, time(attend, wait));
    let attribute = || backend.attribute(&mut arena, 0, &q, &attended, plan).expect("shapes");
    report(&format!("{title} attribution"), bytes, time(attribute, wait));
    let moves = moves(&world);
    let compact = || backend.compact(&mut arena, &moves).expect("slots in the arena");
    report(&format!("{title} compact"), 2 * bytes, time(compact, wait));
}

/// Every token changes places with its neighbour's.
fn moves(world: &World) -> Vec<Move> {
    let slot = |page, index| Slot { page, index };
    let of_page = |page: &keepwell_kernels::PageRef| {
        let (id, tier, len): (_, Tier, u16) = (page.page, page.tier, page.len);
        (0..len).map(move |index| Move {
            from: slot(id, index),
            from_tier: tier,
            to: slot(id, (index + 1) % len),
            to_tier: tier,
            offset: 0,
        })
    };
    world.plan.pages.iter().flat_map(of_page).collect()
}

fn product(backend: &dyn Backend, title: &str, (num_rows, rows, cols): (usize, usize, usize)) {
    let dtype = GgmlDType::Q8_0;
    let data = vec![1; rows * cols / dtype.block_size() * dtype.type_size()];
    let linear = backend.linear(vec![RawMatrix { dtype, rows, cols, data }]).expect("a matrix");
    let x = Tensor::ones((num_rows, cols), candle_core::DType::F32, &Device::Cpu).expect("memory");
    let (x, wait) =
        (on(backend, &x), on(backend, &Tensor::zeros(1, x.dtype(), &Device::Cpu).expect("memory")));
    let multiply = || drop(linear.forward(&x).expect("shapes"));
    report(title, linear.bytes(), time(multiply, || drop(on_host(&wait))));
}

/// Seconds a call, the fastest of some rounds; `wait` ends when all before it is done.
fn time(mut call: impl FnMut(), wait: impl Fn()) -> f64 {
    const CALLS: u32 = 20;
    let mut round = || {
        wait();
        let start = Instant::now();
        (0..CALLS).for_each(|_| call());
        wait();
        start.elapsed().as_secs_f64() / f64::from(CALLS)
    };
    (0..5).map(|_| round()).fold(f64::INFINITY, f64::min)
}

fn report(title: &str, bytes: usize, seconds: f64) {
    let rate = bytes as f64 / seconds / 1e9;
    println!("{title:48} {:10.1} us {rate:8.1} GB/s", seconds * 1e6);
}
