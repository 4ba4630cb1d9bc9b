//! A compress event of SmolLM2-135M: scoring a cache, and moving its tokens to other tiers: time, and
//! bytes of the tokens a second.
//!
//! `cargo bench -p keepwell-kernels --bench compress [-- words in a name]`

mod rates;
#[path = "../tests/world/mod.rs"]
mod world;

use criterion::Throughput;
use keepwell_kernels::{
    Arena, Backend, Move, PageId, PageLayout, Scoring, Signal, Slot, Tier, portable::Portable,
};
use rates::{Arithmetic, Bench, each_backend, group};
use world::{ALL, Case, PLAIN, World};

const HEAD_DIM: usize = 64;
const NUM_KV_HEADS: usize = 3;
const GROUP: usize = 3;
const TOKENS: usize = 4096;
const SCORED: [usize; 2] = [32, 1];

fn main() {
    each_backend(Arithmetic::F32, |bench, backend| {
        SCORED.iter().for_each(|rows| score(bench, backend, *rows));
        for from in ALL {
            ALL.iter().for_each(|to| compact(bench, backend, *from, *to));
        }
    });
}

/// Bytes of a token of one head: codes, scales, position and attribution.
fn token_bytes(layout: &PageLayout, tier: Tier) -> usize {
    layout.page_bytes / layout.capacity(tier)
}

/// Counts the products of queries with keys and the distances of outputs from values.
fn score(bench: &mut Bench, backend: &dyn Backend, rows: usize) {
    let sequences = &[(TOKENS - 32, 32)];
    let case = Case { num_kv_heads: NUM_KV_HEADS, group: GROUP, sequences, tiers: ALL, ..PLAIN };
    let mut world = World::new(&case);
    let attended = world.attend(&Portable);
    world.plan.spans[0].scoring = Some(Scoring { rows, signal: Signal::Deletion, decay: 0.9 });
    let World { mut arena, plan, q } = world;
    let bytes = plan.pages.len() * arena.layout().page_bytes;
    let work = Throughput::ElementsAndBytes {
        elements: (5 * HEAD_DIM * NUM_KV_HEADS * GROUP * rows * TOKENS) as u64,
        bytes: bytes as u64,
    };
    group(bench, backend, work).bench_function(format!("score {rows} rows"), |bencher| {
        bencher.iter(|| backend.attribute(&mut arena, 0, &q, &attended, &plan).expect("shapes"));
    });
}

fn compact(bench: &mut Bench, backend: &dyn Backend, from: Tier, to: Tier) {
    let layout = PageLayout::new(HEAD_DIM);
    let bytes = token_bytes(&layout, from) + token_bytes(&layout, to);
    let work = Throughput::Bytes((TOKENS * bytes) as u64);
    let name = format!("move {} to {}", from.name(), to.name());
    let mut world = None;
    group(bench, backend, work).bench_function(name, |bencher| {
        // Only where the name is asked for.
        let (arena, moves) = world.get_or_insert_with(|| half_moves(from, to));
        bencher.iter(|| backend.compact(arena, moves).expect("slots in the arena"));
    });
}

/// Every other token moves to another page, as when the rest stays or is evicted.
fn half_moves(from_tier: Tier, to_tier: Tier) -> (Arena, Vec<Move>) {
    let case = Case { num_kv_heads: NUM_KV_HEADS, sequences: &[(2 * TOKENS, 1)], ..PLAIN };
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
    let fill = step(2 * TOKENS, Tier::F16, 0, 1, from_tier, 0);
    Portable.compact(&mut arena, &fill).expect("slots in the arena");
    let moves = step(TOKENS, from_tier, 0, 2, to_tier, num_pages / 2);
    (arena, moves)
}
