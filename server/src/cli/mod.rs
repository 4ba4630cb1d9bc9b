//! The command line: `keepwell serve`, which is also what `keepwell` alone does,
//! `keepwell chat` and `keepwell health`.

mod args;
mod chat;
mod command;
mod drain;
mod health;
mod limits;
mod listen;
mod logs;
mod memory;
#[cfg(feature = "otlp")]
mod otlp;
mod prompt;
mod serve;
mod session;
mod start;
mod text;

use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::Result;
use clap::builder::Resettable;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand, error::ErrorKind};

use self::args::ModelArgs;
use self::chat::ChatArgs;
use self::health::HealthArgs;
use self::logs::Logs;
use self::serve::ServeArgs;

/// An LLM inference server that keeps what matters in its KV cache.
#[derive(Debug, Parser)]
#[command(name = "keepwell", version, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    serve: ServeArgs,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve the OpenAI API over HTTP (the default)
    Serve(ServeArgs),
    /// Talk to a model in the terminal
    Chat(ChatArgs),
    /// Ask a running server how it is: exit code 0 when it is well
    Health(HealthArgs),
}

/// Runs what the command line asks for.
///
/// # Errors
/// What the user can do something about: a port in use, an unknown model, too little memory.
pub fn run() -> Result<ExitCode> {
    let cli = parse(std::env::args_os().collect()).unwrap_or_else(|error| error.exit());
    match cli.command.unwrap_or(Command::Serve(cli.serve)) {
        Command::Serve(args) => {
            let _logs = prepare(&args.model)?;
            serve::run(&args)
        }
        Command::Chat(args) => {
            let _logs = prepare(&args.model)?;
            chat::run(&args)
        }
        Command::Health(args) => health::run(&args).map(|()| ExitCode::SUCCESS),
    }
}

/// `keepwell` alone has the server's flags. In front of a subcommand their variables are not read:
/// a wrong one must not keep `keepwell chat` from starting.
fn parse(args: Vec<OsString>) -> Result<Cli, clap::Error> {
    let mut command = Cli::command();
    if args.get(1).is_some_and(|arg| command.find_subcommand(arg).is_some()) {
        command = command.mut_args(|arg| arg.env(Resettable::Reset));
    }
    Cli::from_arg_matches(&command.try_get_matches_from(args)?)
}

/// What comes before any model: settings that contradict each other, logs, threads.
fn prepare(args: &ModelArgs) -> Result<Logs> {
    if let Err(message) = args.check() {
        Cli::command().error(ErrorKind::ValueValidation, message).exit();
    }
    let logs = logs::init(args)?;
    args.threads.start()?;
    Ok(logs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::calibrate::CalibrationText;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        super::parse(line.split(' ').map(OsString::from).collect())
    }

    #[test]
    fn every_flag_is_also_a_variable() {
        let root = Cli::command();
        for command in root.get_subcommands() {
            for arg in command.get_arguments() {
                let name = arg.get_long().unwrap().to_uppercase().replace('-', "_");
                let variable = arg.get_env().and_then(|variable| variable.to_str());
                assert_eq!(variable, Some(&*format!("KEEPWELL_{name}")));
            }
        }
    }

    #[test]
    fn the_definition_of_the_command_line_holds() {
        Cli::command().debug_assert();
    }

    #[test]
    fn without_a_subcommand_the_server_starts() {
        let cli = parse("keepwell --port 9000 --kv-memory 64MiB").unwrap();
        assert!(cli.command.is_none());
        assert_eq!(cli.serve.port, 9000);
        assert_eq!(cli.serve.model.kv_memory.unwrap().as_u64(), 64 << 20);
        assert!(matches!(
            parse("keepwell serve --port 1").unwrap().command,
            Some(Command::Serve(_))
        ));
        assert!(matches!(parse("keepwell chat").unwrap().command, Some(Command::Chat(_))));
    }

    #[test]
    fn values_out_of_range_are_refused_with_a_reason() {
        for (line, reason) in [
            ("keepwell --kv-budget 0", "above 0 and at most 1"),
            ("keepwell --kv-budget 1.5", "above 0 and at most 1"),
            ("keepwell --kv-budget much", "not a number"),
            ("keepwell --kv-memory 0", "above 0"),
            ("keepwell --kv-memory lots", "lots"),
            ("keepwell --policy magic", "attribution"),
            ("keepwell --max-sequences 0", "1.."),
            ("keepwell --port 70000", "65535"),
            ("keepwell --weights q2", "as-file"),
            ("keepwell --shutdown-timeout soon", "30s"),
        ] {
            let error = parse(line).unwrap_err().to_string();
            assert!(error.contains(reason), "{line}: {error}");
        }
    }

    #[test]
    fn the_cache_is_calibrated_on_a_text_of_ones_own_or_not_at_all() {
        let text = |line: &str| parse(line).unwrap().serve.model.calibration;
        assert_eq!(text("keepwell"), CalibrationText::BuiltIn);
        assert_eq!(text("keepwell --calibration auto"), CalibrationText::BuiltIn);
        assert_eq!(text("keepwell --calibration off"), CalibrationText::Off);
        let file = CalibrationText::File("notes.txt".into());
        assert_eq!(text("keepwell --calibration notes.txt"), file);
        assert!(parse("keepwell chat --calibration off").is_ok());
    }

    #[test]
    fn the_floor_may_not_be_above_the_budget() {
        let args = parse("keepwell --kv-budget 0.5 --kv-min-budget 0.6").unwrap().serve.model;
        assert!(args.check().unwrap_err().contains("--kv-min-budget"));
        let args = parse("keepwell --kv-budget 0.5 --kv-min-budget 0.5").unwrap().serve.model;
        assert_eq!(args.check(), Ok(()));
    }
}
