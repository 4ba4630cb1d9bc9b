//! The text a model is calibrated on.

use std::borrow::Cow;
use std::convert::Infallible;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, Result, bail};

/// Written for the purpose: prose, talk, records, code, tables, and questions that look back.
const BUILT_IN: &str = include_str!("text.txt");

/// More than enough for what is measured; a longer file is read up to here.
const MAX_BYTES: u64 = 1 << 18;

/// What `--calibration` says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum CalibrationText {
    #[default]
    BuiltIn,
    Off,
    File(PathBuf),
}

impl FromStr for CalibrationText {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(match text {
            "auto" => Self::BuiltIn,
            "off" => Self::Off,
            file => Self::File(file.into()),
        })
    }
}

impl CalibrationText {
    /// None when there is to be no calibration.
    ///
    /// # Errors
    /// The file cannot be read, or is no text.
    pub fn read(&self) -> Result<Option<Cow<'static, str>>> {
        match self {
            Self::BuiltIn => Ok(Some(BUILT_IN.into())),
            Self::Off => Ok(None),
            Self::File(path) => read_text(path)
                .map(|text| Some(text.into()))
                .with_context(|| format!("--calibration {} cannot be used", path.display())),
        }
    }
}

fn read_text(path: &Path) -> Result<String> {
    let mut bytes = Vec::new();
    File::open(path)?.take(MAX_BYTES).read_to_end(&mut bytes)?;
    match String::from_utf8(bytes) {
        Ok(text) => Ok(text),
        // The limit may cut a character in two.
        Err(error) if error.utf8_error().error_len().is_none() => {
            let whole = error.utf8_error().valid_up_to();
            Ok(String::from_utf8_lossy(&error.as_bytes()[..whole]).into_owned())
        }
        Err(_) => bail!("it is not text in UTF-8; give a text like those the model will read"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn auto_is_the_built_in_text_off_is_none_and_the_rest_are_files() {
        let parse = |text: &str| text.parse::<CalibrationText>().unwrap();
        assert_eq!(parse("auto"), CalibrationText::default());
        assert_eq!(parse("off").read().unwrap(), None);
        assert_eq!(parse("./off"), CalibrationText::File("./off".into()));
    }

    #[test]
    fn the_built_in_text_has_the_length_that_measuring_takes() {
        // Some 3,600 tokens of SmolLM2, which gives every digit one of its own.
        assert!((12_000..16_000).contains(&BUILT_IN.len()), "{}", BUILT_IN.len());
        assert!(BUILT_IN.is_ascii(), "tokenizers differ most in what is not ASCII");
    }

    #[test]
    fn a_long_file_is_read_up_to_a_limit_even_inside_a_character() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("long.txt");
        std::fs::write(&path, format!("a{}", "\u{e4}".repeat(1 << 18))).unwrap();
        let text = CalibrationText::File(path).read().unwrap().unwrap();
        assert_eq!(text.len(), (1 << 18) - 1);
        assert!(text.ends_with('\u{e4}'));
    }

    #[test]
    fn a_missing_or_binary_file_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.gguf");
        let error = || format!("{:#}", CalibrationText::File(path.clone()).read().unwrap_err());
        assert!(error().contains("model.gguf"));
        std::fs::write(&path, [0xff; 8]).unwrap();
        assert!(error().contains("model.gguf") && error().contains("UTF-8"));
    }
}
