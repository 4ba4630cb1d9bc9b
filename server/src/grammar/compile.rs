//! From a grammar to a constraint, within budgets: grammars come from strangers.

use std::{
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc},
    thread,
    time::Duration,
};

use llguidance::{
    Matcher, ParserFactory,
    api::ParserLimits,
    toktrie::{ApproximateTokEnv, InferenceCapabilities, TokRxInfo, TokTrie},
};

use super::{Constraint, Grammar, constraint::brief, recent::Recent};

/// Bytes of a grammar.
const MAX_LEN: usize = 256 << 10;
/// Grammars in the making. One that takes too long cannot be stopped: it keeps its place.
const MAX_COMPILING: usize = 4;
const TIMEOUT: Duration = Duration::from_secs(5);
/// How long a grammar may wait for a place.
const PATIENCE: Duration = Duration::from_secs(10);
/// Grammars are trees, and are read by recursion.
const STACK_BYTES: usize = 64 << 20;

/// Turns grammars into constraints on one tokenizer's tokens.
pub struct Grammars {
    factory: Arc<ParserFactory>,
    places: Arc<Places>,
    recent: Recent,
}

/// Why a grammar was not taken.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum GrammarError {
    #[error("the grammar has {0} bytes, {MAX_LEN} at most are allowed")]
    TooLarge(usize),
    #[error("the grammar takes too long to compile or to follow: simplify it")]
    TooSlow,
    #[error("too many grammars are being compiled, try again later")]
    Busy,
    #[error("the grammar cannot be used: {0}")]
    Invalid(String),
}

impl Grammars {
    /// `tokens` are the bytes of each token, `None` for those that no text makes, such as an
    /// end-of-turn mark. `eos_token_ids` end an answer where the grammar lets it end.
    ///
    /// # Errors
    /// No vocabulary.
    pub fn new(tokens: &[Option<Vec<u8>>], eos_token_ids: &[u32]) -> anyhow::Result<Self> {
        let eos = eos_token_ids.first().copied().unwrap_or_default();
        let info = TokRxInfo::new(u32::try_from(tokens.len())?, eos);
        let words: Vec<_> = (0..).zip(tokens).map(|(id, bytes)| word(id, bytes)).collect();
        let trie = TokTrie::from(&info, &words).with_eos_tokens(eos_token_ids);
        let environment: llguidance::toktrie::TokEnv = Arc::new(ApproximateTokEnv::new(trie));
        let slices = llguidance::earley::SlicedBiasComputer::general_slices();
        let mut factory =
            ParserFactory::new(&environment, InferenceCapabilities::default(), &slices)?;
        *factory.limits_mut() = limits();
        factory.quiet();
        Ok(Self { factory: Arc::new(factory), places: Arc::default(), recent: Recent::default() })
    }

    /// Blocks for up to 15 seconds: where others are in the making, it waits for them.
    ///
    /// # Errors
    /// The grammar is too large, wrong, or takes too long, or others do.
    pub fn compile(&self, grammar: &Grammar) -> Result<Constraint, GrammarError> {
        let len = grammar.len();
        if len > MAX_LEN {
            return Err(GrammarError::TooLarge(len));
        }
        if let Some(known) = self.recent.get(grammar) {
            return Ok(known);
        }
        let place = Place::take(&self.places, PATIENCE).ok_or(GrammarError::Busy)?;
        // Another request may have asked for the same.
        if let Some(known) = self.recent.get(grammar) {
            return Ok(known);
        }
        let constraint = self.make(grammar, place)?;
        self.recent.insert(grammar.clone(), &constraint);
        Ok(constraint)
    }

    /// On a thread of its own, which holds the place until it ends.
    fn make(&self, grammar: &Grammar, place: Place) -> Result<Constraint, GrammarError> {
        let (sender, receiver) = mpsc::sync_channel(1);
        let (factory, grammar) = (self.factory.clone(), grammar.clone());
        let compile = move || {
            let _place = place;
            // Nobody may be waiting any more.
            let _ = sender.send(compile(&factory, &grammar));
        };
        let thread = thread::Builder::new().name("grammar".into()).stack_size(STACK_BYTES);
        thread.spawn(compile).map_err(|_| GrammarError::Busy)?;
        match receiver.recv_timeout(TIMEOUT) {
            Ok(compiled) => compiled,
            Err(mpsc::RecvTimeoutError::Timeout) => Err(GrammarError::TooSlow),
            Err(mpsc::RecvTimeoutError::Disconnected) => {
                Err(GrammarError::Invalid("the compiler failed on it".into()))
            }
        }
    }
}

fn compile(factory: &ParserFactory, grammar: &Grammar) -> Result<Constraint, GrammarError> {
    let vocab_size = factory.tok_env().tok_trie().vocab_size();
    let matcher = Matcher::new(factory.create_parser(grammar.top_level()));
    match matcher.get_error() {
        Some(error) => Err(GrammarError::Invalid(brief(&error))),
        None => try_out(Constraint::new(matcher), vocab_size),
    }
}

/// The first step is taken here, off the engine's thread: most that are slow are slow at once.
fn try_out(constraint: Constraint, vocab_size: usize) -> Result<Constraint, GrammarError> {
    let mut trial = constraint.clone();
    match trial.mask(&mut vec![0.0; vocab_size]) {
        Err(error) => Err(GrammarError::Invalid(error)),
        Ok(_) if trial.num_slow() > 0 => Err(GrammarError::TooSlow),
        Ok(_) => Ok(constraint),
    }
}

/// llguidance marks special tokens by a byte that no text has.
fn word(id: u32, bytes: &Option<Vec<u8>>) -> Vec<u8> {
    match bytes {
        Some(bytes) => bytes.clone(),
        None => [&[TokTrie::SPECIAL_TOKEN_MARKER], format!("[{id}]").as_bytes()].concat(),
    }
}

/// A step's mask takes a few milliseconds as a rule, a grammar's states tens of megabytes at most.
fn limits() -> ParserLimits {
    ParserLimits {
        max_items_in_row: 500,
        initial_lexer_fuel: 1_000_000,
        step_lexer_fuel: 100_000,
        step_max_items: 20_000,
        max_lexer_states: 20_000,
        max_grammar_size: 200_000,
        precompute_large_lexemes: false,
        verbose_errors: false,
    }
}

/// How many grammars are in the making.
#[derive(Default)]
struct Places {
    num_taken: Mutex<usize>,
    freed: Condvar,
}

impl Places {
    fn lock(&self) -> MutexGuard<'_, usize> {
        self.num_taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One of them.
struct Place(Arc<Places>);

impl Place {
    /// `None` where all are taken for as long as one waits.
    fn take(places: &Arc<Places>, patience: Duration) -> Option<Self> {
        let are_taken = |num_taken: &mut usize| *num_taken >= MAX_COMPILING;
        let waited = places.freed.wait_timeout_while(places.lock(), patience, are_taken);
        let (mut num_taken, waited) = waited.unwrap_or_else(PoisonError::into_inner);
        if waited.timed_out() {
            return None;
        }
        *num_taken += 1;
        Some(Self(places.clone()))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        *self.0.lock() -= 1;
        self.0.freed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_waited_for_and_not_for_ever() {
        let places = Arc::new(Places::default());
        let mut taken: Vec<_> =
            (0..MAX_COMPILING).map(|_| Place::take(&places, Duration::ZERO).unwrap()).collect();
        assert!(Place::take(&places, Duration::from_millis(10)).is_none());
        let waiting = {
            let places = places.clone();
            thread::spawn(move || Place::take(&places, Duration::from_secs(60)).is_some())
        };
        taken.pop();
        assert!(waiting.join().unwrap());
        drop(taken);
        assert_eq!(*places.lock(), 0);
    }
}
