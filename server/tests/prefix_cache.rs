//! The prefix cache through the engine, on tiny models.

mod common;

use common::*;
use keepwell_server::{
    cache::Salt,
    engine::{EngineHandle, EngineOptions, Event, GenerateRequest, KvCacheParams, Outcome},
};

const MIB: usize = 1 << 20;
const CHUNK: usize = 64;
/// Layers times KV heads of both tiny models.
const NUM_HEADS: usize = 6;
const BUDGETS: [f32; 3] = [1.0, 0.6, 0.28];
const MODELS: [&str; 2] = ["tiny-llama3", "tiny-mistral"];

fn prompt(len: usize, seed: u32) -> Vec<u32> {
    (0..len as u32).map(|i| (i * 37 + i * i * seed) % 509 + 1).collect()
}

fn shared(tokens: &[u32], max_tokens: usize, budget: f32) -> GenerateRequest {
    let cache_salt = Some(Salt::default());
    GenerateRequest { cache_salt, ..greedy(tokens, max_tokens, squeezed(budget)) }
}

fn without_cache(kv_memory: usize) -> EngineOptions {
    EngineOptions { prefix_cache: false, ..options(kv_memory, CHUNK) }
}

fn run(engine: &EngineHandle, request: GenerateRequest) -> (Vec<u32>, Outcome) {
    let (tokens, outcome) = collect(engine.generate(request).unwrap()).unwrap();
    (tokens.iter().map(|token| token.id).collect(), outcome)
}

/// The engine tells of its memory before it waits for the next request.
fn await_idle(engine: &EngineHandle) {
    await_true(|| engine.snapshot().pages.num_live == 0);
}

fn await_true(is_so: impl Fn() -> bool) {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while !is_so() {
        assert!(std::time::Instant::now() < deadline, "it does not come to be so");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

#[test]
fn a_hit_gives_the_same_tokens_as_a_miss_whatever_the_budget() {
    let document = prompt(500, 3);
    for model in MODELS {
        for budget in BUDGETS {
            let (cold, _) = tiny(model, without_cache(64 * MIB));
            let (warm, _) = tiny(model, options(64 * MIB, CHUNK));
            for (nth, question) in [[5, 6, 7], [8, 9, 10], [5, 6, 7]].iter().enumerate() {
                let ask = || shared(&[&document[..], question].concat(), 80, budget);
                let (expected, none) = run(&cold, ask());
                let (tokens, outcome) = run(&warm, ask());
                assert_eq!(tokens, expected, "{model} at {budget}, request {nth}");
                assert_eq!(none.num_cached_tokens, 0);
                // The last event that leaves something is before the protected end of the prompt,
                // at 384; the chunk after it ends with 32 queries to be scored.
                let most = if budget < 1.0 { 416 } else { 496 };
                let num_cached = if nth == 0 { 0 } else { most };
                assert_eq!(outcome.num_cached_tokens, num_cached, "{model} at {budget}");
                let bytes = |outcome: &Outcome| outcome.kv_cache.bytes;
                assert_eq!(bytes(&outcome), bytes(&none), "{model} at {budget}");
            }
            await_idle(&warm);
        }
    }
}

#[test]
fn a_crowd_that_shares_answers_as_each_would_alone_even_where_memory_is_short() {
    let documents = [prompt(320, 3), prompt(320, 5)];
    for budget in BUDGETS {
        let asks: Vec<_> = (0..12)
            .map(|nth| {
                let own = prompt(10 + 3 * nth, 11 + nth as u32);
                let tokens = [&documents[nth % 2][..100 + 20 * nth], &own].concat();
                shared(&tokens, 40, budget)
            })
            .collect();
        let (alone, _) = tiny("tiny-llama3", without_cache(64 * MIB));
        let expected: Vec<_> = asks.iter().map(|ask| run(&alone, ask.clone()).0).collect();
        for kv_memory in [64 * MIB, MIB] {
            let (engine, _) = tiny("tiny-llama3", options(kv_memory, CHUNK));
            for round in 0..2 {
                let start = |ask: &GenerateRequest| engine.generate(ask.clone()).unwrap();
                let started: Vec<_> = asks.iter().map(start).collect();
                for (nth, generation) in started.into_iter().enumerate() {
                    let (tokens, _) = collect(generation).unwrap();
                    let ids: Vec<_> = tokens.iter().map(|token| token.id).collect();
                    assert_eq!(ids, expected[nth], "{nth} in round {round} at {budget}");
                }
            }
            await_idle(&engine);
        }
    }
}

#[test]
fn every_turn_of_a_chat_begins_with_the_turns_before() {
    let (engine, _) = tiny("tiny-llama3", options(64 * MIB, CHUNK));
    let mut tokens = prompt(100, 3);
    let mut known = 0;
    for turn in 0..4 {
        let (answer, outcome) = run(&engine, shared(&tokens, 30, 1.0));
        // All that was computed, in whole pages of eight tokens; the last token never is.
        assert_eq!(outcome.num_cached_tokens, known / 8 * 8, "turn {turn}");
        tokens.extend(answer);
        known = tokens.len() - 1;
        tokens.extend(prompt(9, 7 + turn));
    }
}

#[test]
fn choices_of_one_prompt_hold_it_once() {
    // 650 tokens in F16: four times 300 would not fit.
    let (engine, info) = tiny("tiny-llama3", options(MIB / 2, CHUNK));
    let ask = shared(&prompt(300, 3), 40, 1.0);
    let choices: Vec<_> = (0..4).map(|_| engine.generate(ask.clone()).unwrap()).collect();
    let outcomes: Vec<_> = choices.into_iter().map(|c| collect(c).unwrap().1).collect();
    let cached: Vec<_> = outcomes.iter().map(|outcome| outcome.num_cached_tokens).collect();
    assert_eq!(cached, [0, 296, 296, 296]);
    // Each counts what it references.
    let pages = 339usize.div_ceil(8) * NUM_HEADS;
    assert!(outcomes.iter().all(|o| o.kv_cache.bytes == pages * info.layout.page_bytes));
    assert_eq!(engine.snapshot().num_preemptions, 0);
}

#[test]
fn salts_and_requests_without_one_never_hit_each_other() {
    let (engine, _) = tiny("tiny-llama3", options(64 * MIB, CHUNK));
    let tokens = prompt(300, 3);
    let of = |cache_salt| GenerateRequest { cache_salt, ..shared(&tokens, 2, 1.0) };
    let salts = [Some(Salt::default()), Some(Salt([1; 32])), None, None];
    for salt in salts {
        assert_eq!(run(&engine, of(salt)).1.num_cached_tokens, 0, "{salt:?}");
    }
    for salt in &salts[..2] {
        assert_eq!(run(&engine, of(*salt)).1.num_cached_tokens, 296, "{salt:?}");
    }
}

#[test]
fn what_a_cancelled_request_computed_is_of_use_and_live_for_nobody() {
    for budget in BUDGETS {
        let (cold, _) = tiny("tiny-llama3", without_cache(64 * MIB));
        let (engine, _) = tiny("tiny-llama3", options(64 * MIB, CHUNK));
        let tokens = prompt(400, 3);
        let mut first = engine.generate(shared(&tokens, 400, budget)).unwrap();
        assert!(matches!(first.blocking_next(), Some(Event::Token(_))));
        drop(first);
        let ask = shared(&[&tokens[..], &[3, 4, 5]].concat(), 40, budget);
        let (answer, outcome) = run(&engine, ask.clone());
        assert_eq!(answer, run(&cold, ask).0, "at {budget}");
        assert!(outcome.num_cached_tokens >= 320, "{outcome:?}");
        await_idle(&engine);
        assert!(engine.snapshot().pages.num_cached > 0);
    }
}

#[test]
fn cached_pages_make_way_for_whoever_needs_them() {
    // Some 650 tokens in F16.
    let (engine, info) = tiny("tiny-llama3", options(MIB / 2, CHUNK));
    for seed in 3..9 {
        let (_, outcome) = run(&engine, shared(&prompt(500, seed), 60, 1.0));
        assert_eq!((outcome.num_generated_tokens, outcome.num_cached_tokens), (60, 0));
        let pages = || engine.snapshot().pages.clone();
        await_true(|| pages().num_live == 0 && pages().num_cached > 0);
        assert!(pages().num_cached <= info.num_pages);
    }
    assert_eq!(engine.snapshot().num_preemptions, 0);
    assert!(run(&engine, shared(&prompt(500, 8), 2, 1.0)).1.num_cached_tokens > 400);
}

#[test]
fn prompts_that_tell_of_all_their_tokens_are_computed_whole() {
    let (engine, _) = tiny("tiny-llama3", options(64 * MIB, CHUNK));
    let mut ask = shared(&prompt(300, 3), 2, 1.0);
    run(&engine, ask.clone());
    ask.sampling.prompt_logprobs = Some(0);
    let mut generation = engine.generate(ask).unwrap();
    let mut num_told = 0;
    while let Some(event) = generation.blocking_next() {
        match event {
            Event::PromptLogprobs(told) => num_told += told.len(),
            Event::Finished(outcome) => assert_eq!(outcome.num_cached_tokens, 0),
            _ => {}
        }
    }
    assert_eq!(num_told, 299);
}

#[test]
fn squeezed_requests_leave_nothing_that_pressure_influenced() {
    // Three of these do not fit as they were asked for.
    let kv_cache = KvCacheParams { min_budget: 0.2, ..squeezed(1.0) };
    let asks: Vec<_> = (0..5)
        .map(|nth| {
            let tokens = [&prompt(300, 3)[..], &prompt(30, 20 + nth)].concat();
            GenerateRequest { kv_cache, ..shared(&tokens, 100, 1.0) }
        })
        .collect();
    let (engine, _) = tiny("tiny-llama3", options(MIB / 2, CHUNK));
    let crowd: Vec<_> = asks.iter().map(|ask| engine.generate(ask.clone()).unwrap()).collect();
    let budgets = crowd.into_iter().map(|c| collect(c).unwrap().1.kv_cache.lowest_budget);
    assert!(budgets.fold(1.0, f32::min) < 1.0, "memory was not short");
    await_idle(&engine);
    let (cold, _) = tiny("tiny-llama3", without_cache(64 * MIB));
    for ask in asks {
        // Alone there is room for all of it.
        let (answer, outcome) = run(&engine, ask.clone());
        assert_eq!(outcome.kv_cache.lowest_budget, 1.0);
        assert_eq!(answer, run(&cold, ask).0);
    }
}
