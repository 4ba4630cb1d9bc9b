//! A seven-digit number hidden in a thousand tokens of a novel, asked for at the end.

mod common;

use common::*;
use keepwell_models::{ChatTemplate, Loaded, TextTokenizer, WeightFormat, template::Prompt};
use keepwell_server::{
    calibrate::{CalibrationText, obtain},
    engine::{Engine, EngineHandle, EngineOptions, KvCacheParams},
};
use serde_json::json;

const PLACEMENTS: usize = 16;
const HAYSTACK_TOKENS: usize = 1000;

struct Haystack {
    engine: EngineHandle,
    tokenizer: TextTokenizer,
    template: ChatTemplate,
    tokens: Vec<u32>,
}

fn haystack() -> Haystack {
    let loaded = smollm2(WeightFormat::AsFile);
    let text = CalibrationText::default().read().unwrap();
    let calibration = obtain(text.as_deref(), &loaded, &*fastest()).calibration;
    let Loaded { model, tokenizer, template, .. } = loaded;
    let options = EngineOptions { calibration, ..options(256 << 20, 512) };
    let (engine, _) = Engine::spawn(model, fastest(), options).unwrap();
    let text =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/alice.txt"));
    let tokens = tokenizer.encode(&text.unwrap(), false).unwrap();
    Haystack { engine, tokenizer, template: template.unwrap(), tokens }
}

impl Haystack {
    /// The needle of a placement: seven digits.
    fn needle(placement: usize) -> u32 {
        1_000_000 + (placement as u32 + 1) * 514_229 % 8_999_999
    }

    fn prompt(&self, placement: usize) -> Vec<u32> {
        let at = (2 * placement + 1) * HAYSTACK_TOKENS / (2 * PLACEMENTS);
        let decode = |tokens: &[u32]| self.tokenizer.decode(tokens);
        let (before, after) = self.tokens[..HAYSTACK_TOKENS].split_at(at);
        let needle = Self::needle(placement);
        let content = format!(
            "{} The secret number is {needle}. {}\n\nWhat is the secret number?",
            decode(before),
            decode(after)
        );
        let messages = json!([{ "role": "user", "content": content }]);
        let prompt = Prompt { messages: &messages, tools: None, add_generation_prompt: true };
        self.tokenizer.encode(&self.template.render(&prompt).unwrap(), false).unwrap()
    }

    /// In how many placements the answer holds the number.
    fn found(&self, kv_cache: KvCacheParams) -> usize {
        let start = |placement| {
            self.engine.generate(greedy(&self.prompt(placement), 24, kv_cache)).unwrap()
        };
        let generations: Vec<_> = (0..PLACEMENTS).map(start).collect();
        let found = |(placement, generation)| {
            let (tokens, outcome) = collect(generation).unwrap();
            let ids: Vec<_> = tokens.iter().map(|t| t.id).collect();
            let answer = self.tokenizer.decode(&ids);
            let share = outcome.kv_cache.bytes as f64 / outcome.kv_cache.f16_bytes as f64;
            println!("{placement}: {:?} of {}, {share:.3}", answer, Self::needle(placement));
            answer.contains(&Self::needle(placement).to_string())
        };
        generations.into_iter().enumerate().map(found).filter(|found| *found).count()
    }
}

#[test]
fn the_number_is_found_with_the_full_cache_and_with_an_eighth_of_it() {
    let haystack = haystack();
    for (budget, fewest) in [(1.0, 14), (0.28, 14), (0.2, 12), (0.125, 8)] {
        let found = haystack.found(squeezed(budget));
        println!("{found} of {PLACEMENTS} at budget {budget}");
        assert!(found >= fewest, "{found} of {PLACEMENTS} at budget {budget}");
    }
    haystack.engine.shutdown();
}
