//! Under which name a calibration is kept.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use keepwell_kernels::TIERS;
use rayon::prelude::*;
use sha2::{Digest, Sha256};

use super::file::VERSION;

/// Parts of a file that are hashed side by side: large models have many gigabytes.
const PART_BYTES: u64 = 64 << 20;
const BUFFER_BYTES: usize = 1 << 17;

/// Of everything that the outcome depends on: the contents of the model's files, the tokens of the
/// text, the tiers with their formats, and the version of what is measured.
///
/// # Errors
/// A file cannot be read.
pub fn key(model: &Path, tokens: &[u32]) -> Result<String> {
    let mut hash = Sha256::new();
    hash.update(format!("keepwell calibration {VERSION}\n{TIERS:?}\n"));
    for path in model_files(model)? {
        let digest = file_digest(&path);
        hash.update(digest.with_context(|| format!("cannot read {}", path.display()))?);
    }
    tokens.iter().for_each(|token| hash.update(token.to_le_bytes()));
    Ok(hex(&hash.finalize()))
}

/// The GGUF file, or a folder's settings and weights.
fn model_files(model: &Path) -> Result<Vec<PathBuf>> {
    if model.is_file() {
        return Ok(vec![model.to_owned()]);
    }
    let entries = model.read_dir().with_context(|| format!("cannot read {}", model.display()))?;
    let paths = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    let counts = |path: &PathBuf| {
        path.ends_with("config.json") || path.extension().is_some_and(|e| e == "safetensors")
    };
    let mut files: Vec<PathBuf> = paths.into_iter().filter(counts).collect();
    files.sort();
    Ok(files)
}

/// Of the digests of its parts, and its length.
fn file_digest(path: &Path) -> Result<[u8; 32]> {
    let len = path.metadata()?.len();
    let parts = (0..len.div_ceil(PART_BYTES)).into_par_iter();
    let digests = parts.map(|part| part_digest(path, part * PART_BYTES));
    let mut hash = Sha256::new();
    hash.update(len.to_le_bytes());
    digests.collect::<Result<Vec<_>>>()?.iter().for_each(|digest| hash.update(digest));
    Ok(hash.finalize().into())
}

fn part_digest(path: &Path, start: u64) -> Result<[u8; 32]> {
    let mut file = File::open(path)?;
    file.seek(SeekFrom::Start(start))?;
    let mut part = file.take(PART_BYTES);
    let mut hash = Sha256::new();
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        match part.read(&mut buffer)? {
            0 => return Ok(hash.finalize().into()),
            len => hash.update(&buffer[..len]),
        }
    }
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_changes_with_the_text_and_with_any_byte_of_the_model() {
        let folder = tempfile::tempdir().unwrap();
        let gguf = folder.path().join("model.gguf");
        std::fs::write(&gguf, b"weights").unwrap();
        let first = key(&gguf, &[1, 2, 3]).unwrap();
        assert_eq!(key(&gguf, &[1, 2, 3]).unwrap(), first);
        assert_ne!(key(&gguf, &[1, 2, 4]).unwrap(), first);
        std::fs::write(&gguf, b"weighty").unwrap();
        assert_ne!(key(&gguf, &[1, 2, 3]).unwrap(), first);
    }

    #[test]
    fn of_a_folder_the_settings_and_the_weights_count() {
        let folder = tempfile::tempdir().unwrap();
        let write =
            |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        let key = || key(folder.path(), &[]).unwrap();
        write("config.json", "{}");
        write("model.safetensors", "weights");
        let first = key();
        write("README.md", "read me");
        assert_eq!(key(), first);
        write("config.json", "{ }");
        let second = key();
        assert_ne!(second, first);
        write("model.safetensors", "heavier");
        assert_ne!(key(), second);
    }

    #[test]
    fn a_model_that_is_gone_has_no_key() {
        assert!(key(Path::new("./no/such/model"), &[]).is_err());
    }
}
