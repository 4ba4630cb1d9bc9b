//! A compress event of SmolLM2-135M: scoring a cache, and moving its tokens to other tiers.
//! Nanoseconds per (token, layer, KV head).
//!
//! `cargo bench -p keepwell-kernels --bench compress [words that a line has to contain]`

#[path = "../tests/world/mod.rs"]
mod world;

use std::time::Instant;

use keepwell_kernels::{
    Backend, Move, PageId, Scoring, Signal, Slot, Tier, available, portable::Portable,
};
use world::{ALL, Case, PLAIN, World};

const TOKENS: usize = 4096;
const SCORED: [(&str, usize); 2] = [("score 32 rows", 32), ("score 1 row", 1)];

fn main() {
    rayon::scope(|_| {
        for backend in available().into_iter().filter(|backend| !backend.has_own_memory()) {
            for (name, rows) in SCORED {
                report(&*backend, name, || score(&*backend, rows));
            }
            for from in ALL {
                for to in ALL {
                    let name = format!("move {} to {}", from.name(), to.name());
                    report(&*backend, &name, || compact(&*backend, *from, *to));
                }
            }
        }
    });
}

fn report(backend: &dyn Backend, name: &str, nanoseconds: impl Fn() -> f64) {
    let title = format!("{:8} {name}", backend.name());
    if std::env::args().skip(1).all(|arg| arg == "--bench" || title.contains(&arg)) {
        println!("{title:24}: {:8.1} ns a token", nanoseconds());
    }
}

/// The fastest of some runs.
fn fastest(mut run: impl FnMut()) -> f64 {
    let time = |_| {
        let start = Instant::now();
        run();
        start.elapsed().as_secs_f64()
    };
    (0..99).map(time).fold(f64::INFINITY, f64::min) * 1e9
}

fn score(backend: &dyn Backend, rows: usize) -> f64 {
    let case = Case { num_kv_heads: 3, sequences: &[(TOKENS - 32, 32)], tiers: ALL, ..PLAIN };
    let mut world = World::new(&case);
    let attended = world.attend(&Portable);
    world.plan.spans[0].scoring = Some(Scoring { rows, signal: Signal::Deletion, decay: 0.9 });
    let World { mut arena, plan, q } = world;
    let time = fastest(|| backend.attribute(&mut arena, 0, &q, &attended, &plan).expect("shapes"));
    time / (3 * TOKENS) as f64
}

/// Every other token moves to another page, as when the rest stays or is evicted.
fn compact(backend: &dyn Backend, from_tier: Tier, to_tier: Tier) -> f64 {
    let case = Case { num_kv_heads: 3, sequences: &[(2 * TOKENS, 1)], ..PLAIN };
    let World { mut arena, .. } = World::new(&case);
    let layout = *arena.layout();
    let num_pages = arena.num_pages() as u32;
    let slot = |tier: Tier, token: usize, first: u32| {
        let capacity = layout.capacity(tier);
        let page = PageId(first + (token / capacity) as u32);
        Slot { page, index: (token % capacity) as u16 }
    };
    let step = |tokens: usize, from_tier: Tier, from: u32, every: usize, to_tier: Tier, to: u32| {
        let token = |token: usize| Move {
            from: slot(from_tier, every * token, from),
            from_tier,
            to: slot(to_tier, token, to),
            to_tier,
            offset: token as i16,
        };
        (0..tokens).map(token).collect::<Vec<_>>()
    };
    assert!(2 * TOKENS / 8 < num_pages as usize / 2);
    let half = num_pages / 2;
    let fill = step(2 * TOKENS, Tier::F16, 0, 1, from_tier, 0);
    Portable.compact(&mut arena, &fill).expect("slots in the arena");
    let moves = step(TOKENS, from_tier, 0, 2, to_tier, half);
    fastest(|| backend.compact(&mut arena, &moves).expect("slots in the arena")) / TOKENS as f64
}
