//! How often a whole decode step asks for memory.

mod common;
#[path = "../../kernels/tests/counting/mod.rs"]
mod counting;

use std::{path::Path, sync::Arc};

use candle_core::quantized::GgmlDType;
use common::files::{VOCAB, write_gguf};
use keepwell_kernels::{Backend, available, give_back};
use keepwell_models::{WeightFormat, load_model};

/// A step of one token after `depth` others.
fn of_step(file: &Path, backend: &Arc<dyn Backend>, depth: usize) -> usize {
    let model = load_model(file, WeightFormat::AsFile, backend.clone()).unwrap();
    let mut sequence = common::Sequence::new(&**backend, model.config(), depth + 1);
    let prompt: Vec<u32> = (0..depth as u32).map(|i| i % VOCAB as u32).collect();
    sequence.feed(&*model, &prompt, &[]);
    let plan = sequence.plan(1);
    counting::per_step(|| give_back(sequence.forward(&*model, &plan, &[7], &[0])))
}

#[test]
fn a_whole_step_allocates_nothing_however_long_the_sequence() {
    let backend: Arc<dyn Backend> = Arc::from(available().remove(0));
    if backend.has_own_memory() || backend.name() == "portable" {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tiny.gguf");
    write_gguf(&file, GgmlDType::Q4_1, &[]);
    let [short, long] = [100, 1500].map(|depth| of_step(&file, &backend, depth));
    assert_eq!([short, long], [0, 0], "{}", backend.name());
}
