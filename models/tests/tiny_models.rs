//! Two random models against Hugging Face transformers: llama3 RoPE scaling, and a sliding window.

mod common;

use std::sync::Arc;

use keepwell_kernels::{Backend, available};
use keepwell_models::{WeightFormat, load_model};

/// K and V are cached in f16; transformers computes in f32.
const TOLERANCE: f32 = 0.02;

fn check(name: &str, chunk_len: usize) {
    for backend in available() {
        let backend: Arc<dyn Backend> = Arc::from(backend);
        let model =
            load_model(&common::fixture(name), WeightFormat::AsFile, backend.clone()).unwrap();
        let golden = common::golden(&format!("{name}/golden.json"));
        for (index, case) in golden["cases"].as_array().unwrap().iter().enumerate() {
            let got = common::compare(&*model, &*backend, case, chunk_len);
            let place = format!("{name}, {}, case {index}", backend.name());
            assert!(got.top10 < TOLERANCE, "{place}: log-probabilities off by {}", got.top10);
            assert!(got.nll < TOLERANCE, "{place}: mean NLL off by {}", got.nll);
            assert!(got.greedy_gap < TOLERANCE, "{place}: greedy tokens off by {}", got.greedy_gap);
        }
    }
}

#[test]
fn llama_with_llama3_scaling_says_what_transformers_says() {
    check("tiny-llama3", usize::MAX);
}

#[test]
fn mistral_with_a_sliding_window_says_what_transformers_says() {
    check("tiny-mistral", usize::MAX);
}

#[test]
fn a_prompt_in_chunks_says_the_same_as_at_once() {
    check("tiny-llama3", 37);
    check("tiny-mistral", 50);
}
