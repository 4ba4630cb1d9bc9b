//! Chunked prefill; memory reserved at admission; the most urgent first, of these the least served
//! user's, of these the first; and, where more was taken than reserved, preemption by recomputation.

use std::collections::VecDeque;

use keepwell_kernels::{Scoring, Tier, Write};

use super::{Demand, Reserve, SeqId, Sequence, fairness::Fairness, sharing};
use crate::cache::{Copies, Ledger};

/// Tokens that an answer without a limit of its own has memory reserved for, from each admission on.
pub const FAIR_ANSWER: usize = 256;

/// What memory pressure gives back at a time, at most: this part of the arena. Less would cost an
/// event of all sequences every few steps, more would lose tokens that nobody had to lose.
const MARGIN_PART: usize = 8;

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
    /// What is copied first, in this order.
    pub copies: Vec<Copies>,
    pub entries: Vec<Entry>,
    /// A sequence that is alone and still finds no page. Admission rules it out; the engine ends
    /// the sequence rather than wait for ever.
    pub stuck: Option<SeqId>,
}

/// What memory asks of the running sequences before a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pressure {
    /// So many pages are to be given back: the next step lacks some of them.
    High(usize),
    /// What is there may be used as it is.
    Steady,
    /// So much is free that everybody may have the budget they asked for.
    Low,
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
        seq.advance(num_tokens);
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
    fairness: Fairness,
    /// For sequences that were let in, whether or not they run still: a later copy may write where
    /// an earlier one reads.
    copies: Vec<Copies>,
    num_preemptions: usize,
}

impl Scheduler {
    pub fn new(limits: SchedulerLimits, demand: Demand) -> Self {
        Self {
            limits,
            demand,
            waiting: VecDeque::new(),
            running: Vec::new(),
            fairness: Fairness::default(),
            copies: Vec::new(),
            num_preemptions: 0,
        }
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

    /// Users who have sequences here.
    pub fn num_users(&self) -> usize {
        self.fairness.num_users()
    }

    /// Whether what the sequence may need in the end fits beside what is set aside for those that
    /// run. All are counted at their floors: what they hold beyond these can be had back.
    pub fn has_memory(&self, seq: &Sequence, ledger: &Ledger) -> bool {
        let reserved = self.running.iter().map(|seq| self.set_aside(seq)).sum::<usize>();
        let held = self.running.iter().map(|seq| seq.table.num_pages()).sum::<usize>();
        // Set aside more than once: pages that several sequences hold.
        let shared =
            held - ledger.num_live() + sharing::num_shared_pages(seq, &self.demand, ledger);
        let needed = (reserved + self.reserve(seq).num_pages).saturating_sub(shared);
        // What is compressed holds a chunk in full until the event after it.
        let is_any_scored = seq.is_scored() || self.running.iter().any(Sequence::is_scored);
        let chunk = if is_any_scored { self.demand.chunk() } else { 0 };
        needed + chunk <= ledger.num_pages()
    }

    /// Pages that a running sequence counts for: more than its reserve once it is beyond that.
    fn set_aside(&self, seq: &Sequence) -> usize {
        match seq.is_beyond_reserve() {
            true => self.demand.reserve(seq.min_budget, seq.tokens.len()),
            false => seq.reserve.num_pages,
        }
    }

    /// What is set aside for a sequence that starts now: memory for all tokens it named, or for a
    /// fair answer from here on if it named no limit.
    fn reserve(&self, seq: &Sequence) -> Reserve {
        let fair = seq.tokens.len() + FAIR_ANSWER;
        let len = if seq.may_shorten { fair.min(seq.max_len) } else { seq.max_len };
        Reserve { len, num_pages: self.demand.reserve(seq.min_budget, len) }
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
        self.fairness.join(seq.user);
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

    pub fn all_running_mut(&mut self) -> impl Iterator<Item = &mut Sequence> {
        self.running.iter_mut()
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
        seq.release(ledger);
        self.fairness.leave(seq.user);
        Some(seq)
    }

    /// Lets sequences in, as far as places, tokens of a step and memory in the end go.
    /// They begin with what is known of their tokens; [`Scheduler::take_copies`] tells what has to be
    /// copied for that.
    pub fn admit(&mut self, ledger: &mut Ledger) {
        while self.num_pending() < self.limits.max_step_tokens && self.has_place() {
            let Some(next) = self.next_waiting() else { return };
            // What is alone was found to fit when it came.
            if !self.running.is_empty() && !self.has_memory(&self.waiting[next], ledger) {
                return;
            }
            let Some(mut seq) = self.waiting.remove(next) else { return };
            seq.reserve = self.reserve(&seq);
            self.copies.extend(sharing::begin(&mut seq, &self.demand, ledger));
            self.fairness.charge(seq.user, seq.num_pending());
            self.running.push(seq);
        }
    }

    /// What has to be copied before anything is computed, in this order.
    pub fn take_copies(&mut self) -> Vec<Copies> {
        std::mem::take(&mut self.copies)
    }

    /// Of those that gave way the first; else of the most urgent those of the least served user, and
    /// of these the first. One whose beginning is being computed right now lets others go before.
    fn next_waiting(&self) -> Option<usize> {
        let is_ready = |(_, seq): &(usize, &Sequence)| {
            !sharing::awaits_one_of(seq, &self.running, &self.demand)
        };
        let mut ready = self.waiting.iter().enumerate().filter(is_ready).peekable();
        let (index, first) = *ready.peek()?;
        if first.num_preemptions > 0 {
            return Some(index);
        }
        let as_urgent = ready.take_while(|(_, seq)| seq.priority == first.priority);
        let served = |(_, seq): &(usize, &Sequence)| self.fairness.served(seq.user);
        as_urgent.min_by_key(served).map(|(index, _)| index)
    }

    /// Tokens that running sequences could compute in one step.
    fn num_pending(&self) -> usize {
        self.running.iter().map(Sequence::num_pending).sum()
    }

    /// What memory asks for before the next step, once those who may have been let in.
    pub fn pressure(&self, ledger: &Ledger) -> Pressure {
        let windows = self.running.len() * self.demand.window();
        let margin = windows.min(ledger.num_pages() / MARGIN_PART);
        let num_free = ledger.num_free();
        let needed = self.needed(num_free.saturating_sub(2 * margin), ledger);
        if num_free < needed {
            Pressure::High(needed + margin - num_free)
        } else if num_free >= needed + 2 * margin {
            Pressure::Low
        } else {
            Pressure::Steady
        }
    }

    /// Pages that the next step takes, were there enough; where that is `plenty` or less for sure,
    /// the most that it can be: looking closer takes time.
    fn needed(&self, plenty: usize, ledger: &Ledger) -> usize {
        let capacity = ledger.layout().capacity(Tier::F16);
        let fresh =
            |_: &Sequence, num_tokens: usize| self.demand.num_heads * num_tokens.div_ceil(capacity);
        let most = self.step_pages(fresh);
        if most <= plenty {
            return most;
        }
        self.step_pages(|seq, num_tokens| seq.table.pages_to_append(num_tokens, ledger.layout()))
    }

    /// The sum over the next step's sequences; `pages` is told how many tokens each computes.
    fn step_pages(&self, pages: impl Fn(&Sequence, usize) -> usize) -> usize {
        let mut tokens_left = self.limits.max_step_tokens;
        let decodes = self.running.iter().filter(|seq| seq.is_decoding());
        let prefills = self.running.iter().filter(|seq| !seq.is_decoding());
        let pages = |seq: &Sequence| {
            let num_tokens = seq.num_pending().min(tokens_left);
            tokens_left -= num_tokens;
            pages(seq, num_tokens)
        };
        decodes.chain(prefills).map(pages).sum()
    }

    /// Lets in who may, chooses the next step and takes its pages: decoding sequences first, then
    /// prefill chunks, as far as tokens and pages go.
    pub fn schedule(&mut self, ledger: &mut Ledger) -> Step {
        loop {
            self.admit(ledger);
            self.make_room(ledger);
            let mut step = Step::default();
            let mut tokens_left = self.limits.max_step_tokens;
            self.schedule_decodes(&mut step, &mut tokens_left, ledger);
            self.schedule_prefills(&mut step, &mut tokens_left, ledger);
            if !step.entries.is_empty() || self.running.is_empty() {
                step.copies = self.take_copies();
                return step;
            }
            // Prefills block each other: one gives way, unless it is alone.
            match self.least_urgent(|_| true).filter(|_| self.running.len() > 1) {
                Some(index) => self.preempt(index, ledger),
                None => {
                    step.stuck = self.running.first().map(|seq| seq.id);
                    step.copies = self.take_copies();
                    return step;
                }
            }
        }
    }

    /// The newest of the least urgent ones.
    fn least_urgent(&self, may_be: impl Fn(&Sequence) -> bool) -> Option<usize> {
        let candidates = self.running.iter().enumerate().filter(|(_, seq)| may_be(seq));
        candidates.max_by_key(|(index, seq)| (seq.priority, *index)).map(|(index, _)| index)
    }

    /// Where pages are short, the least urgent gives way of those that run beyond what was set aside
    /// for them. Without any, memory was counted wrong: then the least urgent of all, for decoding
    /// ones to go on.
    fn make_room(&mut self, ledger: &mut Ledger) {
        while self.running.len() > 1 {
            let is_short = |needed: usize| needed > ledger.num_free();
            let beyond = self.least_urgent(Sequence::is_beyond_reserve);
            let index = match beyond {
                Some(_) if is_short(self.needed(ledger.num_free(), ledger)) => beyond,
                None if is_short(self.needed_to_decode(ledger)) => self.least_urgent(|_| true),
                _ => None,
            };
            let Some(index) = index else { return };
            self.preempt(index, ledger);
        }
    }

    fn needed_to_decode(&self, ledger: &Ledger) -> usize {
        let decodes = self.running.iter().filter(|seq| seq.is_decoding());
        // One page for each head is the most: looking closer takes time.
        if decodes.clone().count() * self.demand.num_heads <= ledger.num_free() {
            return 0;
        }
        decodes.map(|seq| seq.table.pages_to_append(1, ledger.layout())).sum()
    }

    fn schedule_decodes(&mut self, step: &mut Step, tokens_left: &mut usize, ledger: &mut Ledger) {
        for seq in self.running.iter_mut().filter(|seq| seq.is_decoding()) {
            let is_short = seq.table.pages_to_append(1, ledger.layout()) > ledger.num_free();
            if *tokens_left == 0 || is_short {
                return;
            }
            step.entries.push(Entry::new(seq, 1, ledger));
            self.fairness.charge(seq.user, 1);
            *tokens_left -= 1;
        }
    }

    fn schedule_prefills(&mut self, step: &mut Step, tokens_left: &mut usize, ledger: &mut Ledger) {
        let room = *tokens_left;
        let prefills =
            self.running.iter_mut().filter(|seq| seq.num_pending() > 1 || seq.table.is_empty());
        // What is compressed holds a chunk in full until the event after it: only one is begun.
        let (begun, others): (Vec<_>, Vec<_>) = prefills.partition(|seq| seq.is_within_chunk());
        let mut is_one_begun = false;
        for seq in begun.into_iter().chain(others) {
            if is_one_begun && seq.is_scored() {
                continue;
            }
            let chunk = largest_chunk(seq, *tokens_left, room, ledger);
            if chunk > 0 {
                step.entries.push(Entry::new(seq, chunk, ledger));
                *tokens_left -= chunk;
            }
            is_one_begun |= seq.is_within_chunk();
        }
    }

    /// The sequence gives its pages back and waits, first in line, to compute them anew.
    fn preempt(&mut self, index: usize, ledger: &mut Ledger) {
        let mut seq = self.running.remove(index);
        seq.release(ledger);
        seq.grant(seq.asked_budget);
        seq.num_preemptions += 1;
        self.num_preemptions += 1;
        self.waiting.push_front(seq);
    }
}

/// The most pending tokens for which there are tokens in the step and pages in the pool. `room` is
/// what the step had for all prefills: the most to wait for.
fn largest_chunk(seq: &Sequence, tokens_left: usize, room: usize, ledger: &Ledger) -> usize {
    let most = match seq.part(room) {
        0 => seq.num_pending().min(tokens_left),
        _ => seq.part(tokens_left),
    };
    let fits = |n: &usize| seq.table.pages_to_append(*n, ledger.layout()) <= ledger.num_free();
    (0..=most).rev().find(fits).unwrap_or(0)
}

#[cfg(test)]
mod tests;
