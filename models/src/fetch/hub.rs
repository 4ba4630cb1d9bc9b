//! Models on the Hugging Face hub, kept in its own cache (`HF_HOME`).

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use hf_hub::{
    Cache, CacheRepo, Repo,
    api::sync::{Api, ApiBuilder, ApiRepo, Metadata},
};

use super::download::{self, Expected};
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
    fetch_from(std::env::var("HF_ENDPOINT").ok(), name, options)
}

fn fetch_from(endpoint: Option<String>, name: &Name, options: &LoadOptions) -> Result<PathBuf> {
    let cache = match &options.cache_dir {
        Some(folder) => Cache::new(std::path::absolute(folder)?.join("hub")),
        None => Cache::from_env(),
    };
    let repo = Repo::model(name.repo.clone());
    let mut builder = ApiBuilder::from_cache(cache.clone()).with_retries(3);
    if let Some(endpoint) = endpoint {
        builder = builder.with_endpoint(endpoint);
    }
    let api = builder.build().context("cannot set up the connection to the hub")?;
    let hub = Hub { repo: api.repo(repo.clone()), api, cache: cache.repo(repo) };
    let files = match hub.repo.info() {
        Ok(info) => info.siblings.into_iter().map(|file| file.rfilename).collect::<Vec<_>>(),
        Err(error) => {
            return cached(name, &hub.cache).with_context(|| {
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
        Some(file) => hub.get(&file),
        None => hub.safetensors(&files),
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

/// One repository, there and in the cache.
struct Hub {
    api: Api,
    repo: ApiRepo,
    cache: CacheRepo,
}

impl Hub {
    fn safetensors(&self, files: &[String]) -> Result<PathBuf> {
        let config = self.get("config.json")?;
        for file in SIDE_FILES.iter().filter(|side| files.iter().any(|file| file == *side)) {
            self.get(file)?;
        }
        let folder = config.parent().context("the hub's cache has no folder")?.to_owned();
        if files.iter().any(|file| file == "model.safetensors") {
            self.get("model.safetensors")?;
            return Ok(folder);
        }
        for shard in shards(&self.get(INDEX)?)? {
            self.get(&shard)?;
        }
        Ok(folder)
    }

    /// From the cache, or downloaded and checked; an interrupted download goes on where it stopped.
    /// Twice at most: the damage may be in what the interrupted one left.
    fn get(&self, file: &str) -> Result<PathBuf> {
        if let Some(path) = self.cache.get(file) {
            return Ok(path);
        }
        let url = self.repo.url(file);
        let mut whole = self.download(file, &url)?;
        if whole.is_err() {
            whole = self.download(file, &url)?;
        }
        whole.with_context(|| {
            format!(
                "{url} arrived damaged twice and was not kept; start again later, and check any \
                 proxy or mirror (HF_ENDPOINT) on the way"
            )
        })
    }

    /// The outer error is the network's; the inner one is the damage of a file that came, and is
    /// gone again.
    fn download(&self, file: &str, url: &str) -> Result<Result<PathBuf>> {
        let failed = || format!("cannot fetch {url}; check the network and start again to resume");
        let metadata = self.api.metadata(url).with_context(failed)?;
        let path = self.repo.download(file).with_context(failed)?;
        let checked = check(&path, &metadata);
        if checked.is_err() {
            remove(&path).with_context(|| format!("cannot remove {}", path.display()))?;
        }
        Ok(checked.map(|()| path))
    }
}

/// hf-hub checks nothing. The ETag of a large file (LFS) is its SHA-256; that of others is git's
/// SHA-1, and only their size is compared.
fn check(path: &Path, metadata: &Metadata) -> Result<()> {
    let expected = Expected { bytes: metadata.size() as u64, sha256: metadata.etag() };
    if expected.sha256.len() == 64 && expected.sha256.bytes().all(|b| b.is_ascii_hexdigit()) {
        return download::check(path, expected);
    }
    let bytes = path.metadata()?.len();
    ensure!(bytes == expected.bytes, "got {bytes} bytes of {}", expected.bytes);
    Ok(())
}

/// The file and, where that is a link into the cache, what it points to.
fn remove(path: &Path) -> std::io::Result<()> {
    let content = path.canonicalize()?;
    std::fs::remove_file(path)?;
    match content.exists() {
        true => std::fs::remove_file(content),
        false => Ok(()),
    }
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

/// What an earlier run left, without asking the hub.
fn cached(name: &Name, cache: &CacheRepo) -> Option<PathBuf> {
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
    use std::{
        collections::HashMap,
        io::{BufRead, BufReader, Write},
        net::{TcpListener, TcpStream},
        thread,
    };

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

    type Files = HashMap<&'static str, &'static str>;

    fn sha256(content: &str) -> String {
        download::copy_hashed(&mut content.as_bytes(), &mut std::io::sink()).unwrap()
    }

    /// A hub with one repository, `org/model`, until the process ends; returns its address. The
    /// first `num_damaged` downloads of GGUF files are not what their hash says.
    fn hub(files: Files, mut num_damaged: usize) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        thread::spawn(move || {
            for stream in listener.incoming() {
                answer(&mut stream.unwrap(), &files, &mut num_damaged);
            }
        });
        address
    }

    fn answer(stream: &mut TcpStream, files: &Files, num_damaged: &mut usize) {
        let lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(|l| l.ok());
        let head: Vec<String> = lines.take_while(|line| !line.is_empty()).collect();
        let Some(path) = head.first().and_then(|line| line.split(' ').nth(1)) else { return };
        let one_byte = head.iter().any(|line| line.to_lowercase() == "range: bytes=0-0");
        let listed: Vec<_> = files.keys().map(|f| serde_json::json!({"rfilename": f})).collect();
        let listing = serde_json::json!({"sha": "abc", "siblings": listed}).to_string();
        let file = path.strip_prefix("/org/model/resolve/main/").and_then(|file| files.get(file));
        let (status, body) = match (path, file) {
            ("/api/models/org/model/revision/main", _) => ("200 OK", listing.as_str()),
            (_, Some(file)) => ("206 Partial Content", *file),
            _ => ("404 Not Found", ""),
        };
        let is_lfs = path.ends_with(".gguf");
        let etag = if is_lfs { sha256(body) } else { path.replace('/', "-") };
        let damaged = is_lfs && !one_byte && *num_damaged > 0;
        *num_damaged -= usize::from(damaged);
        let sent = match (one_byte && file.is_some(), damaged) {
            (true, _) => body[..1].to_owned(),
            (_, true) => body.to_uppercase(),
            _ => body.to_owned(),
        };
        let head = format!(
            "HTTP/1.1 {status}\r\nContent-Length: {}\r\nContent-Range: bytes 0-{}/{}\r\n\
             ETag: \"{etag}\"\r\nX-Repo-Commit: abc\r\nConnection: close\r\n\r\n{sent}",
            sent.len(),
            sent.len().saturating_sub(1),
            body.len(),
        );
        stream.write_all(head.as_bytes()).unwrap();
    }

    /// Fetches twice: from the hub, then from the cache with the hub gone.
    fn fetch_twice(files: Files, model: &str) -> Result<(tempfile::TempDir, PathBuf)> {
        let folder = tempfile::tempdir()?;
        let cache_dir = Some(folder.path().to_owned());
        let options = LoadOptions { cache_dir, ..Default::default() };
        let name = Name::parse(model).unwrap();
        let first = fetch_from(Some(hub(files, 0)), &name, &options)?;
        let gone = Some("http://127.0.0.1:9".to_owned());
        assert_eq!(fetch_from(gone, &name, &options)?, first);
        Ok((folder, first))
    }

    #[test]
    fn a_sharded_repository_is_fetched_with_its_side_files_and_found_again_offline() {
        let files = Files::from([
            ("config.json", "{}"),
            ("tokenizer.json", "{\"a\": 1}"),
            ("model.safetensors.index.json", r#"{"weight_map": {"x": "a.safetensors"}}"#),
            ("a.safetensors", "weights"),
            ("pytorch_model.bin", "not wanted"),
        ]);
        let (_kept, folder) = fetch_twice(files, "org/model").unwrap();
        let read = |name: &str| std::fs::read_to_string(folder.join(name)).ok();
        assert_eq!(read("a.safetensors").as_deref(), Some("weights"));
        assert_eq!(read("tokenizer.json").as_deref(), Some("{\"a\": 1}"));
        assert_eq!(read("pytorch_model.bin"), None);
    }

    #[test]
    fn one_gguf_file_of_a_repository_is_fetched_by_name() {
        let files = || Files::from([("a.gguf", "first"), ("b.gguf", "second")]);
        let (_kept, path) = fetch_twice(files(), "org/model:b.gguf").unwrap();
        assert_eq!(std::fs::read_to_string(path).unwrap(), "second");
        let error = |model: &str| format!("{:#}", fetch_twice(files(), model).unwrap_err());
        assert!(error("org/model").contains("has 2 GGUF files; name one"));
        assert!(error("org/model:c.gguf").contains("no file `c.gguf`"));
        assert!(error("org/other").contains("local path or `smollm2`"));
    }

    /// `org/model:a.gguf` from a hub that damages its first downloads, after an interrupted run
    /// left `part`; and how many files are in the cache then.
    fn fetch_damaged(num_damaged: usize, part: Option<&str>) -> (Result<String>, usize) {
        let folder = tempfile::tempdir().unwrap();
        let blobs = folder.path().join("hub/models--org--model/blobs");
        std::fs::create_dir_all(&blobs).unwrap();
        if let Some(part) = part {
            std::fs::write(blobs.join(sha256("weights")).with_extension("part"), part).unwrap();
        }
        let options =
            LoadOptions { cache_dir: Some(folder.path().to_owned()), ..Default::default() };
        let hub = hub(Files::from([("a.gguf", "weights")]), num_damaged);
        let path = fetch_from(Some(hub), &Name::parse("org/model:a.gguf").unwrap(), &options);
        let kept = |name: &str| name.len() == 64;
        let names = std::fs::read_dir(&blobs).unwrap().map(|entry| entry.unwrap().file_name());
        let num_kept = names.filter(|name| kept(name.to_str().unwrap())).count();
        (path.map(|path| std::fs::read_to_string(path).unwrap()), num_kept)
    }

    #[test]
    fn a_damaged_download_is_repeated_once() {
        let (read, num_kept) = fetch_damaged(1, None);
        assert_eq!((read.unwrap().as_str(), num_kept), ("weights", 1));
    }

    #[test]
    fn a_download_that_stays_damaged_is_refused_and_not_kept() {
        let (read, num_kept) = fetch_damaged(2, None);
        let error = format!("{:#}", read.unwrap_err());
        assert!(error.contains("damaged twice") && error.contains("SHA-256"), "{error}");
        assert_eq!(num_kept, 0);
    }

    #[test]
    fn what_a_server_without_ranges_sends_again_is_not_appended() {
        let (read, _) = fetch_damaged(0, Some("weig"));
        assert_eq!(read.unwrap(), "weights");
    }
}
