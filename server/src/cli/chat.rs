//! `keepwell chat`: the model in the terminal, or behind a pipe.

use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, value_parser};
use rustyline::{DefaultEditor, error::ReadlineError};
use tokio::runtime::{Builder, Runtime};

use super::args::{ModelArgs, share, temperature};
use super::command::{HELP, Line};
use super::session::Session;
use super::start::{Started, start};
use crate::engine::{KvCacheParams, SamplingParams};

#[derive(Clone, Debug, Args)]
pub struct ChatArgs {
    /// What the model is told before the conversation
    #[arg(long)]
    pub system: Option<String>,

    /// 0 always takes the likeliest token
    #[arg(long, default_value = "0.7", value_parser = temperature)]
    pub temperature: f32,

    /// Draws from the likeliest tokens that together have this probability
    #[arg(long, default_value = "0.95", value_parser = share)]
    pub top_p: f32,

    /// Makes answers repeatable
    #[arg(long)]
    pub seed: Option<u64>,

    /// Longest answer, in tokens [default: the rest of the context]
    #[arg(long, value_parser = value_parser!(u32).range(1..))]
    pub max_tokens: Option<u32>,

    #[command(flatten)]
    pub model: ModelArgs,
}

/// Talks until the end of the input.
pub fn run(args: &ChatArgs) -> Result<ExitCode> {
    let started = start(&args.model, args.model.model.clone())?;
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let mut session = session(args, started);
    if io::stdin().is_terminal() {
        println!("{}; /help lists commands", session.model.name);
    }
    let mut editor = DefaultEditor::new()?;
    loop {
        match editor.readline("> ") {
            Ok(line) => {
                // History is a convenience: no reason to end the chat.
                let _ = editor.add_history_entry(&line);
                if !act(Line::parse(&line), &mut session, &runtime)? {
                    break;
                }
            }
            Err(ReadlineError::Interrupted | ReadlineError::Eof) => break,
            Err(error) => return Err(error.into()),
        }
    }
    session.engine.shutdown();
    Ok(ExitCode::SUCCESS)
}

/// Whether the chat goes on.
fn act(line: Line, session: &mut Session, runtime: &Runtime) -> Result<bool> {
    match line {
        Line::Say(text) => say(&text, session, runtime)?,
        Line::Budget(budget) => session.set_budget(budget),
        Line::Clear => session.clear(),
        Line::Help => println!("{HELP}"),
        Line::Exit => return Ok(false),
        Line::Empty => {}
        Line::Wrong(message) => eprintln!("{message}"),
    }
    Ok(true)
}

/// A failed answer does not end the chat; a closed stdout does.
fn say(text: &str, session: &mut Session, runtime: &Runtime) -> Result<()> {
    let mut out = io::stdout();
    let answer = session.say(text, &mut out, tokio::signal::ctrl_c());
    match runtime.block_on(answer) {
        Err(error) if error.is::<io::Error>() => return Err(error),
        Err(error) => eprintln!("{error:#}"),
        Ok(()) => {}
    }
    Ok(out.flush()?)
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
        max_tokens: args.max_tokens.map(|max| max as usize),
        system: args.system.clone(),
        messages: vec![],
    };
    session.clear();
    session
}
