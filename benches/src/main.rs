//! `keepwell-bench`: measures the engine.

mod bandwidth;
mod baseline;
mod engine;
mod report;
mod watch;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "keepwell-bench", about = "Measures Keepwell", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Tokens per second of the engine itself, without HTTP.
    Engine(engine::Arguments),
}

fn main() -> anyhow::Result<()> {
    match Arguments::parse().command {
        Command::Engine(arguments) => engine::run(&arguments),
    }
}
