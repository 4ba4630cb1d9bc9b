//! Budgets, policies and memory through the engine, on tiny models.

mod common;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use common::*;
use keepwell_kernels::{TIERS, Tier};
use keepwell_server::{
    compress::{POLICIES, PolicyId, Spans},
    engine::{
        EngineError, EngineHandle, EngineInfo, Event, GenerateRequest, KvCacheParams, Outcome,
        SampledToken, Snapshot,
    },
};

const MIB: usize = 1 << 20;
/// Holds some 650 tokens in F16.
const SMALL: usize = MIB / 2;
/// Layers times KV heads of both tiny models.
const NUM_HEADS: usize = 6;

fn prompt(len: usize) -> Vec<u32> {
    (0..len as u32).map(|i| i * 37 % 509 + 1).collect()
}

fn run(engine: &EngineHandle, len: usize, generated: usize, kv_cache: KvCacheParams) -> Outcome {
    let request = greedy(&prompt(len), generated, kv_cache);
    collect(engine.generate(request).unwrap()).unwrap().1
}

/// What one window adds: the tokens since the last event in F16, and partly empty pages.
fn window_bytes(info: &EngineInfo) -> usize {
    let pages = 64usize.div_ceil(8) + 1 + TIERS.len();
    NUM_HEADS * pages * info.layout.page_bytes
}

#[test]
fn every_policy_stays_within_every_budget_and_accounts_for_every_token() {
    let (engine, info) = tiny("tiny-llama3", options(64 * MIB, 128));
    for policy in POLICIES {
        for budget in [0.6, 0.28, 0.15] {
            let policy = PolicyId::from_name(policy.name()).unwrap();
            let kv_cache = KvCacheParams { budget, min_budget: budget, policy };
            let usage = run(&engine, 600, 100, kv_cache).kv_cache;
            let limit = (f64::from(budget) * usage.f16_bytes as f64) as usize;
            assert!(usage.bytes <= limit + window_bytes(&info), "{policy} at {budget}: {usage:?}");
            assert!(usage.bytes <= usage.peak_bytes && usage.peak_bytes < usage.f16_bytes);
            let entries = usage.tokens.values().sum::<usize>() + usage.evicted;
            assert_eq!(entries, usage.f16_bytes / info.layout.f16_token_bytes());
            assert_eq!(entries, (600 + 99) * NUM_HEADS, "the last token is never computed");
        }
    }
}

#[test]
fn a_smaller_budget_really_holds_fewer_bytes() {
    let (engine, _) = tiny("tiny-llama3", options(64 * MIB, 512));
    let bytes = [1.0, 0.6, 0.3, 0.15].map(|b| run(&engine, 800, 2, squeezed(b)).kv_cache.bytes);
    assert!(bytes.is_sorted_by(|a, b| a > b), "{bytes:?}");
}

#[test]
fn budget_one_keeps_every_token_in_f16() {
    let (engine, _) = tiny("tiny-mistral", options(64 * MIB, 64));
    let usage = run(&engine, 300, 100, squeezed(1.0)).kv_cache;
    assert_eq!(usage.tokens.values().sum::<usize>(), 399 * NUM_HEADS);
    assert_eq!(usage.tokens[Tier::F16], 399 * NUM_HEADS);
    assert_eq!(usage.evicted, 0);
}

#[test]
fn a_short_sequence_loses_no_token_even_at_the_smallest_budget() {
    let (engine, _) = tiny("tiny-llama3", options(64 * MIB, 64));
    let usage = run(&engine, 20, 10, squeezed(0.01)).kv_cache;
    assert_eq!(usage.evicted, 0);
    assert_eq!(usage.tokens.values().sum::<usize>(), 29 * NUM_HEADS);
}

#[test]
fn compressed_answers_are_the_same_every_time() {
    let (engine, _) = tiny("tiny-llama3", options(64 * MIB, 128));
    let answer = || {
        let request = greedy(&prompt(500), 90, squeezed(0.28));
        let (tokens, _) = collect(engine.generate(request).unwrap()).unwrap();
        tokens.iter().map(|t| t.id).collect::<Vec<_>>()
    };
    assert_eq!(answer(), answer());
}

#[test]
fn what_can_never_fit_is_refused_and_the_engine_lives_on() {
    let (engine, info) = tiny("tiny-llama3", options(SMALL, 128));
    let failed = collect(engine.generate(greedy(&prompt(900), 50, full())).unwrap());
    let Err(EngineError::DoesNotFit { needed_bytes, total_bytes }) = failed else {
        panic!("{failed:?}")
    };
    assert!(needed_bytes > total_bytes && total_bytes <= SMALL);
    assert_eq!(total_bytes, info.num_pages * info.layout.page_bytes);
    assert_eq!(run(&engine, 100, 5, full()).num_generated_tokens, 5);
}

#[test]
fn a_smaller_budget_is_not_refused_where_no_compression_is_served() {
    let (engine, _) = tiny("tiny-llama3", options(SMALL, 512));
    for budget in [1.0, 0.6, 0.28, 0.1] {
        assert_eq!(run(&engine, 500, 40, squeezed(budget)).num_generated_tokens, 40);
    }
}

#[test]
fn a_wish_that_fits_its_own_budget_when_shortened_is_not_squeezed() {
    let (engine, _) = tiny("tiny-llama3", options(SMALL, 64));
    let kv_cache = KvCacheParams { min_budget: 0.1, ..full() };
    let mut request = greedy(&prompt(50), 950, kv_cache);
    request.may_shorten = true;
    let usage = collect(engine.generate(request).unwrap()).unwrap().1.kv_cache;
    assert_eq!(usage.budget, 1.0);
}

#[test]
fn marked_tokens_are_kept_and_more_than_the_budget_can_keep_are_refused() {
    let (engine, _) = tiny("tiny-llama3", options(64 * MIB, 128));
    let marking = |span| GenerateRequest {
        marked: Spans::new(vec![span]),
        ..greedy(&prompt(900), 20, squeezed(0.1))
    };
    let evicted =
        |span| collect(engine.generate(marking(span)).unwrap()).unwrap().1.kv_cache.evicted;
    assert!(evicted(100..200) > 0);
    let failed = collect(engine.generate(marking(0..usize::MAX)).unwrap());
    let Err(EngineError::MarksTooMuch { num_marked: 900, most }) = failed else {
        panic!("{failed:?}")
    };
    assert!((100..900).contains(&most), "{most}");
    assert!(evicted(0..most) > 0);
}

fn elastic(min_budget: f32) -> KvCacheParams {
    KvCacheParams { min_budget, ..full() }
}

#[test]
fn a_request_that_does_not_fit_is_squeezed_no_further_than_it_must_be() {
    let (engine, _) = tiny("tiny-llama3", options(SMALL, 64));
    let usage = run(&engine, 900, 5, elastic(0.2)).kv_cache;
    assert!((0.3..0.75).contains(&usage.budget), "{usage:?}");
    assert!(usage.lowest_budget <= usage.budget && usage.peak_bytes <= SMALL);
}

#[test]
fn a_floor_changes_nothing_while_memory_suffices() {
    let (engine, _) = tiny("tiny-llama3", options(64 * MIB, 128));
    let answer = |kv_cache| {
        let generation = engine.generate(greedy(&prompt(500), 150, kv_cache)).unwrap();
        let (tokens, outcome) = collect(generation).unwrap();
        (tokens.iter().map(|t| t.id).collect::<Vec<_>>(), outcome.kv_cache)
    };
    assert_eq!(answer(elastic(0.1)), answer(full()));
}

/// Requests that need three times the arena in F16.
fn three_arenas(kv_cache: KvCacheParams) -> Vec<GenerateRequest> {
    (0..9).map(|nth| greedy(&prompt(250 + 40 * nth), 90, kv_cache)).collect()
}

#[test]
fn three_arenas_of_requests_fit_into_one_with_nobody_below_their_floor() {
    let (engine, info) = tiny("tiny-llama3", options(MIB, 64));
    let requests = three_arenas(elastic(0.2));
    let num_tokens: usize = requests.iter().map(|r| r.prompt.len() + r.max_tokens).sum();
    let arena = info.num_pages * info.layout.page_bytes;
    assert!(num_tokens * info.f16_token_bytes > 3 * arena);
    let running: Vec<_> = requests.into_iter().map(|r| engine.generate(r).unwrap()).collect();
    let outcomes: Vec<_> = running.into_iter().map(|g| collect(g).unwrap().1).collect();
    for outcome in &outcomes {
        assert_eq!(outcome.num_generated_tokens, 90);
        let usage = &outcome.kv_cache;
        assert!((0.2..=1.0).contains(&usage.lowest_budget), "{usage:?}");
        let entries = usage.tokens.values().sum::<usize>() + usage.evicted;
        assert_eq!(entries, usage.f16_bytes / info.layout.f16_token_bytes());
    }
    assert!(outcomes.iter().any(|outcome| outcome.kv_cache.lowest_budget < 1.0));
    let after = until_idle(&engine);
    assert_eq!((after.num_preemptions, after.pages.num_live, after.num_users), (0, 0, 0));
}

#[test]
fn whoever_asks_for_everything_loses_nothing_to_the_others() {
    let alone = || {
        let (engine, _) = tiny("tiny-llama3", options(64 * MIB, 64));
        collect(engine.generate(greedy(&prompt(200), 60, full())).unwrap()).unwrap()
    };
    let (engine, _) = tiny("tiny-llama3", options(MIB, 64));
    let exact = engine.generate(greedy(&prompt(200), 60, full())).unwrap();
    let others = three_arenas(elastic(0.2)).into_iter().map(|r| engine.generate(r).unwrap());
    let others: Vec<_> = others.collect();
    let (tokens, outcome) = collect(exact).unwrap();
    let ids = |tokens: Vec<SampledToken>| tokens.iter().map(|t| t.id).collect::<Vec<_>>();
    assert_eq!(ids(tokens), ids(alone().0));
    assert_eq!(outcome.kv_cache.tokens[Tier::F16], 259 * NUM_HEADS);
    assert_eq!((outcome.kv_cache.budget, outcome.kv_cache.lowest_budget), (1.0, 1.0));
    others.into_iter().for_each(|other| _ = collect(other).unwrap());
}

#[test]
fn a_crowd_without_limits_gives_way_and_ends_as_it_would_with_more_memory() {
    let answers = |kv_memory| {
        let (engine, _) = tiny("tiny-llama3", options(kv_memory, 64));
        let endless =
            |len| GenerateRequest { may_shorten: true, ..greedy(&prompt(len), 600, full()) };
        let running = [40, 70, 100].map(|len| engine.generate(endless(len)).unwrap());
        let answers =
            running.map(|g| collect(g).unwrap().0.iter().map(|t| t.id).collect::<Vec<_>>());
        (answers, until_idle(&engine).num_preemptions)
    };
    let (small, large) = (answers(MIB), answers(64 * MIB));
    assert_eq!(small.0, large.0);
    assert!(small.1 > 0 && large.1 == 0, "{} {}", small.1, large.1);
}

/// The engine's last word once everything has ended.
fn until_idle(engine: &EngineHandle) -> Arc<Snapshot> {
    let started = Instant::now();
    loop {
        let snapshot = engine.snapshot();
        if snapshot.sequences.is_empty() && snapshot.pages.num_live == 0 {
            return snapshot;
        }
        assert!(started.elapsed() < Duration::from_secs(10), "{snapshot:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_wish_for_tokens_is_shortened_to_what_memory_holds() {
    let (engine, _) = tiny("tiny-llama3", options(SMALL, 64));
    let mut request = greedy(&prompt(100), 900, full());
    request.may_shorten = true;
    let (tokens, _) = collect(engine.generate(request).unwrap()).unwrap();
    assert!((100..900).contains(&tokens.len()), "{}", tokens.len());
}

#[test]
fn a_crowd_in_a_small_arena_queues_and_finishes_with_the_answers_of_a_large_one() {
    let prompts: Vec<_> = (0..12).map(|i| prompt(40 + 13 * i)).collect();
    let answers = |kv_memory| {
        let (engine, _) = tiny("tiny-llama3", options(kv_memory, 64));
        let start = |p: &Vec<u32>| engine.generate(greedy(p, 60, full())).unwrap();
        let together: Vec<_> = prompts.iter().map(start).collect();
        let finish = |g| collect(g).unwrap().0.iter().map(|t| t.id).collect::<Vec<_>>();
        together.into_iter().map(finish).collect::<Vec<_>>()
    };
    assert_eq!(answers(64 * MIB), answers(MIB));
}

#[test]
fn a_dropped_generation_gives_way_to_the_next_one() {
    let (engine, _) = tiny("tiny-llama3", options(MIB, 64));
    let mut first = engine.generate(greedy(&prompt(500), 300, full())).unwrap();
    assert!(matches!(first.blocking_next(), Some(Event::Token(_))));
    let mut second = engine.generate(greedy(&prompt(500), 300, full())).unwrap();
    drop(first);
    // Two of these do not fit at once. A third, asked for only now, comes after the second: if the
    // first still ran, neither would have started before its 300 tokens were done.
    let started = std::time::Instant::now();
    assert!(matches!(second.blocking_next(), Some(Event::Token(_))));
    let until_first_token = started.elapsed();
    assert_eq!(collect(second).unwrap().1.num_generated_tokens, 300);
    assert!(until_first_token < started.elapsed() / 2, "waited for what was cancelled");
}

#[test]
fn stopping_finishes_with_the_usage_so_far() {
    let (engine, _) = tiny("tiny-llama3", options(64 * MIB, 64));
    let mut generation = engine.generate(greedy(&prompt(50), 900, full())).unwrap();
    assert!(matches!(generation.blocking_next(), Some(Event::Token(_))));
    generation.stop();
    let outcome = collect(generation).unwrap().1;
    assert!(outcome.num_generated_tokens < 900 && outcome.kv_cache.bytes > 0);
}
