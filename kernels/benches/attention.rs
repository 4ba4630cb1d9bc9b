//! Attention of SmolLM2-135M over caches of each tier: milliseconds a step, GB/s of cache, GFLOP/s.
//!
//! `cargo bench -p keepwell-kernels --bench attention [words that a line has to contain]`

mod ceiling;
#[path = "../tests/world/mod.rs"]
mod world;

use std::time::Instant;

use keepwell_kernels::{Backend, TIERS, Tier, available};
use world::{Case, Sequences, World};

const NUM_LAYERS: f64 = 30.0;
/// Tiers that a head with a quarter of the bytes of F16 has in use.
const LADDER: &[Tier] = &[Tier::K5V5, Tier::K5V4, Tier::K4V4, Tier::K4V4, Tier::K4V3, Tier::K3V3];
/// (what, sequences)
const STEPS: [(&str, Sequences); 6] = [
    ("decode at 2048", &[(2048, 1)]),
    ("decode at 7000", &[(7000, 1)]),
    ("decode 8 x 512", &[(512, 1); 8]),
    ("prefill 512", &[(0, 512)]),
    ("prefill 512 at 4000", &[(4000, 512)]),
    ("decode 7 x 100 + 7000", &[(100, 1), (7000, 1), (100, 1), (100, 1), (100, 1), (100, 1)]),
];

fn main() {
    let read = ceiling::read_bandwidth();
    println!("reading memory: {read:.1} GB/s with {} threads", rayon::current_num_threads());
    // The step runs inside the pool: a call from outside costs a wake-up each time.
    rayon::scope(|_| {
        for backend in available() {
            if backend.name() != "portable" && !backend.has_own_memory() {
                STEPS
                    .iter()
                    .for_each(|(name, sequences)| measure(&*backend, name, sequences, read));
            }
        }
    });
}

fn measure(backend: &dyn Backend, name: &str, sequences: Sequences, read: f64) {
    let tiers = TIERS.iter().map(|info| (info.name, std::slice::from_ref(&info.tier)));
    for (tier_name, tiers) in tiers.chain([("ladder", LADDER)]) {
        let title = format!("{:7} {name:22} {tier_name:7}", backend.name());
        if !std::env::args().skip(1).all(|arg| arg == "--bench" || title.contains(&arg)) {
            continue;
        }
        let case = Case {
            head_dim: 64,
            num_kv_heads: 3,
            group: 3,
            sequences,
            window: None,
            tiers,
            shuffled: false,
        };
        let decode = sequences.iter().all(|(_, new)| *new == 1);
        let worlds: Vec<_> =
            (0..if decode { NUM_LAYERS as usize } else { 1 }).map(|_| World::new(&case)).collect();
        let seconds = time(backend, &worlds);
        let tokens: usize = sequences.iter().map(|(old, new)| old + new).sum();
        let layout = worlds[0].arena.layout();
        let token_bytes = |tier: &Tier| layout.page_bytes as f64 / layout.capacity(*tier) as f64;
        let mean = tiers.len() as f64 / tiers.iter().map(|t| 1.0 / token_bytes(t)).sum::<f64>();
        let pairs = |(old, new): &(usize, usize)| new * old + new * (new + 1) / 2;
        let flops = 4.0 * 64.0 * 9.0 * sequences.iter().map(pairs).sum::<usize>() as f64;
        let gigabytes = 3.0 * tokens as f64 * mean / seconds / 1e9;
        println!(
            "{title}: {:8.2} ms a step, {gigabytes:5.1} GB/s ({:3.0} %), {:6.1} GFLOP/s",
            seconds * NUM_LAYERS * 1e3,
            gigabytes / read * 100.0,
            flops / seconds / 1e9,
        );
    }
}

/// Seconds of one layer: the fastest of rounds that each visit every world.
fn time(backend: &dyn Backend, worlds: &[World]) -> f64 {
    let round = |_| {
        let start = Instant::now();
        for world in worlds {
            std::hint::black_box(world.attend(backend));
        }
        start.elapsed().as_secs_f64() / worlds.len() as f64
    };
    (0..9).map(round).fold(f64::INFINITY, f64::min)
}
