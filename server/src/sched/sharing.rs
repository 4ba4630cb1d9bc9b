//! What sequences take from the prefix cache, and what they leave there.
//!
//! A sequence that is never compressed shares its pages as they are. One that may be takes and leaves copies:
//! of blocks that its chunk found computed, and of snapshots between chunks. What it leaves is a
//! function of tokens and recipe alone, because
//! - chunks end where the tokens say ([`super::Chunks`]), whatever else a step computes, and the
//!   queries scored at a chunk's end come in one step ([`Sequence::part`]);
//! - events within a prompt count with a rounded length of it ([`Sequence::prefilled_len`]); what
//!   that costs, a sixteenth of the bytes at most, is given back by the event at the prompt's end;
//! - no snapshot reaches into the protected end of the prompt, nor into generated tokens: those
//!   events see what comes after.

use keepwell_kernels::{Move, PageId, Tier};

use super::{Chunks, Demand, Entry, Sequence};
use crate::cache::{Contents, Copies, Hit, Ledger, NodeId, Recipe, Salt};

/// Tokens worth waiting for while another sequence computes them: a step has costs of its own.
const WORTH_WAITING: usize = 32;

/// A sequence's part in the prefix cache.
#[derive(Clone, Debug, Default)]
pub struct Sharing {
    /// Who may share with it; `None` is nobody.
    pub salt: Option<Salt>,
    /// Whether it may begin with what is known: not where all rows of the prompt are wanted.
    pub reads: bool,
    purity: Purity,
    /// Pages that the events of its prefill bring it down to.
    max_pages: usize,
    /// Tokens computed when its last step ended: what others can find.
    num_published: usize,
}

/// What the pages of a compressed sequence depend on, besides its tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Purity {
    /// The policy: no event had anything to do.
    #[default]
    Exact,
    /// The recipe.
    Recipe,
    /// What else ran.
    Private,
}

impl Sharing {
    pub fn new(salt: Option<Salt>, reads: bool) -> Self {
        Self { salt, reads, ..Self::default() }
    }

    /// Whether the sequence asks what is known.
    pub fn looks_up(&self) -> bool {
        self.reads && self.salt.is_some()
    }

    /// Something happened after which the pages are no purer than this.
    pub fn is_at_best(&mut self, purity: Purity) {
        self.purity = self.purity.max(purity);
    }

    pub(super) fn start_anew(&mut self) {
        self.purity = Purity::Exact;
        self.num_published = 0;
    }
}

impl Sequence {
    fn recipe(&self, max_pages: Option<usize>) -> Recipe {
        Recipe { policy: self.policy.policy().name(), max_pages }
    }

    /// Pages that the events within the prompt leave.
    fn prefill_limit(&self, demand: &Demand) -> usize {
        match self.asked_budget < 1.0 {
            true => demand.prefill_limit(self.asked_budget, self.prefilled_len()),
            false => usize::MAX,
        }
    }

    /// Where the last event comes that leaves a snapshot.
    fn last_snapshot(&self, demand: &Demand) -> usize {
        // An event with one token to come is an event of a decoding sequence.
        let most = self.prompt_len.saturating_sub(demand.protection.prompt_end);
        self.chunks().start(most.min(self.tokens.len().saturating_sub(2)))
    }

    /// Whether the event at `end` leaves a snapshot: the last two do, which prompts that end
    /// differently have in common, and some before, further and further apart.
    fn leaves_snapshot(&self, end: usize, demand: &Demand) -> bool {
        let last = self.last_snapshot(demand);
        end <= last && ((end / self.chunk_len).is_power_of_two() || self.leaves_blocks(end, demand))
    }

    /// Whether the chunk from `start` on leaves blocks: the first one does, where whatever the recipe
    /// nothing is lost yet, and those in which prompts come to differ.
    fn leaves_blocks(&self, start: usize, demand: &Demand) -> bool {
        start == 0 || start + self.chunk_len >= self.last_snapshot(demand)
    }

    /// Tokens, of those from `start` to the end of its chunk, that may come from the cache: the
    /// queries that are scored, and the last token of all, are computed.
    fn cacheable_end(&self, start: usize) -> usize {
        let last = self.tokens.len().saturating_sub(1);
        if !self.is_scored() {
            return last;
        }
        let end = self.chunks().end(start);
        end.saturating_sub(self.tokens_together()).max(start)
    }

    /// Exact K and V that it leaves.
    fn exact_len(&self) -> usize {
        match self.is_scored() {
            true => self.prompt_len.min(self.chunks().end(0)),
            false => self.tokens.len(),
        }
    }
}

/// What is known of the sequence's tokens, as far as it may be used, and what that depends on.
fn known(seq: &Sequence, demand: &Demand, ledger: &Ledger) -> (Hit, Purity) {
    let Some(salt) = seq.sharing.salt.filter(|_| seq.sharing.reads) else {
        return Default::default();
    };
    let (snapshot, purity) = known_snapshot(seq, salt, demand, ledger);
    let (parent, start) = snapshot.map_or((None, 0), |(id, len)| (Some(id), len));
    let tokens = &seq.tokens[start..seq.cacheable_end(start)];
    let capacity = demand.layout.capacity(Tier::F16);
    let blocks = ledger.prefixes().blocks(salt, parent, tokens, capacity);
    (Hit { snapshot, blocks }, purity)
}

fn known_snapshot(
    seq: &Sequence,
    salt: Salt,
    demand: &Demand,
    ledger: &Ledger,
) -> (Option<(NodeId, usize)>, Purity) {
    if !seq.is_scored() {
        return Default::default();
    }
    let tokens = &seq.tokens[..seq.last_snapshot(demand)];
    let max_pages = seq.prefill_limit(demand);
    let chunks = seq.chunks();
    let find = |limit, fits: &dyn Fn(&Contents) -> bool| {
        let accepts = |len, contents: &Contents| chunks.is_start(len) && fits(contents);
        ledger.prefixes().longest_snapshot(salt, &seq.recipe(limit), tokens, accepts)
    };
    let compressed = find(Some(max_pages), &|_| true);
    // No event touched it, and none of this sequence's would: so many pages are within its limit.
    let untouched = find(None, &|contents| contents.pages().count() <= max_pages);
    let len = |found: Option<(NodeId, usize)>| found.map_or(0, |(_, len)| len);
    match len(compressed) > len(untouched) {
        true => (compressed, Purity::Recipe),
        false => (untouched, Purity::Exact),
    }
}

/// Pages that the sequence would share with running ones.
pub fn num_shared_pages(seq: &Sequence, demand: &Demand, ledger: &Ledger) -> usize {
    if seq.is_scored() {
        return 0;
    }
    let (hit, _) = known(seq, demand, ledger);
    let num_held = hit.blocks.iter().take_while(|id| ledger.prefixes().is_held(**id)).count();
    num_held * demand.num_heads
}

/// Begins the sequence with what is known. Returns what has to be copied for it.
pub fn begin(seq: &mut Sequence, demand: &Demand, ledger: &mut Ledger) -> Vec<Copies> {
    let (hit, purity) = known(seq, demand, ledger);
    seq.sharing.max_pages = seq.prefill_limit(demand);
    let copies = if !seq.is_scored() {
        seq.table.share(hit.blocks, ledger);
        None
    } else {
        // Copies are no reason to squeeze anybody.
        let is_there_room = num_pages(&hit, ledger) + demand.chunk() <= ledger.num_free();
        let copies = is_there_room.then(|| seq.table.copy_in(&hit, ledger)).flatten();
        copies.inspect(|_| seq.sharing.is_at_best(purity))
    };
    seq.sharing.num_published = seq.table.len();
    copies.unwrap_or_default()
}

fn num_pages(hit: &Hit, ledger: &Ledger) -> usize {
    let nodes = hit.snapshot.iter().map(|(id, _)| id).chain(&hit.blocks);
    nodes.map(|id| ledger.prefixes().contents(*id).pages().count()).sum()
}

/// Leaves what the entry computed for others. Returns what has to be copied for that; attributions
/// are no part of it.
pub fn leave_part(
    seq: &mut Sequence,
    entry: &Entry,
    demand: &Demand,
    ledger: &mut Ledger,
) -> Vec<Move> {
    let Some(salt) = seq.sharing.salt else { return Vec::new() };
    if !seq.is_scored() {
        seq.table.publish(&seq.tokens, salt, ledger);
        return Vec::new();
    }
    leave_blocks(seq, salt, entry, demand, ledger).unwrap_or_default()
}

/// Full blocks of the prompt, counted from the start of the chunk.
fn leave_blocks(
    seq: &Sequence,
    salt: Salt,
    entry: &Entry,
    demand: &Demand,
    ledger: &mut Ledger,
) -> Option<Vec<Move>> {
    // As it was before the entry's sample made the tokens one more.
    let total = if entry.samples { entry.start + entry.num_tokens } else { seq.tokens.len() };
    let start = Chunks { total, ..seq.chunks() }.start(entry.start);
    let end = seq.prompt_len.min(entry.start + entry.num_tokens);
    if end <= start || !seq.leaves_blocks(start, demand) {
        return None;
    }
    let parent = match start {
        0 if seq.sharing.purity == Purity::Private => return None,
        0 => None,
        _ => Some(ledger.prefixes().snapshot(salt, &seq.pure_recipe()?, &seq.tokens[..start])?),
    };
    let capacity = demand.layout.capacity(Tier::F16);
    let known = ledger.prefixes().blocks(salt, parent, &seq.tokens[start..end], capacity);
    let mut parent = known.last().copied().or(parent);
    let mut moves = Vec::new();
    for at in (start + known.len() * capacity..end).step_by(capacity) {
        // What came before this part may have been given up since.
        if at < entry.start || at + capacity > end {
            break;
        }
        let tokens = &seq.tokens[at..at + capacity];
        let writes = entry.writes.iter().map(|of| &of[at - entry.start..][..capacity]);
        let Some((id, copies)) = ledger.leave_block(salt, parent, tokens, writes) else { break };
        parent = Some(id);
        moves.extend(copies);
    }
    Some(moves)
}

/// Leaves what an event within the prompt left of it. Returns the pages to be copied: from, to.
pub fn leave_snapshot(
    seq: &Sequence,
    demand: &Demand,
    ledger: &mut Ledger,
) -> Option<Vec<(PageId, PageId)>> {
    let (salt, end) = (seq.sharing.salt?, seq.table.len());
    let is_due = seq.chunks().is_start(end) && seq.leaves_snapshot(end, demand);
    let recipe = seq.pure_recipe().filter(|_| is_due)?;
    seq.table.leave_snapshot(salt, recipe, &seq.tokens[..end], ledger)
}

impl Sequence {
    /// The recipe that made the pages what they are, if one did.
    fn pure_recipe(&self) -> Option<Recipe> {
        match self.sharing.purity {
            Purity::Exact => Some(self.recipe(None)),
            Purity::Recipe => Some(self.recipe(Some(self.sharing.max_pages))),
            Purity::Private => None,
        }
    }
}

/// Others find what the sequence computed so far.
pub fn published(seq: &mut Sequence) {
    seq.sharing.num_published = seq.table.len();
}

/// Whether one of those that run computes right now what this sequence would begin with.
pub fn awaits_one_of(seq: &Sequence, running: &[Sequence], demand: &Demand) -> bool {
    seq.sharing.looks_up()
        && running.iter().any(|leader| {
            !leader.is_decoding()
                && leader.sharing.salt == seq.sharing.salt
                && reach(leader, seq, demand) >= leader.sharing.num_published + WORTH_WAITING
        })
}

/// Tokens that `seq` could begin with, once `leader` has computed all of its own.
fn reach(leader: &Sequence, seq: &Sequence, demand: &Demand) -> usize {
    let capacity = demand.layout.capacity(Tier::F16);
    let common = leader.tokens.iter().zip(&seq.tokens).take_while(|(a, b)| a == b).count();
    let blocks_from = |start: usize, end: usize| {
        let end = common.min(seq.cacheable_end(start)).min(end);
        start + end.saturating_sub(start) / capacity * capacity
    };
    let is_alike = leader.is_scored()
        && seq.is_scored()
        && leader.sharing.purity != Purity::Private
        && leader.recipe(Some(leader.sharing.max_pages))
            == seq.recipe(Some(seq.prefill_limit(demand)));
    let last = match is_alike {
        true => common.min(seq.last_snapshot(demand)),
        false => 0,
    };
    let mut ends = seq.chunks().starts_back_from(last).filter(|end| leader.chunks().is_start(*end));
    match ends.find(|end| *end == 0 || leader.leaves_snapshot(*end, demand)).unwrap_or(0) {
        0 => blocks_from(0, leader.exact_len()),
        start if leader.leaves_blocks(start, demand) => blocks_from(start, leader.prompt_len),
        start => start,
    }
}

#[cfg(test)]
mod tests;
