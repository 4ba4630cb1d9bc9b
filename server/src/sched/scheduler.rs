//! First come, first served, with chunked prefill and preemption by recomputation.

use std::collections::VecDeque;

use keepwell_kernels::{Scoring, Write};

use super::{Demand, SeqId, Sequence};
use crate::cache::Ledger;

#[derive(Clone, Copy, Debug)]
pub struct SchedulerLimits {
    /// Tokens computed per step, over all sequences: bounds the latency of a step.
    pub max_step_tokens: usize,
    pub max_running: usize,
    pub max_waiting: usize,
    /// Tokens of all waiting sequences; one alone may have more.
    pub max_waiting_tokens: usize,
}

/// What one step computes.
#[derive(Debug, Default)]
pub struct Step {
    pub entries: Vec<Entry>,
    /// A sequence that is alone and still finds no page. Admission rules it out; the engine ends
    /// the sequence rather than wait for ever.
    pub stuck: Option<SeqId>,
}

/// One sequence's part of a step: positions `start..start + num_tokens`.
#[derive(Debug)]
pub struct Entry {
    pub id: SeqId,
    pub start: usize,
    pub num_tokens: usize,
    /// The last row's logits give the next token.
    pub samples: bool,
    /// A compress event follows.
    pub has_event: bool,
    pub scoring: Option<Scoring>,
    /// Per (layer, KV head): where each token is written.
    pub writes: Vec<Vec<Write>>,
}

impl Entry {
    /// The next `num_tokens` pending tokens of `seq`; takes their pages.
    pub fn new(seq: &mut Sequence, num_tokens: usize, ledger: &mut Ledger) -> Self {
        let (has_event, scoring) = (seq.has_event(num_tokens), seq.scoring(num_tokens));
        let samples = num_tokens == seq.num_pending();
        let start = seq.table.len();
        seq.since_event = if has_event { 0 } else { seq.since_event + num_tokens };
        let writes = seq.table.append(num_tokens, ledger);
        Self { id: seq.id, start, num_tokens, samples, has_event, scoring, writes }
    }
}

/// Ownership is the status: a sequence in `running` runs, oldest first.
#[derive(Debug)]
pub struct Scheduler {
    limits: SchedulerLimits,
    demand: Demand,
    waiting: VecDeque<Sequence>,
    running: Vec<Sequence>,
    num_preemptions: usize,
}

impl Scheduler {
    pub fn new(limits: SchedulerLimits, demand: Demand) -> Self {
        Self { limits, demand, waiting: VecDeque::new(), running: Vec::new(), num_preemptions: 0 }
    }

    pub fn demand(&self) -> &Demand {
        &self.demand
    }

    pub fn num_running(&self) -> usize {
        self.running.len()
    }

    pub fn num_waiting(&self) -> usize {
        self.waiting.len()
    }

    pub fn num_preemptions(&self) -> usize {
        self.num_preemptions
    }

    pub fn is_idle(&self) -> bool {
        self.running.is_empty() && self.waiting.is_empty()
    }

    /// Whether one more may run, if memory allows.
    pub fn has_place(&self) -> bool {
        self.running.len() < self.limits.max_running
    }

    /// Whether the sequence fits beside what running ones will still take.
    pub fn has_memory(&self, seq: &Sequence, ledger: &Ledger) -> bool {
        let needed = self.demand.peak(seq.budget, seq.tokens.len());
        needed + self.promised_pages() <= ledger.num_free()
    }

    pub fn num_waiting_tokens(&self) -> usize {
        self.waiting.iter().map(|seq| seq.tokens.len()).sum()
    }

    /// Whether the queue has room for a sequence of `len` tokens.
    pub fn can_queue(&self, len: usize) -> bool {
        let has_room = self.num_waiting_tokens() + len <= self.limits.max_waiting_tokens;
        self.waiting.len() < self.limits.max_waiting && (has_room || self.waiting.is_empty())
    }

    /// Behind all that are as urgent. One that was preempted keeps its place at the front.
    pub fn queue(&mut self, seq: Sequence) {
        let before = |other: &Sequence| other.num_preemptions > 0 || other.priority <= seq.priority;
        let index = self.waiting.iter().rposition(before).map_or(0, |last| last + 1);
        self.waiting.insert(index, seq);
    }

    pub fn running(&self, id: SeqId) -> Option<&Sequence> {
        self.running.iter().find(|seq| seq.id == id)
    }

    pub fn running_mut(&mut self, id: SeqId) -> Option<&mut Sequence> {
        self.running.iter_mut().find(|seq| seq.id == id)
    }

    pub fn sequences(&self) -> impl Iterator<Item = &Sequence> {
        self.running.iter().chain(&self.waiting)
    }

    /// Takes the sequence out and gives its pages back.
    pub fn retire(&mut self, id: SeqId, ledger: &mut Ledger) -> Option<Sequence> {
        let mut seq = if let Some(index) = self.running.iter().position(|seq| seq.id == id) {
            self.running.remove(index)
        } else {
            let index = self.waiting.iter().position(|seq| seq.id == id)?;
            self.waiting.remove(index)?
        };
        seq.table.release(ledger);
        Some(seq)
    }

    /// Chooses the next step and takes its pages: decoding sequences first, then prefill chunks of
    /// running ones, then new ones, as far as tokens and pages go.
    pub fn schedule(&mut self, ledger: &mut Ledger) -> Step {
        loop {
            let mut step = Step::default();
            let mut tokens_left = self.limits.max_step_tokens;
            self.schedule_decodes(&mut step, &mut tokens_left, ledger);
            self.schedule_prefills(&mut step, &mut tokens_left, ledger);
            self.admit(&mut step, &mut tokens_left, ledger);
            if !step.entries.is_empty() || self.running.is_empty() {
                return step;
            }
            // Prefills block each other: the newest gives way.
            if self.running.len() == 1 {
                step.stuck = Some(self.running[0].id);
                return step;
            }
            self.preempt_newest(ledger);
        }
    }

    fn schedule_decodes(&mut self, step: &mut Step, tokens_left: &mut usize, ledger: &mut Ledger) {
        let mut index = 0;
        while index < self.running.len() && *tokens_left > 0 {
            let seq = &self.running[index];
            if !seq.is_decoding() {
                index += 1;
            } else if seq.table.pages_to_append(1, ledger.layout()) <= ledger.num_free() {
                step.entries.push(Entry::new(&mut self.running[index], 1, ledger));
                *tokens_left -= 1;
                index += 1;
            } else if self.running.len() > 1 {
                self.preempt_newest(ledger);
            } else {
                return;
            }
        }
    }

    fn schedule_prefills(&mut self, step: &mut Step, tokens_left: &mut usize, ledger: &mut Ledger) {
        for seq in
            self.running.iter_mut().filter(|seq| seq.num_pending() > 1 || seq.table.is_empty())
        {
            let chunk = largest_chunk(seq, *tokens_left, ledger);
            if chunk > 0 {
                step.entries.push(Entry::new(seq, chunk, ledger));
                *tokens_left -= chunk;
            }
        }
    }

    fn admit(&mut self, step: &mut Step, tokens_left: &mut usize, ledger: &mut Ledger) {
        while *tokens_left > 0 && self.has_place() {
            let Some(seq) = self.waiting.front() else { return };
            if !self.has_memory(seq, ledger) && !self.running.is_empty() {
                return;
            }
            let Some(mut seq) = self.waiting.pop_front() else { return };
            let chunk = largest_chunk(&seq, *tokens_left, ledger);
            if chunk > 0 {
                step.entries.push(Entry::new(&mut seq, chunk, ledger));
                *tokens_left -= chunk;
            }
            self.running.push(seq);
        }
    }

    /// Pages that running sequences will still take for tokens they have, and compressed ones until
    /// their next event: what they hold swings by a window.
    fn promised_pages(&self) -> usize {
        let promised = |seq: &Sequence| {
            self.demand.peak(seq.budget, seq.tokens.len()).saturating_sub(seq.table.num_pages())
        };
        let still_take = |seq: &&Sequence| !seq.is_decoding() || seq.is_compressed();
        self.running.iter().filter(still_take).map(promised).sum()
    }

    /// The newest sequence gives its pages back and waits, first in line, to compute them anew.
    fn preempt_newest(&mut self, ledger: &mut Ledger) {
        let Some(mut seq) = self.running.pop() else { return };
        seq.table.release(ledger);
        seq.since_event = 0;
        seq.num_preemptions += 1;
        self.num_preemptions += 1;
        self.waiting.push_front(seq);
    }
}

/// The most pending tokens for which there are tokens in the step and pages in the pool.
fn largest_chunk(seq: &Sequence, tokens_left: usize, ledger: &Ledger) -> usize {
    let most = seq.num_pending().min(tokens_left);
    let fits = |n: &usize| seq.table.pages_to_append(*n, ledger.layout()) <= ledger.num_free();
    (0..=most).rev().find(fits).unwrap_or(0)
}

#[cfg(test)]
mod tests;
