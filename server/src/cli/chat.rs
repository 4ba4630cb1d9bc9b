//! `keepwell chat`: the model in the terminal, or behind a pipe.

use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, value_parser};
use keepwell_models::fetch::served_name;
use rustyline::error::ReadlineError;
use tokio::runtime::Builder;

use super::args::{ModelArgs, share, temperature};
use super::command::{HELP, Line};
use super::prompt::{Prompt, Signal, Signals};
use super::session::Session;
use super::start::{Started, start};
use crate::engine::{KvCacheParams, SamplingParams};

#[derive(Clone, Debug, Args)]
pub struct ChatArgs {
    /// What the model is told before the conversation
    #[arg(long, env = "KEEPWELL_SYSTEM")]
    pub system: Option<String>,

    /// 0 always takes the likeliest token
    #[arg(long, env = "KEEPWELL_TEMPERATURE", default_value = "0.7", value_parser = temperature)]
    pub temperature: f32,

    /// Draws from the likeliest tokens that together have this probability
    #[arg(long, env = "KEEPWELL_TOP_P", default_value = "0.95", value_parser = share)]
    pub top_p: f32,

    /// Makes answers repeatable
    #[arg(long, env = "KEEPWELL_SEED")]
    pub seed: Option<u64>,

    /// Longest answer, in tokens [default: the rest of the context]
    #[arg(long, env = "KEEPWELL_MAX_TOKENS", value_parser = value_parser!(u32).range(1..))]
    pub max_tokens: Option<u32>,

    #[command(flatten)]
    pub model: ModelArgs,
}

/// Talks until the end of the input or a signal.
pub fn run(args: &ChatArgs) -> Result<ExitCode> {
    let started = start(&args.model, served_name(&args.model.model))?;
    let mut session = session(args, started);
    if io::stdin().is_terminal() {
        println!("{}; /help lists commands", session.model.name);
    }
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let ended = runtime.block_on(talk(&mut session));
    session.engine.shutdown();
    ended.map(|()| ExitCode::SUCCESS)
}

async fn talk(session: &mut Session) -> Result<()> {
    let mut prompt = Prompt::new()?;
    // After the editor, which takes SIGINT on a terminal.
    let mut signals = Signals::new()?;
    loop {
        let line = tokio::select! {
            line = prompt.readline() => line,
            _ = signals.next() => return Ok(()),
        };
        match line {
            Ok(line) if act(Line::parse(&line), session, &mut signals).await? => {}
            Ok(_) | Err(ReadlineError::Interrupted | ReadlineError::Eof) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Whether the chat goes on.
async fn act(line: Line, session: &mut Session, signals: &mut Signals) -> Result<bool> {
    match line {
        Line::Say(text) => return say(&text, session, signals).await,
        Line::Budget(budget) => session.set_budget(budget),
        Line::Clear => session.clear(),
        Line::Help => println!("{HELP}"),
        Line::Exit => return Ok(false),
        Line::Empty => {}
        Line::Wrong(message) => eprintln!("{message}"),
    }
    Ok(true)
}

/// A failed answer does not end the chat; a closed stdout and SIGTERM do.
async fn say(text: &str, session: &mut Session, signals: &mut Signals) -> Result<bool> {
    let mut out = io::stdout();
    let mut signal = None;
    let interrupt = async { signal = Some(signals.next().await) };
    match session.say(text, &mut out, interrupt).await {
        Err(error) if error.is::<io::Error>() => return Err(error),
        Err(error) => eprintln!("{error:#}"),
        Ok(()) => {}
    }
    out.flush()?;
    Ok(signal != Some(Signal::Terminate))
}

fn session(args: &ChatArgs, started: Started) -> Session {
    let defaults = args.model.kv_defaults();
    let mut session = Session {
        engine: started.engine,
        text: started.text,
        model: started.model,
        layout: started.layout,
        sampling: SamplingParams {
            temperature: args.temperature,
            top_p: args.top_p,
            seed: args.seed,
            ..SamplingParams::default()
        },
        kv_cache: KvCacheParams {
            budget: defaults.budget,
            min_budget: defaults.min_budget.unwrap_or(defaults.budget),
            policy: defaults.policy,
        },
        floor: defaults.min_budget,
        max_tokens: args.max_tokens.map(|max| max as usize),
        system: args.system.clone(),
        messages: vec![],
    };
    session.clear();
    session
}
