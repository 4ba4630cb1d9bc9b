use std::{collections::HashMap, convert::Infallible};

use keepwell_kernels::{PerTier, Slot};
use rand::{Rng, SeedableRng, rngs::StdRng};

use super::*;
use crate::{
    compress::{HeadPrices, POLICIES, PolicyId, REFUSED, Spans, normal_error},
    sched::{Demand, EVENT_INTERVAL, SeqId, Sequence},
};

const NUM_HEADS: usize = 2;
const NUM_STEPS: usize = 10_000;
const BUDGETS: [f32; 7] = [1.0, 0.6, 0.28, 0.2, 0.125, 0.06, 0.01];

/// Sequences that share an arena; slots carry their token's position, and kernels are dice.
struct World {
    rng: StdRng,
    demand: Demand,
    ledger: Ledger,
    running: Vec<Sequence>,
    stored: HashMap<Slot, u32>,
    prices: Prices,
    num_events: usize,
}

impl World {
    fn new(seed: u64) -> Self {
        let layout = PageLayout::new(64);
        let protection = Protection::default();
        let demand = Demand { layout, num_heads: NUM_HEADS, max_chunk: 256, protection };
        Self {
            rng: StdRng::seed_from_u64(seed),
            demand,
            ledger: Ledger::new(layout, 1500),
            running: Vec::new(),
            stored: HashMap::new(),
            prices: Prices::default(),
            num_events: 0,
        }
    }

    /// Another sequence, and from now on the prices of another model.
    fn start_any(&mut self) {
        self.prices = random_prices(&mut self.rng);
        let prompt_len = (2f64.powf(self.rng.random_range(0.0..11.5))) as usize;
        let budget = BUDGETS[self.rng.random_range(0..BUDGETS.len())];
        self.start(prompt_len, budget);
    }

    fn start(&mut self, prompt_len: usize, budget: f32) {
        let policy = POLICIES[self.rng.random_range(0..POLICIES.len())].name();
        let policy = PolicyId::from_name(policy).unwrap();
        let seq = Sequence::new(SeqId(0), vec![0; prompt_len], [budget; 2], NUM_HEADS);
        let most = self.demand.most_marked(budget, seq.prefilled_len());
        let marked = self.marked(prompt_len, most);
        self.running.push(Sequence { policy, marked, ..seq });
    }

    fn stop_any(&mut self) {
        let index = self.rng.random_range(0..self.running.len());
        self.stop(index);
    }

    fn stop(&mut self, index: usize) {
        self.running.swap_remove(index).table.release(&mut self.ledger);
    }

    /// Spans of a prompt, of so many tokens at most: every third time none, and as often all that may be.
    fn marked(&mut self, prompt_len: usize, most: usize) -> Spans {
        let mut left = match self.rng.random_range(0..3) {
            0 => 0,
            1 => self.rng.random_range(0..=most.min(prompt_len)),
            _ => most.min(prompt_len),
        };
        let mut spans = Vec::new();
        while left > 0 {
            let len = self.rng.random_range(1..=left);
            let start = self.rng.random_range(0..=prompt_len - len);
            spans.push(start..start + len);
            left -= len;
        }
        Spans::new(spans)
    }

    /// A chunk of a prompt, or a stretch of decoded tokens up to the next event.
    fn advance(&mut self) {
        let index = self.rng.random_range(0..self.running.len());
        let seq = &self.running[index];
        let chunk = match seq.num_pending() {
            0 => self.rng.random_range(1..=EVENT_INTERVAL - seq.since_event % EVENT_INTERVAL),
            pending => pending.min(self.rng.random_range(1..=self.demand.max_chunk)),
        };
        self.compute(index, chunk);
    }

    /// So many tokens of a sequence, which ends where there are no pages for them.
    fn compute(&mut self, index: usize, chunk: usize) {
        let seq = &self.running[index];
        let needed = seq.table.pages_to_append(chunk, &self.demand.layout);
        if needed > self.ledger.num_free() {
            return self.stop(index);
        }
        let seq = &mut self.running[index];
        let is_prompt = seq.num_pending() > 0;
        if !is_prompt {
            seq.tokens.extend(vec![0; chunk]);
            seq.num_decoded += chunk;
        }
        let start = seq.table.len() as u32;
        for head in seq.table.append(chunk, &mut self.ledger) {
            let slots = head.iter().map(|write| write.slot);
            self.stored.extend(slots.zip(start..));
        }
        seq.since_event += chunk;
        let is_due = is_prompt || seq.since_event >= EVENT_INTERVAL;
        if seq.is_compressed() && is_due {
            self.compress(index);
        }
    }

    fn compress(&mut self, index: usize) {
        let Self { rng, demand, ledger, stored, prices, .. } = self;
        let seq = &mut self.running[index];
        seq.since_event = 0;
        let limit = seq.limit(demand);
        let prices = if seq.demotes_first() { &prices.reluctant() } else { &*prices };
        if seq.table.num_pages() > limit {
            self.num_events += 1;
            let tokens: Vec<_> = (0..NUM_HEADS)
                .map(|head| {
                    let positions: Vec<u32> = slots(seq, head).map(|slot| stored[&slot]).collect();
                    let signal = |_: &u32| rng.random_range(-20f32..20.0).exp2();
                    let signals = positions.iter().map(signal).collect();
                    HeadTokens { positions, signals }
                })
                .collect();
            let goal = Goal {
                policy: seq.policy.policy(),
                prices,
                protection: demand.protection,
                marked: &seq.marked,
                prompt_len: seq.prompt_len,
                max_pages: limit,
            };
            let decision = decide(&seq.table, &tokens, &goal, &demand.layout);
            let moved = |moves: &[Move]| {
                let lifted: Vec<_> = moves.iter().map(|m| stored[&m.from]).collect();
                stored.extend(moves.iter().map(|m| m.to).zip(lifted));
                Ok::<_, Infallible>(())
            };
            repack(&mut seq.table, ledger, &tokens, &decision.assignments, moved).unwrap();
        }
        let (held, len) = (seq.table.num_pages(), seq.table.len());
        assert!(held <= limit, "{held} of {limit} pages for {len} tokens at {}", seq.budget);
        let most = allowed(seq, demand);
        assert!(held <= most, "{held} of {most} pages for {len} tokens at {}", seq.budget);
        assert!(
            seq.table.peak_pages() <= demand.peak(seq.budget, seq.tokens.len()) + demand.chunk()
        );
        seq.table.check(&demand.layout);
        let is_marked = |slot: &Slot| seq.marked.covers(stored[slot] as usize);
        let num_marked = seq.marked.within(len).num_tokens();
        for head in 0..NUM_HEADS {
            assert_eq!(slots(seq, head).filter(is_marked).count(), num_marked, "one was evicted");
        }
    }
}

/// Pages that the budget leaves after an event, in plain numbers: of the whole prompt and a chunk while
/// it comes in, then of what is there; a window in F16 and the protected tokens are never squeezed out.
fn allowed(seq: &Sequence, demand: &Demand) -> usize {
    const F16_ENTRY_BYTES: usize = 256;
    const PAGE_BYTES: usize = 2112;
    const WINDOW: usize = 64;
    const NUM_PROTECTED: usize = 4 + 64 + 64;
    let comes_in = seq.num_pending() > 1;
    let len = if comes_in { seq.prompt_len } else { seq.table.len() };
    let share = f64::from(seq.budget) * (len * NUM_HEADS * F16_ENTRY_BYTES) as f64;
    let protected = len.min(NUM_PROTECTED).div_ceil(demand.layout.capacity(Tier::K3V3));
    let least = NUM_HEADS * len.min(WINDOW).div_ceil(8).max(protected);
    let chunk = NUM_HEADS * (demand.max_chunk / 8 + 1);
    ((share / PAGE_BYTES as f64) as usize).max(least) + if comes_in { chunk } else { 0 }
}

fn slots(seq: &Sequence, head: usize) -> impl Iterator<Item = Slot> {
    let pages = seq.table.head(head).pages.iter();
    pages.flat_map(|page| (0..page.len).map(|index| Slot { page: page.page, index }))
}

/// As a calibration may find them: some formats are refused, and some heads hardly need their tokens.
fn random_prices(rng: &mut StdRng) -> Prices {
    let head = |_| {
        let (keys, values) =
            (rng.random_range(-12f32..3.0).exp2(), rng.random_range(-12f32..3.0).exp2());
        let evicted = (keys + values) * rng.random_range(-6f32..6.0).exp2();
        let most_noise = rng.random_range(0.01f32..1.0);
        let key = PerTier::new(|tier| {
            let noise = normal_error(tier.info().key);
            if noise >= most_noise { REFUSED } else { keys * noise }
        });
        let value = PerTier::new(|tier| values * normal_error(tier.info().value));
        HeadPrices { key, value, evicted, unforeseen: rng.random_range(0f32..1.0) }
    };
    Prices::new((0..NUM_HEADS).map(head).collect())
}

#[test]
fn no_event_of_ten_thousand_steps_leaves_a_sequence_above_its_budget() {
    let mut world = World::new(1);
    for step in 0..NUM_STEPS {
        match world.rng.random_range(0..100) {
            _ if world.running.is_empty() => world.start_any(),
            0..8 if world.running.len() < 12 => world.start_any(),
            8..12 => world.stop_any(),
            _ => world.advance(),
        }
        if step % 16 == 0 {
            world.ledger.check(world.running.iter().map(|seq| &seq.table));
        }
    }
    assert!(world.num_events > 1000, "{} events say little", world.num_events);
}

#[test]
fn undecided_positions_are_those_that_nothing_protects_or_marks() {
    let (prices, marked) = (Prices::default(), Spans::new(vec![20..30, 88..95]));
    let undecided = |prompt_len, seq_len, marked: &Spans| {
        let goal = Goal {
            policy: PolicyId::default().policy(),
            prices: &prices,
            protection: Protection { sinks: 4, recent: 10, prompt_end: 6 },
            marked,
            prompt_len,
            max_pages: 1,
        };
        goal.undecided(seq_len)
    };
    let nothing = Spans::default();
    assert_eq!(undecided(50, 100, &nothing), [4..44, 50..90]);
    assert_eq!(undecided(50, 100, &marked), [4..20, 30..44, 50..88]);
    assert_eq!(undecided(95, 100, &nothing), std::slice::from_ref(&(4..89)));
    assert!(undecided(8, 14, &nothing).is_empty() && undecided(0, 0, &marked).is_empty());
}

/// A sequence that keeps all it can of a prompt of 300 tokens, and what it evicted of that.
fn generating(budget: f32) -> (World, usize) {
    let mut world = World::new(2);
    // Without reluctance eviction is hardly worse than few bits.
    let cheap = HeadPrices { evicted: 1.0, ..Prices::default().head(0).clone() };
    world.prices = Prices::new(vec![cheap]);
    world.start(300, budget);
    world.running[0] = Sequence {
        policy: PolicyId::default(),
        ..Sequence::new(SeqId(0), vec![0; 300], [budget; 2], NUM_HEADS)
    };
    world.compute(0, 150);
    world.compute(0, 150);
    let num_evicted = world.running[0].table.num_evicted();
    (world, num_evicted)
}

#[test]
fn a_long_generation_demotes_rather_than_evicts_as_long_as_that_makes_room() {
    let (mut world, before) = generating(0.22);
    (0..30).for_each(|_| world.compute(0, EVENT_INTERVAL));
    assert_eq!(world.running[0].table.num_evicted(), before);
}

#[test]
fn a_generation_for_which_no_tier_is_small_enough_evicts() {
    let (mut world, before) = generating(0.06);
    (0..30).for_each(|_| world.compute(0, EVENT_INTERVAL));
    assert!(world.running[0].table.num_evicted() > before);
}

/// What the last token, which is protected, is kept in after an event.
fn protected_tier(max_pages: usize, refused: &[Tier]) -> Assignment {
    let layout = PageLayout::new(64);
    let (mut table, mut ledger) = (PageTable::new(NUM_HEADS), Ledger::new(layout, 1000));
    table.append(1000, &mut ledger);
    let positions: Vec<u32> = (0..1000).collect();
    let tokens = vec![HeadTokens { positions, signals: vec![1.0; 1000] }; NUM_HEADS];
    let normal = Prices::default().head(0).clone();
    let mut refusing = normal.clone();
    refused.iter().for_each(|tier| refusing.key[*tier] = refusing.evicted);
    let prices = Prices::new(vec![normal, refusing]);
    let goal = Goal {
        policy: PolicyId::default().policy(),
        prices: &prices,
        protection: Protection::default(),
        marked: &Spans::default(),
        prompt_len: 1000,
        max_pages,
    };
    decide(&table, &tokens, &goal, &layout).assignments[0][999]
}

#[test]
fn protected_tokens_are_in_no_format_that_a_head_refuses_unless_nothing_else_is_left() {
    assert_eq!(protected_tier(64, &[]), Some(Tier::K5V5));
    assert_eq!(protected_tier(64, &[Tier::K5V5]), Some(Tier::K4V4));
    assert_eq!(protected_tier(64, &PROTECTED), Some(COARSEST_PROTECTED));
}
