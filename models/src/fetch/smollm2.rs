use std::path::{Path, PathBuf};
pub fn fetch(cache: &Path) -> anyhow::Result<PathBuf> {
    Ok(cache.join("SmolLM2-135M-Instruct.Q4_1.gguf"))
}
