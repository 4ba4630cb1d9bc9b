use std::{
    collections::HashMap,
    convert::Infallible,
    hash::{DefaultHasher, Hash, Hasher},
};

use keepwell_kernels::{PageLayout, Slot};
use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};

use super::*;
use crate::{
    compress::{Goal, HeadTokens, PolicyId, Prices, Protection, decide, repack},
    sched::{Scheduler, SchedulerLimits, SeqId},
};

const NUM_HEADS: usize = 2;
const CHUNK: usize = 48;
const PROTECTION: Protection = Protection { sinks: 2, recent: 8, prompt_end: 24 };

/// What a slot holds. The content tells all that the token's K and V depend on: its own number, and
/// what was held of every token before it.
#[derive(Clone, Copy, Debug)]
struct Held {
    position: u32,
    content: u64,
    attribution: f32,
}

/// A scheduler whose kernels are hashes: whatever differs in a cache, differs in all that follows.
struct World {
    scheduler: Scheduler,
    ledger: Ledger,
    stored: HashMap<Slot, Held>,
    /// Tokens of those that ended.
    ended: HashMap<SeqId, Vec<u32>>,
    num_cached: usize,
    num_computed: usize,
}

#[derive(Clone, Debug)]
struct Ask {
    tokens: Vec<u32>,
    max_tokens: usize,
    budgets: [f32; 2],
    policy: &'static str,
    salt: Option<Salt>,
}

impl Ask {
    fn new(tokens: &[u32], budget: f32) -> Self {
        let salt = Some(Salt::default());
        let budgets = [budget; 2];
        Self { tokens: tokens.to_vec(), max_tokens: 4, budgets, policy: "attribution", salt }
    }
}

fn hash(value: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

impl World {
    fn new(num_pages: usize) -> Self {
        let layout = PageLayout::new(64);
        let limits = SchedulerLimits {
            max_step_tokens: CHUNK,
            max_running: 6,
            max_waiting: 100,
            max_waiting_tokens: usize::MAX,
        };
        let demand =
            Demand { layout, num_heads: NUM_HEADS, max_chunk: CHUNK, protection: PROTECTION };
        Self {
            scheduler: Scheduler::new(limits, demand),
            ledger: Ledger::new(layout, num_pages),
            stored: HashMap::new(),
            ended: HashMap::new(),
            num_cached: 0,
            num_computed: 0,
        }
    }

    fn queue(&mut self, id: u64, ask: &Ask) {
        let mut seq = Sequence::new(SeqId(id), ask.tokens.clone(), ask.budgets, NUM_HEADS);
        seq.max_len = seq.prompt_len + ask.max_tokens;
        seq.policy = PolicyId::from_name(ask.policy).unwrap();
        seq.chunk_len = CHUNK;
        seq.sharing = Sharing::new(ask.salt, true);
        self.scheduler.queue(seq);
    }

    /// As [`crate::engine::Engine`]: schedule, forward, sample, commit, compress.
    fn step(&mut self) {
        self.scheduler.admit(&mut self.ledger);
        let copies = self.scheduler.take_copies();
        self.copy(copies);
        let step = self.scheduler.schedule(&mut self.ledger);
        assert_eq!(step.stuck, None);
        self.copy(step.copies);
        for entry in &step.entries {
            self.compute(entry);
        }
        for entry in &step.entries {
            self.end_part(entry);
        }
        self.ledger.check(self.scheduler.sequences().map(|seq| &seq.table));
    }

    fn copy(&mut self, copies: Vec<Copies>) {
        for copies in copies {
            match copies {
                Copies::Pages(pages) => self.copy_pages(&pages),
                Copies::Tokens(moves) => {
                    self.num_cached += moves.len() / NUM_HEADS;
                    let lifted: Vec<_> = moves.iter().map(|m| self.stored[&m.from]).collect();
                    self.stored.extend(moves.iter().map(|m| m.to).zip(lifted));
                }
            }
        }
    }

    fn copy_pages(&mut self, pages: &[(PageId, PageId)]) {
        for (from, to) in pages {
            for index in 0..100 {
                let Some(held) = self.stored.get(&Slot { page: *from, index }) else { break };
                self.stored.insert(Slot { page: *to, index }, *held);
            }
        }
    }

    fn compute(&mut self, entry: &Entry) {
        self.num_computed += entry.num_tokens;
        let seq = self.scheduler.running(entry.id).unwrap();
        for (head, writes) in entry.writes.iter().enumerate() {
            let before = slots(seq, head).filter(|slot| writes.iter().all(|w| w.slot != *slot));
            let mut seen: u64 =
                before.fold(0, |sum, slot| sum.wrapping_add(hash(self.stored[&slot].content)));
            let mut fresh = Vec::new();
            for (position, write) in (entry.start..).zip(writes) {
                let content = hash((seq.tokens[position], position, seen));
                let position = position as u32;
                self.stored.insert(write.slot, Held { position, content, attribution: 0.0 });
                seen = seen.wrapping_add(hash(content));
                fresh.push(content);
            }
            let Some(scoring) = entry.scoring else { continue };
            let queries = hash(&fresh[fresh.len() - scoring.rows..]);
            for slot in slots(seq, head) {
                let held = self.stored.get_mut(&slot).unwrap();
                let signal = (hash((queries, held.content)) % 1000) as f32;
                held.attribution = held.attribution * scoring.decay + signal;
            }
        }
    }

    fn end_part(&mut self, entry: &Entry) {
        let demand = *self.scheduler.demand();
        let seq = self.scheduler.running_mut(entry.id).unwrap();
        if entry.samples {
            let last = entry.writes.iter().map(|writes| writes.last().unwrap().slot);
            let contents: Vec<_> = last.map(|slot| self.stored[&slot].content).collect();
            seq.tokens.push((hash(contents) % 3) as u32);
        }
        let moves = leave_part(seq, entry, &demand, &mut self.ledger);
        for m in &moves {
            let held = Held { attribution: 0.0, ..self.stored[&m.from] };
            self.stored.insert(m.to, held);
        }
        if entry.has_event {
            self.compress(entry.id, &demand);
            let seq = self.scheduler.running(entry.id).unwrap();
            let pages = leave_snapshot(seq, &demand, &mut self.ledger);
            self.copy_pages(&pages.unwrap_or_default());
        }
        let seq = self.scheduler.running_mut(entry.id).unwrap();
        published(seq);
        if seq.tokens.len() == seq.max_len {
            self.ended.insert(entry.id, seq.tokens.clone());
            self.scheduler.retire(entry.id, &mut self.ledger);
        }
    }

    fn compress(&mut self, id: SeqId, demand: &Demand) {
        let seq = self.scheduler.running_mut(id).unwrap();
        let max_pages = seq.limit(demand);
        if !seq.is_compressed() || seq.table.num_pages() <= max_pages {
            return;
        }
        let of_head = |head| {
            let held: Vec<_> = slots(seq, head).map(|slot| self.stored[&slot]).collect();
            HeadTokens {
                positions: held.iter().map(|held| held.position).collect(),
                signals: held.iter().map(|held| held.attribution).collect(),
            }
        };
        let tokens: Vec<_> = (0..NUM_HEADS).map(of_head).collect();
        let prices = Prices::default();
        let goal = Goal {
            policy: seq.policy.policy(),
            prices: &prices,
            protection: demand.protection,
            marked: &seq.marked,
            prompt_len: seq.prompt_len,
            max_pages,
        };
        let decision = decide(&seq.table, &tokens, &goal, &demand.layout);
        let stored = &mut self.stored;
        let moved = |moves: &[Move]| {
            let lifted: Vec<_> = moves
                .iter()
                .map(|m| {
                    let held = stored[&m.from];
                    let coded = || hash((held.content, m.to_tier));
                    let content = if m.from_tier == m.to_tier { held.content } else { coded() };
                    Held { content, ..held }
                })
                .collect();
            stored.extend(moves.iter().map(|m| m.to).zip(lifted));
            Ok::<_, Infallible>(())
        };
        let (table, assignments) = (&mut seq.table, &decision.assignments);
        let is_complete = repack(table, &mut self.ledger, &tokens, assignments, moved).unwrap();
        seq.sharing.is_at_best(if is_complete { Purity::Recipe } else { Purity::Private });
    }

    fn run(&mut self) {
        for _ in 0..10_000 {
            if self.scheduler.is_idle() {
                return;
            }
            self.step();
        }
        panic!("still running");
    }

    /// The tokens after the prompt, and how many tokens were computed for them.
    fn answer(&mut self, id: u64, ask: &Ask) -> (Vec<u32>, usize) {
        let before = self.num_computed;
        self.queue(id, ask);
        self.run();
        (self.ended[&SeqId(id)][ask.tokens.len()..].to_vec(), self.num_computed - before)
    }
}

fn slots(seq: &Sequence, head: usize) -> impl Iterator<Item = Slot> {
    let pages = seq.table.head(head).pages.clone();
    pages.into_iter().flat_map(|p| (0..p.len).map(move |index| Slot { page: p.page, index }))
}

/// The answer of a server that serves nobody else and remembers nothing.
fn alone(ask: &Ask) -> Vec<u32> {
    World::new(1000).answer(0, &Ask { salt: None, ..ask.clone() }).0
}

fn text(len: usize, seed: u64) -> Vec<u32> {
    let mut rng = StdRng::seed_from_u64(seed);
    (0..len).map(|_| rng.random_range(0..100)).collect()
}

#[test]
fn a_prompt_does_not_begin_where_only_a_shorter_one_has_an_event() {
    let longer = Ask::new(&text(150, 1), 0.28);
    let shorter = Ask::new(&longer.tokens[..106], 0.28);
    let mut world = World::new(1000);
    world.answer(0, &shorter);
    let (_, num_computed) = world.answer(1, &shorter);
    assert!(num_computed < 106 - 72 + shorter.max_tokens, "its chunk was cut at 72");
    let (answer, num_computed) = world.answer(2, &longer);
    assert_eq!(answer, alone(&longer));
    assert!(num_computed < 150 - 48 + longer.max_tokens, "the event at 48 is one of both");
}

#[test]
fn a_chunk_leaves_its_blocks_where_it_began_whatever_comes_after_it() {
    // With the answer's first token, 71 become 72: too many for a cut at 24.
    let tokens = text(150, 1);
    let mut world = World::new(1000);
    world.answer(0, &Ask::new(&tokens, 0.28));
    let shorter = Ask::new(&tokens[..71], 0.28);
    assert_eq!(world.answer(1, &shorter).0, alone(&shorter));
    let others = [&tokens[..72], &text(70, 2)[..]].concat();
    for ask in [shorter, Ask::new(&tokens, 0.28), Ask::new(&others, 0.28)] {
        assert_eq!(world.answer(ask.tokens.len() as u64, &ask).0, alone(&ask));
    }
}

#[test]
fn a_hit_gives_the_tokens_of_a_miss_and_computes_less() {
    let document = text(200, 1);
    for (budget, most) in [(1.0, 8), (0.28, 48), (0.6, 48)] {
        let mut world = World::new(1000);
        for (id, question) in [[1, 2, 3], [4, 5, 6], [1, 2, 3]].iter().enumerate() {
            let ask = Ask::new(&[&document[..], question].concat(), budget);
            let (answer, num_computed) = world.answer(id as u64, &ask);
            assert_eq!(answer, alone(&ask), "at {budget}");
            // Of the prompt, and all tokens of the answer but the last.
            let most = if id == 0 { 203 } else { most };
            assert!(num_computed <= most + 3, "{num_computed} of request {id} at {budget}");
        }
        assert_eq!(world.ledger.num_live(), 0);
    }
}

#[test]
fn the_next_turn_of_a_chat_begins_with_the_last_one() {
    let mut world = World::new(1000);
    let mut tokens = text(50, 2);
    let mut counts = Vec::new();
    for id in 0..4 {
        let ask = Ask { max_tokens: 20, ..Ask::new(&tokens, 1.0) };
        let (answer, num_computed) = world.answer(id, &ask);
        counts.push(num_computed - 19);
        tokens.extend(answer);
        tokens.extend(text(10, id));
    }
    assert_eq!(counts[0], 50);
    assert!(counts[1..].iter().all(|count| *count <= 10 + 8 + 1), "{counts:?}");
}

#[test]
fn choices_of_a_prompt_compute_and_hold_it_once() {
    for budget in [1.0, 0.5] {
        let mut world = World::new(2000);
        let ask = Ask::new(&text(203, 3), budget);
        (0..4).for_each(|id| world.queue(id, &ask));
        world.step();
        assert_eq!(world.scheduler.num_running(), 1, "the others wait for what it computes");
        while world.scheduler.num_waiting() > 0 {
            world.step();
        }
        if budget == 1.0 {
            let private = 4 * NUM_HEADS;
            let live = world.ledger.num_live();
            assert!(live <= 203usize.div_ceil(8) * NUM_HEADS + private, "{live} pages");
        }
        world.run();
        let most = 203 + 3 * CHUNK + 4 * 3;
        assert!(world.num_computed <= most, "{} at {budget}", world.num_computed);
        let answers: Vec<_> = (0..4).map(|id| world.ended[&SeqId(id)].clone()).collect();
        assert!(answers.iter().all(|answer| answer[203..] == alone(&ask)));
    }
}

#[test]
fn who_waits_for_one_that_is_cancelled_or_gives_way_goes_on_alone() {
    for budget in [1.0, 0.5] {
        let mut world = World::new(1000);
        let ask = Ask::new(&text(203, 4), budget);
        (0..2).for_each(|id| world.queue(id, &ask));
        world.step();
        assert_eq!((world.scheduler.num_running(), world.scheduler.num_waiting()), (1, 1));
        world.scheduler.retire(SeqId(0), &mut world.ledger).unwrap();
        world.run();
        assert_eq!(world.ended[&SeqId(1)][203..], alone(&ask));
        // What the first one computed of its first chunk was not in vain.
        assert!(world.num_computed <= 203 + CHUNK + 3, "{}", world.num_computed);
    }
}

#[test]
fn nobody_finds_what_another_salt_left() {
    for budget in [1.0, 0.5] {
        let mut world = World::new(1000);
        let ask = Ask::new(&text(203, 5), budget);
        let other = Ask { salt: Some(Salt([1; 32])), ..ask.clone() };
        let none = Ask { salt: None, ..ask.clone() };
        let mut count = |id, ask| world.answer(id, ask).1;
        let counts = [count(0, &ask), count(1, &other), count(2, &none), count(3, &none)];
        assert_eq!(counts, [206; 4]);
        assert!(world.answer(4, &other).1 < 100);
    }
}

#[test]
fn what_an_answer_or_the_end_of_a_prompt_did_to_a_cache_is_never_found() {
    let document = text(300, 6);
    for end in [100, 144, 145, 151, 152, 153, 192, 200] {
        let mut world = World::new(1000);
        // Long enough an answer for events of its own.
        let ask = Ask { max_tokens: 150, ..Ask::new(&document[..end], 0.28) };
        let (answer, _) = world.answer(0, &ask);
        let said = [&document[..end], &answer, &text(40, 7)].concat();
        for (id, tokens) in [&document[..], &said, &document[..end + 9]].iter().enumerate() {
            let ask = Ask::new(tokens, 0.28);
            assert_eq!(world.answer(1 + id as u64, &ask).0, alone(&ask), "{end}, {id}");
        }
    }
}

#[test]
fn random_crowds_answer_as_if_each_were_alone() {
    let mut rng = StdRng::seed_from_u64(12);
    let (mut num_cached, mut num_compared) = (0, 0);
    for _ in 0..6 {
        let texts: Vec<_> = (0..3).map(|seed| text(400, seed)).collect();
        // Little enough that prefixes are given up.
        let mut world = World::new(rng.random_range(250..600));
        let mut asked = Vec::new();
        for id in 0..40 {
            let (len, own) = (rng.random_range(1..300), rng.random_range(0..20));
            let of = texts.choose(&mut rng).unwrap();
            let budget = *[1.0, 0.6, 0.28].choose(&mut rng).unwrap();
            let floor = if rng.random_bool(0.3) { budget / 2.0 } else { budget };
            let ask = Ask {
                max_tokens: rng.random_range(1..100),
                budgets: [budget, floor],
                policy: ["attribution", "recency"].choose(&mut rng).unwrap(),
                salt: [Some(Salt::default()), None].choose(&mut rng).copied().unwrap(),
                ..Ask::new(&[&of[..len], &text(own, id)].concat(), budget)
            };
            world.queue(id, &ask);
            asked.push(ask);
            (0..rng.random_range(0..12)).for_each(|_| world.step());
            let pure = |seq: &Sequence| seq.sharing.purity != Purity::Private;
            assert!(world.scheduler.sequences().all(pure), "pages suffice here");
        }
        world.run();
        for (id, ask) in asked.iter().enumerate() {
            let answer = &world.ended[&SeqId(id as u64)][ask.tokens.len()..];
            assert_eq!(*answer, alone(ask), "{id}: {ask:?}");
            num_compared += 1;
        }
        num_cached += world.num_cached;
        assert_eq!(world.ledger.num_live(), 0);
        world.ledger.forget_cached();
        assert_eq!(world.ledger.prefixes().num_nodes(), 0);
    }
    assert!(num_cached > 1000 && num_compared == 240, "{num_cached} tokens copied say little");
}
