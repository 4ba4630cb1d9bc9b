//! A tokenizer.json.
#![no_main]

use keepwell_fuzz::{folder, let_panics_be_caught, tokenize, write};
use keepwell_models::TextTokenizer;
use libfuzzer_sys::fuzz_target;

fuzz_target!(init: let_panics_be_caught(), |data: &[u8]| {
    write("tokenizer.json", data);
    if let Ok(tokenizer) = TextTokenizer::from_file(&folder().join("tokenizer.json"), Some("<s>")) {
        tokenize(&tokenizer);
    }
});
