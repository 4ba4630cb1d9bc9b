use std::collections::HashMap;

use rand::{Rng, SeedableRng, rngs::StdRng};

use keepwell_kernels::TIERS;

use super::*;

/// A head whose slots carry their token's position, so that moves can be followed.
struct World {
    ledger: Ledger,
    table: PageTable,
    stored: HashMap<Slot, u32>,
}

impl World {
    fn new(num_pages: usize) -> Self {
        let ledger = Ledger::new(PageLayout::new(64), num_pages);
        Self { ledger, table: PageTable::new(1), stored: HashMap::new() }
    }

    fn append(&mut self, num_tokens: usize) {
        let start = self.table.len() as u32;
        let writes = self.table.append(num_tokens, &mut self.ledger);
        for (position, write) in (start..).zip(&writes[0]) {
            self.stored.insert(write.slot, position);
        }
    }

    /// Position of each token in page order, as the slots tell.
    fn positions(&self) -> Vec<u32> {
        let pages = &self.table.head(0).pages;
        let slots = pages.iter().flat_map(|p| (0..p.len).map(|index| Slot { page: p.page, index }));
        slots.map(|slot| self.stored[&slot]).collect()
    }

    fn tiers(&self) -> HashMap<u32, Tier> {
        let pages = &self.table.head(0).pages;
        let tiers = pages.iter().flat_map(|p| (0..p.len).map(|_| p.tier));
        self.positions().into_iter().zip(tiers).collect()
    }

    fn repack(&mut self, assignment: impl Fn(u32) -> Assignment) -> Vec<Move> {
        let positions = self.positions();
        let assignments: Vec<_> = positions.iter().map(|p| assignment(*p)).collect();
        let layout = *self.ledger.layout();
        let repack = Repack::new(&self.table, 0, &positions, &assignments, &layout);
        let (before, change) = (self.table.num_pages(), repack.page_change);
        assert_eq!(Repack::change(&self.table, 0, &positions, &assignments, &layout), change);
        let moves = repack.book(&mut self.table, &mut self.ledger).expect("pages suffice");
        assert_eq!(self.table.num_pages() as isize, before as isize + change);
        let lifted: Vec<_> = moves.iter().map(|m| self.stored[&m.from]).collect();
        for (m, position) in moves.iter().zip(lifted) {
            self.stored.insert(m.to, position);
        }
        self.check_offsets(&moves);
        self.table.check(&layout);
        self.ledger.check([&self.table]);
        moves
    }

    /// base + offset is the position, for every token moved.
    fn check_offsets(&self, moves: &[Move]) {
        for m in moves {
            let page = self.table.head(0).pages.iter().find(|p| p.page == m.to.page).unwrap();
            let position = page.base.wrapping_add_signed(i32::from(m.offset));
            assert_eq!(position, self.stored[&m.to]);
        }
    }
}

#[test]
fn a_token_that_leaves_moves_one_other_and_not_all_behind_it() {
    let mut world = World::new(40);
    world.append(8 * 20);
    let moves = world.repack(|p| (p != 3).then_some(Tier::F16));
    assert_eq!(moves.len(), 1);
    assert_eq!(world.stored[&moves[0].to], 159);
    // One arrives where another leaves.
    let moves = world.repack(|p| Some(if p == 40 { Tier::K4V4 } else { Tier::F16 }));
    assert_eq!(moves.len(), 2);
    let tiers = world.tiers();
    assert_eq!((tiers[&40], tiers.len()), (Tier::K4V4, 159));
}

#[test]
fn tokens_that_keep_their_tier_and_place_do_not_move() {
    let mut world = World::new(10);
    world.append(20);
    assert_eq!(world.repack(|_| Some(Tier::F16)), []);
    let moves = world.repack(|p| (p < 10).then_some(Tier::F16));
    assert_eq!(moves, []);
    assert_eq!(world.table.num_pages(), 2);
}

#[test]
fn holes_close_and_whole_pages_come_back() {
    let mut world = World::new(10);
    world.append(32);
    world.repack(|p| p.is_multiple_of(4).then_some(Tier::F16));
    assert_eq!(world.table.num_pages(), 1);
    assert_eq!(world.positions(), [0, 8, 12, 16, 4, 20, 24, 28]);
    assert_eq!(world.table.num_evicted(), 24);
}

/// What is in the two tiers, which are all that are used.
fn in_f16_and_k4v4(counts: PerTier<usize>) -> (usize, usize) {
    let (exact, coarse) = (counts[Tier::F16], counts[Tier::K4V4]);
    assert_eq!(counts.values().sum::<usize>(), exact + coarse);
    (exact, coarse)
}

#[test]
fn demoted_tokens_join_the_pages_of_their_new_tier() {
    let mut world = World::new(10);
    world.append(16);
    world.repack(|p| Some(if p < 10 { Tier::K4V4 } else { Tier::F16 }));
    assert_eq!(in_f16_and_k4v4(world.table.holdings().pages), (1, 1));
    world.append(8);
    world.repack(|p| Some(if p < 20 { Tier::K4V4 } else { Tier::F16 }));
    assert_eq!(in_f16_and_k4v4(world.table.holdings().tokens), (4, 20));
    assert_eq!(in_f16_and_k4v4(world.table.holdings().pages), (1, 1));
}

#[test]
fn new_tokens_go_to_the_open_page_after_a_repacking() {
    let mut world = World::new(10);
    world.append(10);
    world.repack(|p| (p >= 5).then_some(Tier::F16));
    world.append(3);
    assert_eq!(world.table.num_pages(), 1);
    assert_eq!(world.positions(), [5, 6, 7, 8, 9, 10, 11, 12]);
}

#[test]
fn a_repacking_that_shrinks_needs_no_free_page() {
    let mut world = World::new(4);
    world.append(32);
    assert_eq!(world.ledger.num_free(), 0);
    world.repack(|p| Some(if p < 28 { Tier::K4V4 } else { Tier::K8V8 }));
    assert_eq!(world.ledger.num_free(), 2);
}

#[test]
fn a_repacking_without_pages_changes_nothing() {
    let mut world = World::new(1);
    world.append(8);
    let positions = world.positions();
    let tiers: Vec<_> = (0..8).map(|i| Some(TIERS[9 * i % 36].tier)).collect();
    let layout = *world.ledger.layout();
    let repack = Repack::new(&world.table, 0, &positions, &tiers, &layout);
    assert!(repack.book(&mut world.table, &mut world.ledger).is_none());
    assert_eq!(world.positions(), positions);
    world.ledger.check([&world.table]);
}

#[test]
fn far_apart_positions_do_not_share_a_page() {
    let mut world = World::new(12_000);
    world.append(80_000);
    world.repack(|p| (p.is_multiple_of(30_000)).then_some(Tier::K4V4));
    // 0 and 30000 are within 16 bits of each other, 60000 is not.
    assert_eq!(world.table.num_pages(), 2);
    assert_eq!(world.positions(), [0, 30_000, 60_000]);
}

#[test]
fn random_repackings_keep_every_token_at_its_position_in_its_tier() {
    let mut rng = StdRng::seed_from_u64(3);
    for _ in 0..100 {
        let mut world = World::new(200);
        let mut expected: HashMap<u32, Tier> = HashMap::new();
        for _ in 0..12 {
            let start = world.table.len() as u32;
            let added = rng.random_range(1..60);
            world.append(added as usize);
            expected.extend((start..start + added).map(|p| (p, Tier::F16)));
            for tier in expected.values_mut() {
                *tier = TIERS[rng.random_range(*tier as usize..TIERS.len())].tier;
            }
            expected.retain(|_, _| rng.random_bool(0.8));
            world.repack(|p| expected.get(&p).copied());
            assert_eq!(world.tiers(), expected);
        }
        world.table.release(&mut world.ledger);
        assert_eq!(world.ledger.num_live(), 0);
    }
}
