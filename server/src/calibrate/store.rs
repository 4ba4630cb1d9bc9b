//! Calibrations in the cache folder, one file each.
//!
//! A file appears under its name only when it is whole, so that reading needs no lock. Whoever means
//! to measure holds the lock: a second process waits, and then loads what the first one measured.

use std::fs::{File, TryLockError};
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tracing::{info, warn};

use super::Calibration;
use super::file::{Shape, decode, encode};

/// Where one calibration is kept.
#[derive(Clone, Debug)]
pub struct Store {
    folder: PathBuf,
    key: String,
    shape: Shape,
}

/// A calibration, and where it came from.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Known {
    pub calibration: Calibration,
    /// What measuring it took; `None` if it was there already, or there is none.
    pub measured_in: Option<Duration>,
}

impl Store {
    /// `cache`: the folder for all that can be had again.
    pub fn new(cache: &Path, key: String, shape: Shape) -> Self {
        Self { folder: cache.join("calibrations"), key, shape }
    }

    /// From the cache, or measured and kept there for the next time. A cache that cannot be used is
    /// a warning.
    ///
    /// # Errors
    /// Those of `measure`.
    pub fn load_or(
        &self,
        model: &str,
        measure: impl FnOnce() -> Result<Calibration>,
    ) -> Result<Known> {
        let lock = self.lock();
        let lock = lock.inspect_err(|error| warn!("a calibration cannot be kept: {error:#}")).ok();
        match self.load() {
            Ok(Some(calibration)) => return Ok(Known { calibration, measured_in: None }),
            Ok(None) => {}
            Err(error) => warn!("{} is ignored: {error:#}", self.path().display()),
        }
        let start = Instant::now();
        let calibration = measure()?;
        let measured_in = Some(start.elapsed());
        // Without the lock somebody else may be writing.
        if lock.is_some()
            && let Err(error) = self.save(&calibration, model)
        {
            warn!("the calibration is not kept: {error:#}");
        }
        Ok(Known { calibration, measured_in })
    }

    fn path(&self) -> PathBuf {
        self.folder.join(format!("{}.safetensors", self.key))
    }

    /// None when there is none.
    fn load(&self) -> Result<Option<Calibration>> {
        let path = self.path();
        match path.metadata() {
            // Opening a pipe would wait for its other end.
            Ok(file) => ensure!(file.is_file(), "it is no file"),
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.into()),
        }
        let max_bytes = self.shape.max_bytes();
        let mut bytes = Vec::new();
        File::open(&path)?.take(max_bytes as u64 + 1).read_to_end(&mut bytes)?;
        ensure!(bytes.len() <= max_bytes, "it is longer than any calibration of this model");
        decode(&bytes, self.shape).map(Some)
    }

    /// To be called under the lock.
    fn save(&self, calibration: &Calibration, model: &str) -> Result<()> {
        let bytes = encode(calibration, model)?;
        let part = self.folder.join(format!("{}.part", self.key));
        let mut file =
            File::create(&part).with_context(|| format!("cannot write {}", part.display()))?;
        file.write_all(&bytes)?;
        file.sync_all()?;
        Ok(std::fs::rename(&part, self.path())?)
    }

    /// Held until it is dropped, or the process ends.
    fn lock(&self) -> Result<File> {
        let shown = self.folder.display();
        let made = std::fs::create_dir_all(&self.folder);
        made.with_context(|| format!("cannot make the folder {shown}"))?;
        let lock = File::create(self.folder.join(format!("{}.lock", self.key)));
        let lock = lock.with_context(|| format!("cannot write to {shown}"))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                info!("another process calibrates this model; waiting for it");
                lock.lock()?;
            }
            Err(TryLockError::Error(error)) => return Err(error.into()),
        }
        Ok(lock)
    }
}

#[cfg(test)]
mod tests;
