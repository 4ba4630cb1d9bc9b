use std::{
    collections::HashMap,
    hash::{DefaultHasher, Hash, Hasher},
};

use keepwell_kernels::{Move, PageLayout, Slot, Write};
use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};

use super::*;
use crate::cache::{Copies, Hit, Ledger, PageTable};

const NUM_HEADS: usize = 2;
/// Tokens of an F16 page at head size 64.
const BLOCK: usize = 8;
/// Compress events come at multiples of this.
const CHUNK: usize = 20;

fn salt(name: &str) -> Salt {
    let mut bytes = [0; 32];
    bytes[..name.len()].copy_from_slice(name.as_bytes());
    Salt(bytes)
}

fn hash(value: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

/// A sequence in a world where kernels are hashes: K and V of a token are a number that tells
/// everything they depend on.
struct Seq {
    salt: Salt,
    tokens: Vec<u32>,
    /// `None` shares; else it is compressed, to so many pages.
    max_pages: Option<usize>,
    table: PageTable,
}

impl Seq {
    fn recipe(&self) -> Recipe {
        Recipe { policy: "attribution", max_pages: self.max_pages }
    }

    /// What must be held of a position, had nothing ever been shared.
    fn expected(&self, position: usize) -> u64 {
        let len = self.table.len();
        let all = (CHUNK..).step_by(CHUNK).take_while(|end| *end <= len);
        let events: Vec<_> = all.filter(|_| self.max_pages.is_some()).collect();
        let seen: Vec<_> = events.iter().filter(|end| **end <= position).collect();
        let fresh = hash((&self.tokens[..=position], &seen, self.recipe_seen(seen.len())));
        let later = events.iter().filter(|end| **end > position);
        later.fold(fresh, |held, end| hash((held, end, self.max_pages)))
    }

    /// Before the first event a recipe has no effect.
    fn recipe_seen(&self, num_events: usize) -> Option<usize> {
        self.max_pages.filter(|_| num_events > 0)
    }
}

struct World {
    rng: StdRng,
    ledger: Ledger,
    stored: HashMap<Slot, u64>,
    seqs: Vec<Seq>,
    num_reused: usize,
}

impl World {
    fn new(seed: u64, num_pages: usize) -> Self {
        Self {
            rng: StdRng::seed_from_u64(seed),
            ledger: Ledger::new(PageLayout::new(64), num_pages),
            stored: HashMap::new(),
            seqs: Vec::new(),
            num_reused: 0,
        }
    }

    /// Starts with what is known of the tokens, as far as at least one is left to compute.
    fn start(&mut self, salt: Salt, tokens: Vec<u32>, max_pages: Option<usize>) {
        let mut seq = Seq { salt, tokens, max_pages, table: PageTable::new(NUM_HEADS) };
        let known = &seq.tokens[..seq.tokens.len() - 1];
        let index = self.ledger.prefixes();
        if max_pages.is_none() {
            let blocks = index.blocks(seq.salt, None, known, BLOCK);
            seq.table.share(blocks, &mut self.ledger);
        } else {
            let snapshot = index.longest_snapshot(seq.salt, &seq.recipe(), known, |_, _| true);
            let start = snapshot.map_or(0, |(_, len)| len);
            // A chunk's last token is computed: its event is.
            let end = known.len().min(start + CHUNK - 1);
            let parent = snapshot.map(|(id, _)| id);
            let blocks = index.blocks(seq.salt, parent, &known[start..end], BLOCK);
            let copies = seq.table.copy_in(&Hit { snapshot, blocks }, &mut self.ledger);
            copies.into_iter().flatten().for_each(|copies| self.copy(copies));
        }
        self.num_reused += seq.table.len();
        self.seqs.push(seq);
    }

    fn copy(&mut self, copies: Copies) {
        match copies {
            Copies::Pages(pages) => pages.into_iter().for_each(|(from, to)| {
                for index in 0..100 {
                    let Some(held) = self.stored.get(&Slot { page: from, index }) else { break };
                    self.stored.insert(Slot { page: to, index }, *held);
                }
            }),
            Copies::Tokens(moves) => self.move_tokens(&moves),
        }
    }

    fn move_tokens(&mut self, moves: &[Move]) {
        let lifted: Vec<_> = moves.iter().map(|m| self.stored[&m.from]).collect();
        self.stored.extend(moves.iter().map(|m| m.to).zip(lifted));
    }

    /// Computes tokens, up to the next event where there are any. False when pages are short.
    fn advance(&mut self, index: usize) -> bool {
        let seq = &mut self.seqs[index];
        let (start, left) = (seq.table.len(), seq.tokens.len() - seq.table.len());
        let most = left.min(if seq.max_pages.is_some() { CHUNK - start % CHUNK } else { left });
        let num_tokens = self.rng.random_range(0..=most);
        let layout = *self.ledger.layout();
        if seq.table.pages_to_append(num_tokens, &layout) > self.ledger.num_free() {
            return false;
        }
        let writes = seq.table.append(num_tokens, &mut self.ledger);
        let end = start + num_tokens;
        let num_events = if seq.max_pages.is_some() { start / CHUNK } else { 0 };
        let seen: Vec<_> = (1..=num_events).map(|nth| nth * CHUNK).collect();
        for head in &writes {
            for (position, write) in (start..).zip(head) {
                let seen = (&seq.tokens[..=position], seen.iter().collect::<Vec<_>>());
                let fresh = hash((seen.0, seen.1, seq.recipe_seen(num_events)));
                self.stored.insert(write.slot, fresh);
            }
        }
        match seq.max_pages {
            None => seq.table.publish(&seq.tokens, seq.salt, &mut self.ledger),
            Some(_) => {
                self.leave_blocks(index, start, &writes);
                if end.is_multiple_of(CHUNK) && num_tokens > 0 {
                    self.event(index);
                }
            }
        }
        true
    }

    fn leave_blocks(&mut self, index: usize, start: usize, writes: &[Vec<Write>]) {
        let seq = &self.seqs[index];
        let chunk = start / CHUNK * CHUNK;
        let before = &seq.tokens[..chunk];
        let snapshot = self.ledger.prefixes().snapshot(seq.salt, &seq.recipe(), before);
        if chunk > 0 && snapshot.is_none() {
            return;
        }
        let end = start + writes[0].len();
        let known =
            self.ledger.prefixes().blocks(seq.salt, snapshot, &seq.tokens[chunk..end], BLOCK);
        let mut parent = known.last().copied().or(snapshot);
        for at in (chunk + known.len() * BLOCK..).step_by(BLOCK) {
            let block = at..at + BLOCK;
            if at < start || block.end > end {
                return;
            }
            let writes = writes.iter().map(|w| &w[at - start..][..BLOCK]);
            let (salt, tokens) = (seq.salt, &seq.tokens[block]);
            let Some((id, moves)) = self.ledger.leave_block(salt, parent, tokens, writes) else {
                return;
            };
            parent = Some(id);
            let lifted: Vec<_> = moves.iter().map(|m| self.stored[&m.from]).collect();
            self.stored.extend(moves.iter().map(|m| m.to).zip(lifted));
        }
    }

    /// Everything held becomes something else, in place.
    fn event(&mut self, index: usize) {
        let seq = &self.seqs[index];
        let end = seq.table.len();
        for slot in slots(&seq.table) {
            let held = self.stored[&slot];
            self.stored.insert(slot, hash((held, &end, seq.max_pages)));
        }
        let (recipe, tokens) = (seq.recipe(), &seq.tokens[..end]);
        let left = seq.table.leave_snapshot(seq.salt, recipe, tokens, &mut self.ledger);
        left.into_iter().for_each(|pages| self.copy(Copies::Pages(pages)));
    }

    fn end(&mut self, index: usize) {
        self.seqs.swap_remove(index).table.release(&mut self.ledger);
    }

    fn check(&self) {
        self.ledger.check(self.seqs.iter().map(|seq| &seq.table));
        let num_pages = self.ledger.num_free() + self.ledger.num_live();
        assert_eq!(num_pages, self.ledger.num_pages());
        for seq in &self.seqs {
            seq.table.check(self.ledger.layout());
            let positions = (0..NUM_HEADS).flat_map(|_| 0..seq.table.len());
            for (position, slot) in positions.zip(slots(&seq.table)) {
                assert_eq!(self.stored[&slot], seq.expected(position), "position {position}");
            }
        }
    }
}

/// All slots, head by head in the order of positions: nothing here is ever moved.
fn slots(table: &PageTable) -> impl Iterator<Item = Slot> {
    let heads = (0..table.num_heads()).flat_map(|head| table.head(head).pages.clone());
    heads.flat_map(|page| (0..page.len).map(move |index| Slot { page: page.page, index }))
}

#[test]
fn a_random_crowd_reads_what_it_would_have_computed_itself() {
    for seed in 0..4 {
        let mut world = World::new(seed, 150);
        for step in 0..2000 {
            match world.rng.random_range(0..100) {
                _ if world.seqs.is_empty() => start_random(&mut world),
                0..12 if world.seqs.len() < 8 => start_random(&mut world),
                12..20 => {
                    let index = world.rng.random_range(0..world.seqs.len());
                    world.end(index);
                }
                20..24 => grow(&mut world),
                _ => {
                    let index = world.rng.random_range(0..world.seqs.len());
                    if !world.advance(index) {
                        world.end(index);
                    }
                }
            }
            if step % 8 == 0 {
                world.check();
            }
        }
        assert!(world.num_reused > 2000, "{} tokens reused say little", world.num_reused);
        (0..world.seqs.len()).for_each(|_| world.end(0));
        assert_eq!(world.ledger.num_live(), 0);
        world.ledger.forget_cached();
        world.check();
        assert_eq!((world.ledger.num_cached(), world.ledger.prefixes().num_nodes()), (0, 0));
    }
}

/// Tokens are of two kinds and often the same for long, so that many begin alike.
fn start_random(world: &mut World) {
    let len = world.rng.random_range(1..90);
    let change = world.rng.random_range(0..90);
    let token = |at: usize, rng: &mut StdRng| if at < change { 0 } else { rng.random_range(0..2) };
    let tokens = (0..len).map(|at| token(at, &mut world.rng)).collect();
    let name = *["", "a"].choose(&mut world.rng).unwrap();
    let max_pages = *[None, Some(5), Some(6)].choose(&mut world.rng).unwrap();
    world.start(salt(name), tokens, max_pages);
}

/// A token is generated.
fn grow(world: &mut World) {
    let index = world.rng.random_range(0..world.seqs.len());
    let token = world.rng.random_range(0..2);
    world.seqs[index].tokens.push(token);
}

/// A table that has computed these tokens and published them under this salt.
fn published(ledger: &mut Ledger, salt: Salt, tokens: &[u32]) -> PageTable {
    let mut table = PageTable::new(NUM_HEADS);
    table.append(tokens.len(), ledger);
    table.publish(tokens, salt, ledger);
    table
}

fn known(ledger: &Ledger, salt: Salt, tokens: &[u32]) -> usize {
    ledger.prefixes().blocks(salt, None, tokens, BLOCK).len() * BLOCK
}

#[test]
fn a_shared_page_survives_until_its_last_sequence_ends() {
    let mut ledger = Ledger::new(PageLayout::new(64), 12);
    let (none, tokens) = (salt(""), vec![1; 20]);
    let mut first = published(&mut ledger, none, &tokens);
    let mut second = PageTable::new(NUM_HEADS);
    let blocks = ledger.prefixes().blocks(none, None, &tokens, BLOCK);
    second.share(blocks, &mut ledger);
    assert_eq!((second.len(), ledger.num_live()), (16, 6));
    first.release(&mut ledger);
    assert_eq!((ledger.num_live(), ledger.num_cached()), (4, 0));
    ledger.forget_cached();
    ledger.check([&second]);
    second.release(&mut ledger);
    assert_eq!((ledger.num_live(), ledger.num_cached(), ledger.num_free()), (0, 4, 12));
    ledger.check([]);
}

#[test]
fn equal_blocks_computed_twice_are_held_once() {
    let mut ledger = Ledger::new(PageLayout::new(64), 12);
    let (none, tokens) = (salt(""), vec![1; 17]);
    let first = published(&mut ledger, none, &tokens);
    let second = published(&mut ledger, none, &tokens);
    assert_eq!(first.head(1).pages[..2], second.head(1).pages[..2]);
    assert_ne!(first.head(1).pages[2], second.head(1).pages[2]);
    assert_eq!(ledger.num_live(), (2 + 1 + 1) * NUM_HEADS);
    ledger.check([&first, &second]);
}

#[test]
fn the_least_recently_used_goes_first_and_its_end_before_its_beginning() {
    let mut ledger = Ledger::new(PageLayout::new(64), 8 * NUM_HEADS);
    let none = salt("");
    let prompts = [vec![1; 16], vec![2; 16], vec![3; 16]];
    for tokens in &prompts {
        published(&mut ledger, none, tokens).release(&mut ledger);
    }
    // The oldest is used again.
    let blocks = ledger.prefixes().blocks(none, None, &prompts[0], BLOCK);
    let mut again = PageTable::new(NUM_HEADS);
    again.share(blocks, &mut ledger);
    again.release(&mut ledger);
    let mut other = PageTable::new(NUM_HEADS);
    other.append(3 * BLOCK, &mut ledger);
    let lens = |ledger: &Ledger| prompts.each_ref().map(|tokens| known(ledger, none, tokens));
    assert_eq!(lens(&ledger), [16, 8, 16]);
    other.append(2 * BLOCK, &mut ledger);
    assert_eq!(lens(&ledger), [16, 0, 8]);
    ledger.check([&other]);
}

#[test]
fn salts_know_nothing_of_each_other_and_leave_nothing_behind() {
    let mut ledger = Ledger::new(PageLayout::new(64), 40);
    let tokens = vec![1; 16];
    for name in ["", "a", "b"] {
        published(&mut ledger, salt(name), &tokens).release(&mut ledger);
    }
    for (name, len) in [("", 16), ("a", 16), ("b", 16), ("c", 0), ("ab", 0)] {
        assert_eq!(known(&ledger, salt(name), &tokens), len, "{name}");
    }
    assert_eq!(ledger.num_cached(), 3 * 2 * NUM_HEADS);
    ledger.forget_cached();
    assert!(ledger.prefixes.families.is_empty());
}

#[test]
fn a_snapshot_serves_its_own_recipe_alone() {
    let mut ledger = Ledger::new(PageLayout::new(64), 40);
    let (none, tokens) = (salt(""), vec![1; 20]);
    let mut table = PageTable::new(NUM_HEADS);
    table.append(20, &mut ledger);
    let recipe = |max_pages| Recipe { policy: "attribution", max_pages };
    table.leave_snapshot(none, recipe(Some(6)), &tokens, &mut ledger).unwrap();
    assert!(table.leave_snapshot(none, recipe(Some(6)), &tokens, &mut ledger).is_none(), "known");
    let found = |recipe| {
        let longer = [&tokens[..], &[5, 6]].concat();
        let found = ledger.prefixes().longest_snapshot(none, &recipe, &longer, |_, _| true);
        found.map(|(_, len)| len)
    };
    assert_eq!(found(recipe(Some(6))), Some(20));
    assert_eq!([found(recipe(Some(7))), found(recipe(None))], [None; 2]);
    assert_eq!(found(Recipe { policy: "random", max_pages: Some(6) }), None);
    ledger.check([&table]);
}

#[test]
fn a_block_is_not_left_where_only_what_it_hangs_on_could_make_way() {
    let mut ledger = Ledger::new(PageLayout::new(64), 5 * NUM_HEADS);
    let (none, capacity) = (salt(""), ledger.layout().capacity(Tier::F16));
    let tokens: Vec<u32> = (0..capacity as u32).collect();
    let mut table = PageTable::new(NUM_HEADS);
    let writes = table.append(capacity, &mut ledger);
    let mut parent = None;
    for num_left in 0..6 {
        let left = ledger.leave_block(none, parent, &tokens, writes.iter().map(Vec::as_slice));
        assert_eq!(left.is_some(), num_left < 4, "{num_left} blocks hang on each other");
        parent = left.map_or(parent, |(id, _)| Some(id));
        ledger.check([&table]);
    }
}

#[test]
fn what_is_copied_is_not_reclaimed_for_its_copies() {
    let mut ledger = Ledger::new(PageLayout::new(64), 5 * NUM_HEADS);
    let (none, tokens) = (salt(""), vec![1; 24]);
    published(&mut ledger, none, &tokens).release(&mut ledger);
    let blocks = ledger.prefixes().blocks(none, None, &tokens, BLOCK);
    let mut table = PageTable::new(NUM_HEADS);
    let hit = |blocks: &[NodeId]| Hit { snapshot: None, blocks: blocks.to_vec() };
    // Three blocks to read and three to write do not fit; two of each do.
    assert!(table.copy_in(&hit(&blocks), &mut ledger).is_none());
    assert!(table.copy_in(&hit(&blocks[..2]), &mut ledger).is_some());
    ledger.check([&table]);
}
