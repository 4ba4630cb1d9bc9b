//! A GGUF file: header, tokenizer, tensors.
#![no_main]

use keepwell_fuzz::{folder, let_panics_be_caught, open, write};
use libfuzzer_sys::fuzz_target;

fuzz_target!(init: let_panics_be_caught(), |data: &[u8]| {
    write("model.gguf", data);
    open(&folder().join("model.gguf"));
});
