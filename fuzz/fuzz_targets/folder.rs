//! A model's folder: config.json, then safetensors.
#![no_main]

use keepwell_fuzz::{folder, open, parts, write};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((config, tensors)) = parts(data) else { return };
    write("config.json", config);
    write("model.safetensors", tensors);
    open(folder());
});
