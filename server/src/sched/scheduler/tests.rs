use std::{convert::Infallible, sync::LazyLock};

use keepwell_kernels::{Histogram, Move, PageLayout, PerTier};
use rand::{Rng, SeedableRng, rngs::StdRng};

use super::*;
use crate::{
    compress::{
        Curve, Goal, HeadHistograms, HeadTokens, Prices, Protection, decide, repack, share_out,
    },
    sched::UserId,
};

const NUM_HEADS: usize = 3;

struct World {
    scheduler: Scheduler,
    ledger: Ledger,
    next_id: u64,
}

/// What a sequence asks for.
#[derive(Clone, Copy)]
struct Ask {
    prompt_len: usize,
    max_tokens: usize,
    may_shorten: bool,
    budget: f32,
    min_budget: f32,
    priority: i32,
    user: u64,
}

impl Ask {
    fn new(prompt_len: usize, max_tokens: usize) -> Self {
        let (budget, min_budget) = (1.0, 1.0);
        Self {
            prompt_len,
            max_tokens,
            may_shorten: false,
            budget,
            min_budget,
            priority: 0,
            user: 0,
        }
    }
}

/// Any positions do, and no token matters more than another.
fn tokens(seq: &Sequence) -> Vec<HeadTokens> {
    let tokens = |head| {
        let num_tokens = seq.table.head(head).num_tokens();
        HeadTokens { positions: (0..num_tokens as u32).collect(), signals: vec![1.0; num_tokens] }
    };
    (0..NUM_HEADS).map(tokens).collect()
}

/// Of the same tokens.
fn histograms(seq: &Sequence) -> Vec<HeadHistograms> {
    let of_head = |head: usize| -> HeadHistograms {
        let mut by_tier = PerTier::<Histogram>::default();
        for page in &seq.table.head(head).pages {
            (0..page.len).for_each(|_| by_tier[page.tier].add(1.0));
        }
        by_tier.iter().map(|(tier, histogram)| (tier, histogram.clone())).collect()
    };
    (0..NUM_HEADS).map(of_head).collect()
}

fn goal<'a>(seq: &'a Sequence, demand: &Demand, max_pages: usize) -> Goal<'a> {
    static PRICES: LazyLock<Prices> = LazyLock::new(Prices::default);
    Goal {
        prices: &PRICES,
        policy: seq.policy.policy(),
        protection: demand.protection,
        marked: &seq.marked,
        prompt_len: seq.prompt_len,
        max_pages,
    }
}

impl World {
    fn new(num_pages: usize, max_step_tokens: usize) -> Self {
        let layout = PageLayout::new(64);
        let protection = Protection { sinks: 2, recent: 8, prompt_end: 8 };
        let limits = SchedulerLimits {
            max_step_tokens,
            max_running: 8,
            max_waiting: 3,
            max_waiting_tokens: 50,
        };
        let demand =
            Demand { layout, num_heads: NUM_HEADS, max_chunk: max_step_tokens, protection };
        Self {
            scheduler: Scheduler::new(limits, demand),
            ledger: Ledger::new(layout, num_pages),
            next_id: 0,
        }
    }

    fn queue(&mut self, prompt_len: usize, max_tokens: usize, budget: f32) -> SeqId {
        self.ask(Ask { budget, min_budget: budget, ..Ask::new(prompt_len, max_tokens) })
    }

    fn ask(&mut self, ask: Ask) -> SeqId {
        let id = SeqId(self.next_id);
        self.next_id += 1;
        let Ask { prompt_len, max_tokens, may_shorten, budget, min_budget, priority, user } = ask;
        self.scheduler.queue(Sequence {
            max_len: prompt_len + max_tokens,
            may_shorten,
            priority,
            user: UserId(user),
            chunk_len: self.scheduler.demand().max_chunk,
            ..Sequence::new(id, vec![7; prompt_len], [budget, min_budget], NUM_HEADS)
        });
        id
    }

    fn get(&self, id: SeqId) -> &Sequence {
        self.scheduler.sequences().find(|seq| seq.id == id).unwrap()
    }

    /// As the engine does before a step.
    fn meet_pressure(&mut self) {
        self.scheduler.admit(&mut self.ledger);
        match self.scheduler.pressure(&self.ledger) {
            Pressure::High(num_pages) => self.squeeze(num_pages),
            Pressure::Steady => {}
            Pressure::Low => {
                self.scheduler.all_running_mut().for_each(|seq| seq.grant(seq.asked_budget))
            }
        }
    }

    fn squeeze(&mut self, num_pages: usize) {
        let demand = *self.scheduler.demand();
        let floor = |seq: &Sequence| demand.limit(seq.min_budget, seq.budgeted_len());
        let running = self.scheduler.sequences().take(self.scheduler.num_running());
        let giving = running.filter(|seq| seq.is_scored() && seq.table.num_pages() > floor(seq));
        let (ids, curves): (Vec<_>, Vec<_>) = giving
            .map(|seq| {
                let goal = goal(seq, &demand, floor(seq));
                let curve = Curve::new(&seq.table, &histograms(seq), &goal, self.ledger.layout());
                (seq.id, curve)
            })
            .unzip();
        for (id, max_pages) in ids.into_iter().zip(share_out(&curves, num_pages).max_pages) {
            let seq = self.get(id);
            if max_pages < seq.table.num_pages() {
                assert!(max_pages >= floor(seq));
                let share = demand.share(max_pages, seq.budgeted_len());
                self.compress(id, max_pages);
                self.scheduler.running_mut(id).unwrap().grant(share);
            }
        }
    }

    /// Schedules, "computes", samples token 7, compresses with scores by position. Returns the ids
    /// that finished.
    fn step(&mut self) -> Vec<SeqId> {
        self.meet_pressure();
        let step = self.scheduler.schedule(&mut self.ledger);
        assert_eq!(step.stuck, None);
        let mut finished = Vec::new();
        for entry in &step.entries {
            let demand = *self.scheduler.demand();
            let seq = self.get(entry.id);
            let max_pages = seq.limit(&demand);
            if entry.has_event && seq.is_compressed() && seq.table.num_pages() > max_pages {
                self.compress(entry.id, max_pages);
            }
            let seq = self.scheduler.running_mut(entry.id).unwrap();
            if entry.samples {
                seq.tokens.push(7);
                if seq.tokens.len() == seq.max_len {
                    finished.push(entry.id);
                }
            }
        }
        for id in &finished {
            self.scheduler.retire(*id, &mut self.ledger).unwrap();
        }
        self.check();
        finished
    }

    fn compress(&mut self, id: SeqId, max_pages: usize) {
        let demand = *self.scheduler.demand();
        let seq = self.scheduler.running_mut(id).unwrap();
        let tokens = tokens(seq);
        let goal = goal(seq, &demand, max_pages);
        let decision = decide(&seq.table, &tokens, &goal, self.ledger.layout());
        let moved = |_: &[Move]| Ok::<_, Infallible>(());
        repack(&mut seq.table, &mut self.ledger, &tokens, &decision.assignments, moved).unwrap();
        assert!(seq.table.num_pages() <= max_pages, "the event left more than the budget");
    }

    fn check(&self) {
        self.ledger.check(self.scheduler.sequences().map(|seq| &seq.table));
        for seq in self.scheduler.sequences() {
            seq.table.check(self.ledger.layout());
        }
    }

    fn run_dry(&mut self, max_steps: usize) -> Vec<SeqId> {
        let mut finished = Vec::new();
        for _ in 0..max_steps {
            if self.scheduler.is_idle() {
                return finished;
            }
            finished.extend(self.step());
        }
        panic!("still running after {max_steps} steps");
    }
}

#[test]
fn a_prompt_is_prefilled_in_chunks_of_the_step_budget() {
    let mut world = World::new(1000, 16);
    world.queue(40, 1, 1.0);
    let chunks: Vec<_> =
        (0..3).map(|_| world.scheduler.schedule(&mut world.ledger).entries[0].num_tokens).collect();
    assert_eq!(chunks, [16, 16, 8]);
}

#[test]
fn decoding_sequences_go_before_prefill_chunks_in_one_step() {
    let mut world = World::new(1000, 16);
    let first = world.queue(4, 10, 1.0);
    world.step();
    let second = world.queue(40, 1, 1.0);
    let step = world.scheduler.schedule(&mut world.ledger);
    let entries: Vec<_> = step.entries.iter().map(|e| (e.id, e.num_tokens)).collect();
    assert_eq!(entries, [(first, 1), (second, 15)]);
}

#[test]
fn first_come_is_first_served_when_memory_is_short() {
    // 8 tokens a page and 3 heads: 24 tokens take 9 pages.
    let mut world = World::new(12, 64);
    let ids = [world.queue(20, 4, 1.0), world.queue(20, 4, 1.0), world.queue(20, 4, 1.0)];
    assert_eq!(world.run_dry(100), ids);
    assert_eq!(world.scheduler.num_preemptions(), 0);
}

#[test]
fn the_more_urgent_leave_the_queue_first_and_equals_in_the_order_they_came() {
    let mut world = World::new(12, 64);
    let ids = [0, 5, -1, 5, -1, 0].map(|priority| world.ask(Ask { priority, ..Ask::new(20, 4) }));
    let order = [2, 4, 0, 5, 1, 3].map(|i| ids[i]);
    assert_eq!(world.run_dry(100), order);
}

#[test]
fn what_a_request_named_is_set_aside_and_whoever_might_not_finish_waits() {
    let mut world = World::new(21, 64);
    let ids = [world.queue(24, 24, 1.0), world.queue(24, 24, 1.0)];
    world.step();
    assert_eq!((world.scheduler.num_running(), world.scheduler.num_waiting()), (1, 1));
    assert_eq!(world.run_dry(200), ids);
    assert_eq!(world.scheduler.num_preemptions(), 0);
}

/// Two of these run beyond what was set aside for them.
const ENDLESS: Ask = Ask {
    prompt_len: 24,
    max_tokens: 2 * FAIR_ANSWER,
    may_shorten: true,
    budget: 1.0,
    min_budget: 1.0,
    priority: 0,
    user: 0,
};
/// Holds the fair answers of two, and the whole one of one.
const PAGES_FOR_ENDLESS: usize = 230;

#[test]
fn of_those_without_a_limit_the_newest_gives_way_and_still_finishes() {
    let mut world = World::new(PAGES_FOR_ENDLESS, 64);
    let ids = [world.ask(ENDLESS), world.ask(ENDLESS)];
    assert_eq!(world.run_dry(2000), ids);
    assert!(world.scheduler.num_preemptions() > 0);
    assert_eq!(world.ledger.num_live(), 0);
}

#[test]
fn of_those_without_a_limit_the_least_urgent_gives_way() {
    let mut world = World::new(PAGES_FOR_ENDLESS, 64);
    let old = world.ask(Ask { priority: 1, ..ENDLESS });
    while !world.get(old).is_decoding() {
        world.step();
    }
    let urgent = world.ask(ENDLESS);
    while world.scheduler.num_preemptions() == 0 {
        world.step();
    }
    assert_eq!(world.get(old).num_preemptions, 1);
    assert_eq!(world.run_dry(2000), [urgent, old]);
}

#[test]
fn one_without_a_limit_gives_way_to_one_that_named_it_though_it_is_older() {
    let mut world = World::new(PAGES_FOR_ENDLESS, 64);
    let endless = world.ask(ENDLESS);
    for _ in 0..200 {
        world.step();
    }
    let named = world.queue(100, 200, 1.0);
    while world.scheduler.num_preemptions() == 0 {
        world.step();
    }
    assert_eq!(world.get(endless).num_preemptions, 1);
    assert_eq!(world.run_dry(2000), [named, endless]);
}

#[test]
fn one_that_gave_way_comes_back_before_the_more_urgent() {
    let mut world = World::new(PAGES_FOR_ENDLESS, 64);
    let first = world.ask(ENDLESS);
    let second = world.ask(ENDLESS);
    while world.scheduler.num_preemptions() == 0 {
        world.step();
    }
    let urgent = world.ask(Ask { priority: -1, ..Ask::new(20, 4) });
    let order: Vec<_> = world.scheduler.sequences().map(|seq| seq.id).collect();
    assert_eq!(order, [first, second, urgent]);
}

#[test]
fn the_queue_is_bounded_in_sequences_and_in_tokens() {
    let mut world = World::new(12, 64);
    assert!(world.scheduler.can_queue(51), "one alone may have more");
    world.queue(40, 4, 1.0);
    assert!(world.scheduler.can_queue(10) && !world.scheduler.can_queue(11));
    world.queue(5, 4, 1.0);
    world.queue(1, 4, 1.0);
    assert!(!world.scheduler.can_queue(1));
}

#[test]
fn a_retired_sequence_gives_all_pages_back_wherever_it_stands() {
    let mut world = World::new(12, 64);
    let (running, waiting) = (world.queue(60, 4, 1.0), world.queue(20, 4, 1.0));
    world.scheduler.schedule(&mut world.ledger);
    assert!(world.scheduler.retire(waiting, &mut world.ledger).is_some());
    assert!(world.scheduler.retire(running, &mut world.ledger).is_some());
    assert!(world.scheduler.retire(running, &mut world.ledger).is_none());
    assert_eq!(world.ledger.num_live(), 0);
    assert!(world.scheduler.is_idle());
}

const ELASTIC: Ask = Ask { min_budget: 0.2, max_tokens: 300, prompt_len: 100, ..ENDLESS };

#[test]
fn the_cache_gets_denser_before_anybody_waits() {
    let most_at_once = |min_budget: f32| {
        let mut world = World::new(400, 32);
        let named = Ask { may_shorten: false, min_budget, ..ELASTIC };
        let ids = [(); 6].map(|()| world.ask(named));
        let mut most = 0;
        let mut finished = vec![];
        while !world.scheduler.is_idle() {
            finished.extend(world.step());
            most = most.max(world.scheduler.num_running());
        }
        finished.sort();
        assert_eq!(finished, ids);
        assert_eq!(world.scheduler.num_preemptions(), 0);
        most
    };
    assert_eq!(most_at_once(1.0), 2);
    assert!(most_at_once(0.2) >= 4);
}

#[test]
fn without_pressure_nothing_is_lost_and_after_it_new_tokens_are_kept_as_asked() {
    let mut world = World::new(400, 32);
    let named = Ask { may_shorten: false, ..ELASTIC };
    let first = world.ask(Ask { max_tokens: 800, ..named });
    for _ in 0..100 {
        world.step();
        assert_eq!(world.get(first).table.num_evicted(), 0);
        assert_eq!(world.get(first).lowest_budget, 1.0);
    }
    let others = [world.ask(named), world.ask(named)];
    let is_there = |world: &World, id| world.scheduler.sequences().any(|seq| seq.id == id);
    while others.iter().any(|id| is_there(&world, *id)) {
        world.step();
    }
    assert!(world.get(first).lowest_budget < 1.0);
    assert!((0..10).any(|_| {
        world.step();
        world.get(first).budget == 1.0
    }));
}

#[test]
fn one_user_with_a_hundred_requests_does_not_keep_another_waiting() {
    let mut world = World::new(24, 64);
    for _ in 0..100 {
        world.ask(Ask { user: 1, ..Ask::new(20, 4) });
    }
    for _ in 0..20 {
        world.step();
    }
    let other = world.ask(Ask { user: 2, ..Ask::new(20, 4) });
    let finished = world.run_dry(2000);
    let nth = finished.iter().position(|id| *id == other).unwrap();
    assert!(nth <= 3, "{nth} finished before it");
    assert!(finished.len() > 80);
}

#[test]
fn users_with_much_to_do_are_served_alike_whatever_their_requests_sizes() {
    let mut world = World::new(48, 64);
    for nth in 0..90 {
        let ask = if nth % 3 == 0 { Ask::new(60, 20) } else { Ask::new(10, 10) };
        world.ask(Ask { user: (nth % 3 == 0).into(), ..ask });
    }
    let mut computed = [0; 2];
    while world.scheduler.num_users() == 2 {
        computed = [0, 1].map(|user| world.scheduler.fairness.served(UserId(user)));
        world.step();
    }
    let [few, many] = computed.map(|tokens| tokens as f64);
    assert!(few > 500.0 && (few / many - 1.0).abs() < 0.2, "{computed:?}");
}

#[test]
fn the_more_urgent_go_before_the_less_served() {
    let mut world = World::new(12, 64);
    let urgent = [(); 5].map(|()| world.ask(Ask { priority: -1, user: 1, ..Ask::new(20, 4) }));
    let other = world.ask(Ask { user: 2, ..Ask::new(20, 4) });
    let finished = world.run_dry(200);
    assert_eq!(finished, [&urgent[..], &[other]].concat());
}

/// A crowd of sequences of all kinds. `endless` says how often one names no limit.
fn crowd(seed: u64, endless: f64) {
    let mut rng = StdRng::seed_from_u64(seed);
    let num_pages = rng.random_range(150..600);
    let max_step_tokens = rng.random_range(8..64);
    let mut world = World::new(num_pages, max_step_tokens);
    let mut queued = 0;
    for _ in 0..300 {
        if rng.random_bool(0.1) {
            let budget = [1.0, 1.0, 0.5, 0.28, 0.125][rng.random_range(0..5)];
            let min_budget = [budget, 0.3 * budget, 0.1 * budget][rng.random_range(0..3)];
            let may_shorten = rng.random_bool(endless);
            let most = if may_shorten { 400 } else { 100 };
            let (prompt_len, max_tokens) = (rng.random_range(1..200), rng.random_range(1..most));
            let (priority, user) = (rng.random_range(0..2), rng.random_range(0..3));
            if world.scheduler.demand().peak(min_budget, prompt_len + max_tokens) <= num_pages {
                world.ask(Ask {
                    prompt_len,
                    max_tokens,
                    may_shorten,
                    budget,
                    min_budget,
                    priority,
                    user,
                });
                queued += 1;
            }
        }
        let oldest = world.scheduler.sequences().next().map(|s| s.id);
        if rng.random_bool(0.02)
            && let Some(id) = oldest
        {
            world.scheduler.retire(id, &mut world.ledger);
            queued -= 1;
        }
        queued -= world.step().len();
        let mut preempted = world.scheduler.sequences().filter(|seq| seq.num_preemptions > 0);
        assert!(preempted.all(|seq| seq.may_shorten), "it had all it may need set aside");
    }
    assert_eq!(world.run_dry(40_000).len(), queued);
    assert_eq!(world.ledger.num_live(), 0);
    assert_eq!(world.ledger.pages().values().sum::<usize>(), 0);
    assert_eq!(world.scheduler.num_users(), 0);
    assert!(endless > 0.0 || world.scheduler.num_preemptions() == 0);
}

#[test]
fn whoever_is_admitted_with_a_limit_finishes_without_giving_way() {
    (0..40).for_each(|seed| crowd(seed, 0.0));
}

#[test]
fn random_crowds_finish_with_every_page_accounted_for() {
    (0..20).for_each(|seed| crowd(1000 + seed, 0.5));
}
