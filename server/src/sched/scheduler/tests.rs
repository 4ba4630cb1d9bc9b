use keepwell_kernels::PageLayout;
use rand::{Rng, SeedableRng, rngs::StdRng};

use super::*;
use crate::{
    cache::PageTable,
    compress::{Goal, HeadTokens, PolicyId, Protection, decide, repack},
};

const NUM_HEADS: usize = 3;

struct World {
    scheduler: Scheduler,
    ledger: Ledger,
    next_id: u64,
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
        self.queue_at(0, prompt_len, max_tokens, budget)
    }

    fn queue_at(
        &mut self,
        priority: i32,
        prompt_len: usize,
        max_tokens: usize,
        budget: f32,
    ) -> SeqId {
        let id = SeqId(self.next_id);
        self.next_id += 1;
        self.scheduler.queue(Sequence {
            id,
            tokens: vec![7; prompt_len],
            prompt_len,
            max_len: prompt_len + max_tokens,
            budget,
            policy: PolicyId::default(),
            priority,
            table: PageTable::new(NUM_HEADS),
            since_event: 0,
            num_preemptions: 0,
        });
        id
    }

    /// Schedules, "computes", samples token 7, compresses with scores by position. Returns the ids
    /// that finished.
    fn step(&mut self) -> Vec<SeqId> {
        let step = self.scheduler.schedule(&mut self.ledger);
        assert_eq!(step.stuck, None);
        let mut finished = Vec::new();
        for entry in &step.entries {
            if entry.has_event {
                self.compress(entry.id);
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

    fn compress(&mut self, id: SeqId) {
        let demand = *self.scheduler.demand();
        let seq = self.scheduler.running_mut(id).unwrap();
        let max_pages = demand.limit(seq.budget, seq.budgeted_len());
        if seq.table.num_pages() <= max_pages {
            return;
        }
        let tokens: Vec<HeadTokens> = (0..NUM_HEADS)
            .map(|head| {
                let num_tokens = seq.table.head(head).num_tokens();
                let positions = (0..num_tokens as u32).collect();
                HeadTokens { positions, signals: vec![1.0; num_tokens] }
            })
            .collect();
        let goal = Goal {
            prices: &Default::default(),
            policy: seq.policy.policy(),
            protection: demand.protection,
            prompt_len: seq.prompt_len,
            max_pages,
        };
        let decision = decide(&seq.table, &tokens, &goal, self.ledger.layout());
        repack(&mut seq.table, &mut self.ledger, &tokens, &decision.assignments);
        assert!(seq.table.num_pages() <= max_pages, "the event left more than the budget");
    }

    fn check(&self) {
        let holdings: Vec<_> = self.scheduler.sequences().map(|s| s.table.holdings()).collect();
        self.ledger.check(holdings.iter());
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
    let ids = [0, 5, -1, 5, -1, 0].map(|priority| world.queue_at(priority, 20, 4, 1.0));
    let order = [2, 4, 0, 5, 1, 3].map(|i| ids[i]);
    assert_eq!(world.run_dry(100), order);
}

#[test]
fn one_that_gave_way_comes_back_before_the_more_urgent() {
    let mut world = World::new(21, 64);
    let first = world.queue(24, 24, 1.0);
    let second = world.queue(24, 24, 1.0);
    while world.scheduler.num_preemptions() == 0 {
        world.step();
    }
    let urgent = world.queue_at(-1, 20, 4, 1.0);
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
fn the_newest_gives_way_when_decoding_runs_out_of_pages_and_still_finishes() {
    let mut world = World::new(21, 64);
    let ids = [world.queue(24, 24, 1.0), world.queue(24, 24, 1.0)];
    let finished = world.run_dry(200);
    assert_eq!(finished, ids);
    assert!(world.scheduler.num_preemptions() > 0);
    assert_eq!(world.ledger.num_live(), 0);
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

#[test]
fn random_crowds_finish_with_every_page_accounted_for() {
    let mut rng = StdRng::seed_from_u64(11);
    for _ in 0..60 {
        let num_pages = rng.random_range(150..600);
        let mut world = World::new(num_pages, rng.random_range(8..64));
        let mut queued = 0;
        for _ in 0..300 {
            if rng.random_bool(0.1) {
                let budget = [1.0, 0.5, 0.28, 0.125][rng.random_range(0..4)];
                let (prompt, generated) = (rng.random_range(1..200), rng.random_range(1..100));
                if world.scheduler.demand().peak(budget, prompt + generated) <= num_pages {
                    world.queue(prompt, generated, budget);
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
        }
        assert_eq!(world.run_dry(20_000).len(), queued);
        assert_eq!(world.ledger.num_live(), 0);
        assert_eq!(world.ledger.pages().values().sum::<usize>(), 0);
    }
}
