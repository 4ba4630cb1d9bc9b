//! `keepwell-bench`: measures the engine, and the server.

mod bandwidth;
mod baseline;
mod divergence;
mod elastic;
mod engine;
mod eval;
mod load;
mod metering;
mod report;
mod soak;
mod watch;

use clap::{Parser, Subcommand};
use tracing_subscriber::EnvFilter;

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
    /// How many requests a fixed arena holds, with memory pressure met by compression and without.
    Elastic(elastic::Arguments),
    /// What compression costs in quality at equal bytes, against published methods.
    Eval(eval::Arguments),
    /// What users of an OpenAI-compatible server get as load rises.
    Load(Box<load::Arguments>),
    /// What the server's metrics take of decode throughput, measured on and off in turns.
    Metering(metering::Arguments),
    /// Whether a server keeps its promises and its memory under a long mixed load.
    Soak(soak::Arguments),
}

fn main() -> anyhow::Result<()> {
    // As the server does: what is measured here is what it would take.
    keepwell_kernels::heap::share();
    // What the engine has to say, apart from the results.
    let filter = EnvFilter::new("warn,keepwell_server=info");
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    match Arguments::parse().command {
        Command::Engine(arguments) => engine::run(&arguments),
        Command::Elastic(arguments) => elastic::run(&arguments),
        Command::Eval(arguments) => eval::run(arguments),
        Command::Load(arguments) => load::run(&arguments),
        Command::Metering(arguments) => metering::run(&arguments),
        Command::Soak(arguments) => soak::run(&arguments),
    }
}
