//! One sequence driven by hand, without the engine's thread: for evaluation and calibration.
//!
//! A [`Trial`] goes through the same chunks, scoring and compress events as a sequence of the engine
//! that is alone. It can besides be forced along given tokens, forked, and have its cache replaced:
//!
//! ```text
//! let mut exact = lab.start(Recipe::exact(), 4096)?;
//! exact.prefill(&prefix)?;
//! let reference = exact.fork()?.force(&continuation)?;
//! let mut coarse = exact.fork()?;
//! coarse.replace(head, &quantized_keys, &quantized_values);
//! let logits = coarse.force(&continuation)?;
//! ```

mod lab;
mod logits;

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use candle_core::Tensor;
use keepwell_kernels::{
    Arena, Scoring, Tier,
    portable::segment::{Segment, encode},
};
use keepwell_models::{Batch, Probe};

use crate::{
    cache::{Assignment, Ledger},
    compress::Prices,
    engine::{
        KvUsage,
        event::{Memory, Report, compress_event, execute, read_tokens, usage},
        gather::gather,
    },
    sched::{Entry, Sequence},
};

pub use lab::{Lab, Recipe};
pub use logits::Logits;

/// One cached token of one (layer, KV head).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TokenState {
    pub position: u32,
    pub tier: Tier,
    pub attribution: f32,
}

/// What compress events took, by stage.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct EventTime {
    /// Reading the scores; scoring itself is part of the forward pass.
    pub score: Duration,
    pub price: Duration,
    pub compact: Duration,
}

impl EventTime {
    fn add(&mut self, report: &Report) {
        let [(_, score), (_, price), (_, compact)] = report.stages();
        self.score += score;
        self.price += price;
        self.compact += compact;
    }
}

/// How tokens go through the model: fields of [`Batch`].
#[derive(Clone, Copy, Default)]
pub struct Way<'a> {
    /// The tokens after which logits are wanted; without it, all of them.
    pub logit_rows: Option<&'a [usize]>,
    pub probe: Option<&'a Probe<'a>>,
    pub resumed: Option<(usize, &'a Tensor)>,
}

/// A context in page memory of its own, given back when it is dropped.
pub struct Trial<'a> {
    lab: Lab<'a>,
    arena: Arena,
    ledger: Ledger,
    seq: Sequence,
    capacity: usize,
    /// Logits (1, vocab) after the last token.
    next: Option<Logits>,
    event_time: EventTime,
}

impl<'a> Trial<'a> {
    /// Logical positions computed so far; evicted tokens keep theirs.
    pub fn len(&self) -> usize {
        self.seq.table.len()
    }

    pub fn is_empty(&self) -> bool {
        self.seq.table.is_empty()
    }

    /// Layers times KV heads, in this order.
    pub fn num_heads(&self) -> usize {
        self.seq.table.num_heads()
    }

    /// Every token so far; one that was just generated is not computed yet.
    pub fn tokens(&self) -> &[u32] {
        &self.seq.tokens
    }

    /// Appends `tokens` as a prompt: in chunks, scored, with a compress event after each, exactly as
    /// the engine does.
    ///
    /// # Errors
    /// More tokens than the trial was started for, an unknown token, or a failing kernel.
    pub fn prefill(&mut self, tokens: &[u32]) -> Result<()> {
        self.seq.tokens.extend_from_slice(tokens);
        self.seq.prompt_len = self.seq.tokens.len();
        while self.seq.num_pending() > 0 {
            let chunk = self.seq.part(self.lab.demand.max_chunk);
            let entry = self.next_entry(chunk)?;
            self.forward(&entry, 1)?;
            self.end_step(&entry)?;
        }
        Ok(())
    }

    /// Appends `tokens` without any compress event. The last `scoring.rows` queries of each chunk
    /// update the attributions.
    ///
    /// # Errors
    /// As [`Trial::prefill`].
    pub fn observe(&mut self, tokens: &[u32], scoring: Option<Scoring>) -> Result<()> {
        self.seq.tokens.extend_from_slice(tokens);
        while self.seq.num_pending() > 0 {
            let chunk = self.seq.num_pending().min(self.lab.demand.max_chunk);
            let entry = Entry { scoring, ..self.next_entry(chunk)? };
            self.forward(&entry, 1)?;
        }
        Ok(())
    }

    /// Appends `tokens` chunk by chunk, unscored and without a compress event, and shows `probe` what
    /// passes through the layers.
    ///
    /// # Errors
    /// As [`Trial::prefill`], or what the probe returns.
    pub fn probe(&mut self, tokens: &[u32], probe: &Probe) -> Result<()> {
        self.seq.tokens.extend_from_slice(tokens);
        while self.seq.num_pending() > 0 {
            let chunk = self.seq.num_pending().min(self.lab.demand.max_chunk);
            let entry = Entry { scoring: None, ..self.next_entry(chunk)? };
            self.forward_by(&entry, 1, Way { probe: Some(probe), ..Way::default() })?;
        }
        Ok(())
    }

    /// Appends `tokens` in one piece, unscored and without a compress event. Returns the logits after
    /// each of them: 200 KB a row for a vocabulary of 50,000.
    ///
    /// # Errors
    /// As [`Trial::prefill`].
    pub fn force(&mut self, tokens: &[u32]) -> Result<Logits> {
        self.force_by(tokens, Way::default())
    }

    /// [`Trial::force`] for some of the tokens, under the eyes of a probe or from a layer on.
    ///
    /// # Errors
    /// As [`Trial::prefill`], or rows and states that do not fit.
    pub fn force_by(&mut self, tokens: &[u32], way: Way) -> Result<Logits> {
        self.seq.tokens.extend_from_slice(tokens);
        let entry = Entry { scoring: None, ..self.next_entry(self.seq.num_pending())? };
        self.forward_by(&entry, tokens.len(), way)
    }

    /// Appends `tokens` unscored and without a compress event, to generate from there.
    ///
    /// # Errors
    /// As [`Trial::prefill`].
    pub fn append(&mut self, tokens: &[u32]) -> Result<()> {
        self.observe(tokens, None)
    }

    /// Generates up to `num_tokens` greedily, with compress events as in the engine. Ends after one
    /// of `stop_ids`, which is not returned.
    ///
    /// # Errors
    /// As [`Trial::prefill`], or nothing to go on from.
    pub fn generate(&mut self, num_tokens: usize, stop_ids: &[u32]) -> Result<Vec<u32>> {
        let start = self.seq.tokens.len();
        for _ in 0..num_tokens {
            if self.seq.num_pending() > 0 {
                let entry = self.next_entry(self.seq.num_pending())?;
                self.forward(&entry, 1)?;
                self.end_step(&entry)?;
            }
            let next = self.next.as_ref().context("nothing was computed yet")?;
            let token = next.argmax(next.num_rows() - 1);
            if stop_ids.contains(&token) {
                break;
            }
            self.seq.tokens.push(token);
        }
        Ok(self.seq.tokens[start..].to_vec())
    }

    /// Appends `tokens` one by one as if they were generated, with compress events as in the engine.
    /// Returns the logits after each of them, as [`Trial::force`] does.
    ///
    /// # Errors
    /// As [`Trial::prefill`].
    pub fn follow(&mut self, tokens: &[u32]) -> Result<Logits> {
        let vocab_size = self.lab.config().vocab_size;
        let mut logits = Logits { vocab_size, data: Vec::with_capacity(tokens.len() * vocab_size) };
        for token in tokens {
            self.seq.tokens.push(*token);
            let entry = self.next_entry(self.seq.num_pending())?;
            logits.data.extend(self.forward(&entry, 1)?.data);
            self.end_step(&entry)?;
        }
        Ok(logits)
    }

    /// The same context once more, in memory of its own.
    ///
    /// # Errors
    /// The system does not have the memory.
    pub fn fork(&self) -> Result<Self> {
        let (budget, policy) = (self.seq.budget, self.seq.policy);
        self.fork_as(Recipe { budget, policy })
    }

    /// The same context, to go on under another recipe; nothing is compressed before the next event.
    ///
    /// # Errors
    /// As [`Trial::fork`].
    pub fn fork_as(&self, recipe: Recipe) -> Result<Self> {
        let mut fork = self.lab.start(recipe, self.capacity)?;
        let copied = self.seq.table.copy_to(&mut fork.ledger);
        let (table, copies) = copied.context("a fork has as many pages")?;
        for (from, to) in copies {
            fork.arena.write(to, &self.arena.read(from)?)?;
        }
        fork.seq.tokens.clone_from(&self.seq.tokens);
        fork.seq.prompt_len = self.seq.prompt_len;
        fork.seq.since_event = self.seq.since_event;
        fork.seq.table = table;
        fork.next.clone_from(&self.next);
        Ok(fork)
    }

    /// K and V of one (layer, KV head), rotated, in page order.
    pub fn segment(&self, head: usize) -> Segment {
        Segment::decode(&self.arena, &self.seq.table.head(head).pages)
    }

    /// Puts other K and V (N, D), rotated, in page order, where those of one (layer, KV head) are;
    /// they are coded in the tiers of their tokens, and attributions stay.
    pub fn replace(&mut self, head: usize, keys: &[f32], values: &[f32]) {
        encode(&mut self.arena, &self.seq.table.head(head).pages, keys, values);
    }

    /// Puts every token into the tier it is assigned, or evicts it: for each (layer, KV head), in
    /// page order.
    ///
    /// # Errors
    /// A failing kernel.
    pub fn assign(&mut self, assignments: &[Vec<Assignment>]) -> Result<()> {
        let tokens = read_tokens(self.lab.backend, &self.arena, &self.seq.table)?;
        let memory = Memory { arena: &mut self.arena, ledger: &mut self.ledger };
        execute(self.lab.backend, memory, &mut self.seq.table, &tokens, assignments)?;
        Ok(())
    }

    /// The tokens held of one (layer, KV head), in page order.
    ///
    /// # Errors
    /// A failing kernel.
    pub fn states(&self, head: usize) -> Result<Vec<TokenState>> {
        let pages = &self.seq.table.head(head).pages;
        let tiers = pages.iter().flat_map(|page| (0..page.len).map(|_| page.tier));
        let tokens = self.lab.backend.attributions(&self.arena, pages)?;
        let state = |(token, tier): (&keepwell_kernels::backend::TokenAttribution, Tier)| {
            TokenState { position: token.position, tier, attribution: token.attribution }
        };
        Ok(tokens.iter().zip(tiers).map(state).collect())
    }

    /// The ledger's bytes of what is held now.
    pub fn usage(&self) -> KvUsage {
        usage(&self.seq, &self.lab.demand)
    }

    /// What compress events took so far.
    pub fn event_time(&self) -> EventTime {
        self.event_time
    }

    /// Books of this trial's memory agree with its table.
    pub fn check(&self) {
        self.seq.table.check(self.ledger.layout());
        self.ledger.check([&self.seq.table]);
    }

    fn next_entry(&mut self, num_tokens: usize) -> Result<Entry> {
        let pages = self.seq.table.pages_to_append(num_tokens, self.ledger.layout());
        ensure!(
            pages <= self.ledger.num_free(),
            "the trial was started for {} tokens",
            self.capacity
        );
        Ok(Entry::new(&mut self.seq, num_tokens, &mut self.ledger))
    }

    fn forward(&mut self, entry: &Entry, num_logits: usize) -> Result<Logits> {
        self.forward_by(entry, num_logits, Way::default())
    }

    fn forward_by(&mut self, entry: &Entry, num_logits: usize, way: Way) -> Result<Logits> {
        let config = self.lab.model.config();
        let mut gathered = gather(&[(entry, &self.seq)], config, |_| num_logits);
        gathered.plan.basis = self.lab.calibration.and_then(|known| known.basis.clone());
        let batch = Batch {
            tokens: &gathered.tokens,
            logit_rows: way.logit_rows.unwrap_or(&gathered.logit_rows),
            plan: &gathered.plan,
            probe: way.probe,
            resumed: way.resumed,
        };
        let logits = self.lab.model.forward(&mut self.arena, &batch)?;
        let data = logits.flatten_all()?.to_vec1::<f32>()?;
        let logits = Logits { vocab_size: config.vocab_size, data };
        let last = logits.row(logits.num_rows() - 1).to_vec();
        self.next = Some(Logits { vocab_size: config.vocab_size, data: last });
        Ok(logits)
    }

    fn end_step(&mut self, entry: &Entry) -> Result<()> {
        if entry.has_event {
            let memory = Memory { arena: &mut self.arena, ledger: &mut self.ledger };
            let uncalibrated = Prices::default();
            let prices = self.lab.calibration.map_or(&uncalibrated, |known| &known.prices);
            let (lab, seq) = (&self.lab, &mut self.seq);
            let report = compress_event(lab.backend, memory, seq, &lab.demand, prices)?;
            if let Some(report) = report {
                self.event_time.add(&report);
            }
        }
        Ok(())
    }
}
