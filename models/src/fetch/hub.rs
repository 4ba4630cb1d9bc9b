//! Models on the Hugging Face hub, kept in its own cache (`HF_HOME`).

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use hf_hub::{
    Cache, Repo,
    api::sync::{ApiBuilder, ApiRepo},
};

use crate::{LoadOptions, checkpoint::read_json, weights::safetensors::is_plain_file_name};

/// `org/name` or `org/name:file.gguf`.
#[derive(Debug, PartialEq)]
pub struct Name {
    repo: String,
    file: Option<String>,
}

impl Name {
    /// None when `model` is no such name.
    pub fn parse(model: &str) -> Option<Self> {
        let (repo, file) = match model.split_once(':') {
            Some((repo, file)) => (repo, Some(file.to_owned())),
            None => (model, None),
        };
        let (org, name) = repo.split_once('/')?;
        let plain = |part: &str| {
            let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
            !part.is_empty() && !part.starts_with('.') && part.chars().all(allowed)
        };
        let file_fits = file.as_deref().is_none_or(is_plain_file_name);
        (plain(org) && plain(name) && file_fits).then(|| Self { repo: repo.to_owned(), file })
    }
}

/// Files beside the weights, fetched when the repository has them.
const SIDE_FILES: [&str; 4] =
    ["generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"];
const INDEX: &str = "model.safetensors.index.json";

/// The path of the GGUF file or of the folder with safetensors.
pub fn fetch(name: &Name, options: &LoadOptions) -> Result<PathBuf> {
    let cache = match &options.cache_dir {
        Some(folder) => Cache::new(std::path::absolute(folder)?.join("hub")),
        None => Cache::from_env(),
    };
    let repo = Repo::model(name.repo.clone());
    let mut builder = ApiBuilder::from_cache(cache.clone()).with_retries(3);
    if let Ok(endpoint) = std::env::var("HF_ENDPOINT") {
        builder = builder.with_endpoint(endpoint);
    }
    let api =
        builder.build().context("cannot set up the connection to the hub")?.repo(repo.clone());
    let files = match api.info() {
        Ok(info) => info.siblings.into_iter().map(|file| file.rfilename).collect::<Vec<_>>(),
        Err(error) => {
            let cached = cached(name, &cache.repo(repo));
            return cached.with_context(|| {
                format!(
                    "cannot reach `{}` on the hub ({error}), and it is not in the cache; check the \
                     name and the network, log in if it is a gated model (HF_TOKEN), or give a \
                     local path or `smollm2`",
                    name.repo
                )
            });
        }
    };
    match gguf_file(name, &files)? {
        Some(file) => get(&api, &file),
        None => safetensors(&api, &files),
    }
}

/// The GGUF file that is meant, if any.
fn gguf_file(name: &Name, files: &[String]) -> Result<Option<String>> {
    if let Some(file) = &name.file {
        ensure!(files.contains(file), "`{}` has no file `{file}` on the hub", name.repo);
        return Ok(Some(file.clone()));
    }
    if files.iter().any(|file| file == "model.safetensors" || file == INDEX) {
        return Ok(None);
    }
    let ggufs: Vec<_> = files.iter().filter(|file| file.ends_with(".gguf")).collect();
    match ggufs.as_slice() {
        [] => bail!("`{}` on the hub has neither safetensors nor GGUF files", name.repo),
        [file] => Ok(Some((*file).clone())),
        [first, ..] => bail!(
            "`{}` has {} GGUF files; name one, such as {}:{first}",
            name.repo,
            ggufs.len(),
            name.repo
        ),
    }
}

fn safetensors(api: &ApiRepo, files: &[String]) -> Result<PathBuf> {
    let config = get(api, "config.json")?;
    for file in SIDE_FILES.iter().filter(|side| files.iter().any(|file| file == *side)) {
        get(api, file)?;
    }
    let folder = config.parent().context("the hub's cache has no folder")?.to_owned();
    if files.iter().any(|file| file == "model.safetensors") {
        get(api, "model.safetensors")?;
        return Ok(folder);
    }
    for shard in shards(&get(api, INDEX)?)? {
        get(api, &shard)?;
    }
    Ok(folder)
}

fn shards(index: &Path) -> Result<Vec<String>> {
    let index = read_json(index)?.unwrap_or_default();
    let map = index["weight_map"].as_object().context("the index has no `weight_map`")?;
    let mut names: Vec<_> = map.values().filter_map(|v| v.as_str()).map(str::to_owned).collect();
    names.sort();
    names.dedup();
    ensure!(names.iter().all(|name| is_plain_file_name(name)), "the index names odd files");
    Ok(names)
}

/// From the cache, or downloaded; an interrupted download goes on where it stopped.
fn get(api: &ApiRepo, file: &str) -> Result<PathBuf> {
    api.get(file).with_context(|| {
        format!("cannot fetch {}; check the network and start again to resume", api.url(file))
    })
}

/// What an earlier run left, without asking the hub.
fn cached(name: &Name, cache: &hf_hub::CacheRepo) -> Option<PathBuf> {
    if let Some(file) = &name.file {
        return cache.get(file);
    }
    let folder = cache.get("config.json")?.parent()?.to_owned();
    let complete = match cache.get(INDEX) {
        Some(index) => shards(&index).ok()?.iter().all(|shard| folder.join(shard).exists()),
        None => folder.join("model.safetensors").exists(),
    };
    complete.then_some(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_on_the_hub_have_two_plain_parts_and_perhaps_a_file() {
        let name = |repo: &str, file: Option<&str>| {
            Some(Name { repo: repo.to_owned(), file: file.map(str::to_owned) })
        };
        assert_eq!(Name::parse("org/a-b_1.0"), name("org/a-b_1.0", None));
        assert_eq!(Name::parse("org/a:b.gguf"), name("org/a", Some("b.gguf")));
        for no_name in ["plain", "/abs/path", "../up", "a/b/c", "a/", "a/b:../c", "a b/c", "a/b:"] {
            assert_eq!(Name::parse(no_name), None, "{no_name}");
        }
    }
}
