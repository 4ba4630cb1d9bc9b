//! What is wrong with an evaluation's arguments, said before a model is loaded and calibrated.

use std::{fmt::Display, fs};

use anyhow::{Context, Result, ensure};
use keepwell_server::calibrate::CalibrationText;

use super::{Arguments, task, tasks::MOST_LINES};

/// # Errors
/// Something named twice, which would count samples twice; a name, a number or a file that cannot be
/// used; or a text that is measured on and calibrated on.
pub fn check(arguments: &Arguments) -> Result<()> {
    let Arguments { tasks, policies, budgets, modes, lengths, lines, .. } = arguments;
    let mut named = tasks.iter().chain(arguments.baselines_in.iter().flatten());
    named.try_for_each(|name| task(name).map(drop))?;
    named_once("--tasks", tasks)?;
    named_once("--policies", policies)?;
    named_once("--budgets", budgets)?;
    named_once("--modes", modes)?;
    named_once("--lengths", lengths)?;
    named_once("--lines", lines)?;
    ensure!(arguments.chunk > 0, "--chunk must be at least 1");
    for num_lines in lines {
        let fits = (1..=MOST_LINES).contains(num_lines);
        ensure!(fits, "--lines {num_lines}: a record has 1 to {MOST_LINES} lines");
    }
    texts(arguments)
}

fn named_once(flag: &str, values: &[impl Display + PartialEq]) -> Result<()> {
    for (index, value) in values.iter().enumerate() {
        ensure!(!values[..index].contains(value), "{flag} names {value} twice");
    }
    Ok(())
}

/// All of them are there, and none is the one calibrated on.
fn texts(arguments: &Arguments) -> Result<()> {
    let find = |path| fs::canonicalize(path).with_context(|| format!("cannot read {path:?}"));
    let texts = arguments.text.iter().map(find).collect::<Result<Vec<_>>>()?;
    named_once("--text", &texts.iter().map(|path| path.display().to_string()).collect::<Vec<_>>())?;
    if let CalibrationText::File(path) = &arguments.calibration {
        let of_both = texts.contains(&find(path)?);
        ensure!(!of_both, "{path:?} is calibrated on: measure on another text");
    }
    Ok(())
}
