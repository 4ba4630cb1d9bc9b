//! Engines on the reference models, for tests that need real logits.
#![allow(dead_code)] // each test file uses its part

use std::{path::PathBuf, sync::Arc};

use keepwell_kernels::{Backend, available};
use keepwell_models::{LoadOptions, Loaded, WeightFormat, load, load_model};
use keepwell_server::{
    compress::{PolicyId, Protection},
    engine::{
        Engine, EngineError, EngineHandle, EngineInfo, EngineOptions, Event, GenerateRequest,
        Generation, KvCacheParams, Outcome, SampledToken, SamplingParams,
    },
    sched::{SchedulerLimits, UserId},
};
use serde::Deserialize;

/// One case of `golden.json`, made with Hugging Face transformers in f32.
#[derive(Clone, Debug, Deserialize)]
pub struct Case {
    pub input_ids: Vec<u32>,
    pub greedy_ids: Vec<u32>,
    pub last_top10_ids: Vec<u32>,
    pub last_top10_logprobs: Vec<f32>,
}

#[derive(Deserialize)]
struct Golden {
    cases: Vec<Case>,
}

pub fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../models/tests/fixtures").join(name)
}

pub fn cases(file: &str) -> Vec<Case> {
    let text = std::fs::read_to_string(fixture(file)).unwrap();
    serde_json::from_str::<Golden>(&text).unwrap().cases
}

pub fn fastest() -> Arc<dyn Backend> {
    available().remove(0).into()
}

pub fn options(kv_memory: usize, max_step_tokens: usize) -> EngineOptions {
    EngineOptions {
        kv_memory,
        limits: SchedulerLimits {
            max_step_tokens,
            max_running: 64,
            max_waiting: 256,
            max_waiting_tokens: usize::MAX,
        },
        protection: Protection::default(),
        calibration: Default::default(),
        on_panic: Default::default(),
        prefix_cache: true,
    }
}

pub fn tiny(name: &str, options: EngineOptions) -> (EngineHandle, EngineInfo) {
    tiny_on(fastest(), name, options)
}

pub fn tiny_on(
    backend: Arc<dyn Backend>,
    name: &str,
    options: EngineOptions,
) -> (EngineHandle, EngineInfo) {
    let model = load_model(&fixture(name), WeightFormat::AsFile, backend.clone()).unwrap();
    Engine::spawn(model, backend, options).unwrap()
}

pub fn smollm2(weights: WeightFormat) -> Loaded {
    let options = LoadOptions { weights, ..Default::default() };
    load("smollm2", &options, fastest()).unwrap()
}

pub fn full() -> KvCacheParams {
    squeezed(1.0)
}

pub fn squeezed(budget: f32) -> KvCacheParams {
    KvCacheParams { budget, min_budget: budget, policy: PolicyId::default() }
}

/// Greedy, without stop tokens.
pub fn greedy(prompt: &[u32], max_tokens: usize, kv_cache: KvCacheParams) -> GenerateRequest {
    GenerateRequest {
        prompt: prompt.to_vec(),
        max_tokens,
        may_shorten: false,
        stop_token_ids: vec![],
        sampling: SamplingParams {
            temperature: 0.0,
            logprobs: Some(10),
            ..SamplingParams::default()
        },
        kv_cache,
        priority: 0,
        user: UserId::ANONYMOUS,
        constraint: None,
        marked: Default::default(),
        pooling: None,
        cache_salt: None,
    }
}

pub fn collect(mut generation: Generation) -> Result<(Vec<SampledToken>, Outcome), EngineError> {
    let mut tokens = Vec::new();
    loop {
        match generation.blocking_next() {
            Some(Event::PromptLogprobs(_) | Event::Embedding(_)) => {}
            Some(Event::Token(token)) => tokens.push(token),
            Some(Event::Finished(outcome)) => return Ok((tokens, outcome)),
            Some(Event::Failed(error)) => return Err(error),
            None => return Err(EngineError::Stopped),
        }
    }
}

/// Greedy ids equal the reference up to a first place where its two likeliest tokens are within
/// `tie` of each other; the last prompt position's ten likeliest log-probabilities are within
/// `tolerance`.
pub fn check_case(case: &Case, tokens: &[SampledToken], tie: f32, tolerance: f32) {
    assert_eq!(tokens.len(), case.greedy_ids.len());
    let first = tokens[0].logprobs.as_ref().unwrap();
    for (id, expected) in case.last_top10_ids.iter().zip(&case.last_top10_logprobs) {
        // A token on the edge of the ten may have changed place with the eleventh.
        let least = first.top.last().unwrap().1;
        let actual = first.top.iter().find(|(top, _)| top == id).map_or(least, |(_, l)| *l);
        assert!((actual - expected).abs() <= tolerance, "token {id}: {actual} {expected}");
    }
    for (at, (token, expected)) in tokens.iter().zip(&case.greedy_ids).enumerate() {
        if token.id == *expected {
            continue;
        }
        let logprobs = token.logprobs.as_ref().unwrap();
        let of = |id| logprobs.top.iter().find(|(top, _)| *top == id).map(|(_, l)| *l);
        let margin = logprobs.chosen - of(*expected).unwrap_or(f32::NEG_INFINITY);
        assert!(margin <= tie, "token {at}: {} instead of {expected}, by {margin}", token.id);
        return;
    }
}
