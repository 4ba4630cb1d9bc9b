//! The engine against Hugging Face transformers, with compression off.

mod common;

use common::*;
use keepwell_models::WeightFormat;
use keepwell_server::engine::{Engine, EngineHandle, SampledToken};

const MIB: usize = 1 << 20;
const TINY: [&str; 2] = ["tiny-llama3", "tiny-mistral"];

fn run(engine: &EngineHandle, case: &Case) -> Vec<SampledToken> {
    let request = greedy(&case.input_ids, case.greedy_ids.len(), full());
    collect(engine.generate(request).unwrap()).unwrap().0
}

fn ids(tokens: &[SampledToken]) -> Vec<u32> {
    tokens.iter().map(|t| t.id).collect()
}

#[test]
fn tiny_models_equal_the_reference_past_their_window_and_their_original_context() {
    for name in TINY {
        let (engine, _) = tiny(name, options(64 * MIB, 512));
        for case in cases(&format!("{name}/golden.json")) {
            let tokens = run(&engine, &case);
            assert_eq!(ids(&tokens), case.greedy_ids, "{name}, {} tokens", case.input_ids.len());
            check_case(&case, &tokens, 0.0, 0.02);
        }
        engine.shutdown();
    }
}

#[test]
fn whole_prefill_equals_chunked_prefill_equals_batched_with_strangers() {
    for name in TINY {
        let cases = cases(&format!("{name}/golden.json"));
        for max_step_tokens in [7, 64, 1024] {
            let (engine, _) = tiny(name, options(64 * MIB, max_step_tokens));
            let start = |case: &Case| {
                engine.generate(greedy(&case.input_ids, case.greedy_ids.len(), full())).unwrap()
            };
            let together: Vec<_> = cases.iter().map(start).collect();
            for (case, generation) in cases.iter().zip(together) {
                assert_eq!(ids(&collect(generation).unwrap().0), case.greedy_ids);
            }
            engine.shutdown();
        }
    }
}

fn check_smollm2(weights: WeightFormat, tie: f32, tolerance: f32) {
    let (engine, _) =
        Engine::spawn(smollm2(weights).model, fastest(), options(256 * MIB, 256)).unwrap();
    let cases = cases("smollm2.json");
    let start = |case: &Case| {
        engine.generate(greedy(&case.input_ids, case.greedy_ids.len(), full())).unwrap()
    };
    let together: Vec<_> = cases.iter().map(start).collect();
    for (case, generation) in cases.iter().zip(together) {
        check_case(case, &collect(generation).unwrap().0, tie, tolerance);
    }
    for case in &cases {
        check_case(case, &run(&engine, case), tie, tolerance);
    }
    engine.shutdown();
}

#[test]
fn smollm2_with_f32_weights_equals_the_reference_alone_and_batched() {
    check_smollm2(WeightFormat::F32, 0.02, 0.02);
}

#[test]
fn smollm2_with_packed_weights_equals_the_reference_alone_and_batched() {
    // The bounds of f32 weights: activations of 16 bits lose next to nothing.
    check_smollm2(WeightFormat::AsFile, 0.02, 0.02);
}
