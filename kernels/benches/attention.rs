//! Attention of a layer of SmolLM2-135M over caches of each tier, with activations of 16 and of 8 bits:
//! time, bytes of cache and multiply-adds a second.
//!
//! `cargo bench -p keepwell-kernels --bench attention [-- words in a name]`

mod rates;
#[path = "../tests/world/mod.rs"]
mod world;

use criterion::Throughput;
use keepwell_kernels::{ActivationBits, Backend, TIERS, Tier};
use rates::{Arithmetic, Bench, each_backend, group};
use world::{Case, Sequences, World};

const NUM_LAYERS: usize = 30;
const HEAD_DIM: usize = 64;
const NUM_KV_HEADS: usize = 3;
const GROUP: usize = 3;
/// Tiers that a head with a quarter of the bytes of F16 has in use.
const LADDER: &[Tier] = &[Tier::K5V5, Tier::K5V4, Tier::K4V4, Tier::K4V4, Tier::K4V3, Tier::K3V3];
/// (what, sequences)
const STEPS: [(&str, Sequences); 6] = [
    ("decode at 2048", &[(2048, 1)]),
    ("decode at 7000", &[(7000, 1)]),
    ("decode 8 x 512", &[(512, 1); 8]),
    ("prefill 512", &[(0, 512)]),
    ("prefill 512 at 4000", &[(4000, 512)]),
    ("decode 5 x 100 + 7000", &[(100, 1), (7000, 1), (100, 1), (100, 1), (100, 1), (100, 1)]),
];

fn main() {
    each_backend(Arithmetic::F32, |bench, backend| {
        for (name, sequences) in STEPS.iter().filter(|_| backend.name() != "portable") {
            let coarse = backend.with_activations(ActivationBits::Eight);
            let tiers = TIERS.iter().map(|info| (info.name, std::slice::from_ref(&info.tier)));
            for (tier_name, tiers) in tiers.chain([("ladder", LADDER)]) {
                measure(bench, backend, &format!("{name} {tier_name}"), (sequences, tiers));
                if let Some(coarse) = &coarse {
                    let name = format!("{name} {tier_name}, 8 bits");
                    measure(bench, &**coarse, &name, (sequences, tiers));
                }
            }
        }
    });
}

/// Visits layers in turn, which together exceed the caches where a real step's do.
fn measure(
    bench: &mut Bench,
    backend: &dyn Backend,
    name: &str,
    (sequences, tiers): (Sequences, &'static [Tier]),
) {
    let decode = sequences.iter().all(|(_, new)| *new == 1);
    let mut worlds = Vec::new();
    let work = work(sequences, tiers);
    group(bench, backend, work).bench_function(name, |bencher| {
        // Only where the name is asked for.
        let num_layers = if decode { NUM_LAYERS } else { 1 };
        worlds.resize_with(num_layers, || World::new(&case(sequences, tiers)));
        let mut in_turn = worlds.iter().cycle();
        bencher.iter(|| in_turn.next().map(|world| world.attend(backend)));
    });
}

fn case(sequences: Sequences, tiers: &'static [Tier]) -> Case {
    let (num_kv_heads, group) = (NUM_KV_HEADS, GROUP);
    Case {
        head_dim: HEAD_DIM,
        num_kv_heads,
        group,
        sequences,
        window: None,
        tiers,
        shuffled: false,
    }
}

/// Of a layer.
fn work(sequences: Sequences, tiers: &[Tier]) -> Throughput {
    let layout = keepwell_kernels::PageLayout::new(HEAD_DIM);
    let tokens: usize = sequences.iter().map(|(old, new)| old + new).sum();
    let token_bytes = |tier: &Tier| layout.page_bytes as f64 / layout.capacity(*tier) as f64;
    // Pages of all tiers in turn: a coarse one holds more tokens.
    let mean = tiers.len() as f64 / tiers.iter().map(|t| 1.0 / token_bytes(t)).sum::<f64>();
    let pairs = |(old, new): &(usize, usize)| new * old + new * (new + 1) / 2;
    let pairs: usize = sequences.iter().map(pairs).sum();
    Throughput::ElementsAndBytes {
        elements: (4 * HEAD_DIM * NUM_KV_HEADS * GROUP * pairs) as u64,
        bytes: (NUM_KV_HEADS as f64 * tokens as f64 * mean) as u64,
    }
}
