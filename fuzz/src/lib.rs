//! What the targets share.

use std::{fs, path::Path, sync::OnceLock};

use keepwell_models::{Checkpoint, TextTokenizer, WeightFormat, registry, tokenizer};
use keepwell_kernels::available;
use tempfile::TempDir;

/// A folder in memory, for what can only be read from files.
pub fn folder() -> &'static Path {
    static FOLDER: OnceLock<TempDir> = OnceLock::new();
    let make = || {
        let memory = Path::new("/dev/shm");
        let folder = if memory.is_dir() { TempDir::new_in(memory) } else { TempDir::new() };
        folder.expect("a temporary folder")
    };
    FOLDER.get_or_init(make).path()
}

/// Panics that are caught and become errors are not what is looked for: libFuzzer's own hook would end
/// at them. One that nobody catches still ends the target.
pub fn let_panics_be_caught() {
    std::panic::set_hook(Box::new(|_| {}));
}

/// Up to two parts, each with its length in two bytes before it, and the rest.
pub fn parts(data: &[u8]) -> Option<(&[u8], &[u8])> {
    let (len, rest) = data.split_first_chunk()?;
    rest.split_at_checked(u16::from_le_bytes(*len).into())
}

pub fn write(name: &str, data: &[u8]) {
    fs::write(folder().join(name), data).expect("room for a small file");
}

/// Reads a model's files to the end, as far as they go.
pub fn open(path: &Path) {
    let Ok(checkpoint) = Checkpoint::open(path, WeightFormat::AsFile) else { return };
    if checkpoint.is_gguf {
        let _ = tokenizer::special_ids(&checkpoint.metadata);
        if let Ok(tokenizer) = TextTokenizer::from_gguf(&checkpoint.metadata) {
            tokenize(&tokenizer);
        }
    }
    let _ = registry::build(&checkpoint, available().remove(0).into());
}

/// To ids and back, with a text that meets all that tokenizers are about.
pub fn tokenize(tokenizer: &TextTokenizer) {
    let text = "<s> Hello,\n world 1234 \u{e9}\u{4e2d}\u{1f600}  x</s>";
    if let Ok(ids) = tokenizer.encode(text, true) {
        tokenizer.decode(&ids);
    }
    let some = (0..tokenizer.vocab_size() as u32).step_by(1 + tokenizer.vocab_size() / 64);
    tokenizer.decode(&some.collect::<Vec<_>>());
}
