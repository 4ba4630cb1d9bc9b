use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// A folder with safetensors is a model itself; otherwise the one GGUF file in it is.
pub fn folder(folder: &Path) -> Result<PathBuf> {
    let has = |name: &str| folder.join(name).exists();
    if has("model.safetensors") || has("model.safetensors.index.json") {
        return Ok(folder.to_owned());
    }
    let entries = std::fs::read_dir(folder).with_context(|| format!("cannot read {folder:?}"))?;
    let mut files: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf")))
        .collect();
    files.sort();
    match files.as_slice() {
        [file] => Ok(file.clone()),
        [] => bail!(
            "{} holds no model: neither model.safetensors, nor model.safetensors.index.json, nor a \
             GGUF file",
            folder.display()
        ),
        [first, ..] => bail!(
            "{} holds {} GGUF files; name one of them, such as {}",
            folder.display(),
            files.len(),
            first.display()
        ),
    }
}
