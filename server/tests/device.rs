//! The engine where its cache lies in a device's memory, which the host does not see: a CUDA device's
//! (`cargo test --release -p keepwell-server --features cuda --test device`), or an emulated one's
//! (`--features cuda-emu`).
#![cfg(any(feature = "cuda", feature = "cuda-emu"))]

mod common;

use common::*;
use keepwell_kernels::{Choice, available, open};
use keepwell_server::{
    cache::Salt,
    engine::{EngineHandle, EngineInfo, EngineOptions, GenerateRequest, KvCacheParams, Outcome},
};

const MIB: usize = 1 << 20;
const NUM_HEADS: usize = 6;

/// `None` in a build for devices on a machine that has none.
fn tiny_on_device(options: EngineOptions) -> Option<(EngineHandle, EngineInfo)> {
    let device = available().into_iter().find(|backend| backend.has_own_memory());
    assert!(device.is_some() || cfg!(not(feature = "cuda-emu")));
    Some(tiny_on(device?.into(), "tiny-llama3", options))
}

fn prompt(len: usize) -> Vec<u32> {
    (0..len as u32).map(|i| i * 37 % 509 + 1).collect()
}

fn run(engine: &EngineHandle, request: GenerateRequest) -> (Vec<u32>, Outcome) {
    let (tokens, outcome) = collect(engine.generate(request).unwrap()).unwrap();
    (tokens.iter().map(|token| token.id).collect(), outcome)
}

#[test]
fn an_exact_answer_is_that_of_the_cpu() {
    let Some((on_device, _)) = tiny_on_device(options(MIB, 64)) else { return };
    let cpu = open(Choice::Cpu).unwrap();
    let (on_cpu, _) = tiny_on(cpu.into(), "tiny-llama3", options(MIB, 64));
    let request = || greedy(&prompt(150), 20, full());
    assert_eq!(run(&on_device, request()).0, run(&on_cpu, request()).0);
}

#[test]
fn a_budget_holds_and_every_token_is_accounted_for() {
    let Some((engine, info)) = tiny_on_device(options(MIB, 128)) else { return };
    for budget in [0.6, 0.2] {
        let usage = run(&engine, greedy(&prompt(400), 70, squeezed(budget))).1.kv_cache;
        let window = NUM_HEADS * 48 * info.layout.page_bytes;
        let limit = (f64::from(budget) * usage.f16_bytes as f64) as usize + window;
        assert!(usage.bytes <= limit && usage.bytes < usage.f16_bytes, "{budget}: {usage:?}");
        let entries = usage.tokens.values().sum::<usize>() + usage.evicted;
        assert_eq!(entries, (400 + 69) * NUM_HEADS);
    }
}

#[test]
fn a_prefix_is_found_and_the_answer_stays_the_same() {
    let Some((engine, _)) = tiny_on_device(options(MIB, 64)) else { return };
    for budget in [1.0, 0.6] {
        let request = || GenerateRequest {
            cache_salt: Some(Salt::default()),
            ..greedy(&prompt(200), 10, squeezed(budget))
        };
        let ((first, miss), (again, hit)) = (run(&engine, request()), run(&engine, request()));
        assert!(hit.num_cached_tokens > miss.num_cached_tokens, "{budget}: {hit:?}");
        assert_eq!(first, again);
    }
}

#[test]
fn requests_that_do_not_fit_together_are_squeezed() {
    let Some((engine, _)) = tiny_on_device(options(MIB / 2, 128)) else { return };
    let kv_cache = KvCacheParams { min_budget: 0.2, ..full() };
    let generations: Vec<_> =
        (0..3).map(|_| engine.generate(greedy(&prompt(300), 40, kv_cache)).unwrap()).collect();
    let outcomes: Vec<_> =
        generations.into_iter().map(|generation| collect(generation).unwrap().1).collect();
    assert!(outcomes.iter().all(|outcome| outcome.num_generated_tokens == 40));
    assert!(outcomes.iter().any(|outcome| outcome.kv_cache.lowest_budget < 1.0), "{outcomes:?}");
}
