//! Under what a run was made: what is needed to make it again.

use std::{ffi::OsString, path::PathBuf, time::Duration};

use anyhow::{Context, Result};
use serde::Serialize;

use super::source::Source;

#[derive(Clone, Debug, Serialize)]
pub struct Conditions {
    pub command: Vec<String>,
    pub version: &'static str,
    pub kernels: String,
    pub threads: usize,
    pub texts: Vec<Text>,
    /// What calibrating the KV cache took; `None` if its outcome was in the cache folder already.
    pub calibration_seconds: Option<f64>,
}

/// A text that is measured on.
#[derive(Clone, Debug, Serialize)]
pub struct Text {
    pub file: PathBuf,
    pub bytes: u64,
    pub tokens: usize,
}

impl Conditions {
    /// # Errors
    /// A text that cannot be read any more.
    pub fn new(
        kernels: &str,
        files: &[PathBuf],
        source: &Source,
        calibrated_in: Option<Duration>,
    ) -> Result<Self> {
        let text = |(file, tokens): (&PathBuf, &Vec<u32>)| {
            let bytes = file.metadata().with_context(|| format!("cannot read {file:?}"))?.len();
            Ok(Text { file: file.clone(), bytes, tokens: tokens.len() })
        };
        Ok(Self {
            command: command(std::env::args_os()),
            version: env!("CARGO_PKG_VERSION"),
            kernels: kernels.to_owned(),
            threads: rayon::current_num_threads(),
            texts: files.iter().zip(&source.texts).map(text).collect::<Result<_>>()?,
            calibration_seconds: calibrated_in.map(|time| time.as_secs_f64()),
        })
    }

    /// A line for those who read the report.
    pub fn words(&self) -> String {
        let calibrated = match self.calibration_seconds {
            Some(seconds) => format!("measured in {seconds:.0} s"),
            None => "not measured in this run".to_owned(),
        };
        format!(
            "Keepwell {}, kernels {}, {} threads; calibration {calibrated}; {}",
            self.version,
            self.kernels,
            self.threads,
            self.command.join(" ")
        )
    }
}

/// `env::args` panics where a path is no Unicode.
fn command(words: impl Iterator<Item = OsString>) -> Vec<String> {
    words.map(|word| word.to_string_lossy().into_owned()).collect()
}

#[cfg(test)]
pub mod tests {
    use super::*;

    pub fn conditions(calibration_seconds: Option<f64>) -> Conditions {
        Conditions {
            command: vec!["keepwell-bench".into(), "eval".into()],
            version: "1.2.3",
            kernels: "portable".into(),
            threads: 2,
            texts: Vec::new(),
            calibration_seconds,
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_path_that_is_no_unicode_stands_in_the_command_as_well_as_it_can() {
        use std::os::unix::ffi::OsStringExt;
        let words = [b"eval".to_vec(), b"book\xff.txt".to_vec()].map(OsString::from_vec);
        assert_eq!(command(words.into_iter()), ["eval", "book\u{fffd}.txt"]);
    }

    #[test]
    fn a_report_says_under_what_it_was_made() {
        assert_eq!(
            conditions(Some(41.3)).words(),
            "Keepwell 1.2.3, kernels portable, 2 threads; calibration measured in 41 s; \
             keepwell-bench eval"
        );
        assert!(conditions(None).words().contains("not measured in this run"));
    }
}
