//! Every backend's moves against the portable ones, bit by bit.

mod world;

use keepwell_kernels::{
    Arena, Backend, Move, PageId, PageLayout, Slot, available, portable::Portable,
};
use rand::{SeedableRng, rngs::StdRng, seq::SliceRandom};

use world::{ALL, Case, PLAIN, World, copy_to};

const HEAD_DIMS: [usize; 8] = [16, 32, 40, 64, 80, 96, 128, 256];

fn bytes(arena: &Arena) -> Vec<u8> {
    (0..arena.num_pages() as u32)
        .flat_map(|page| arena.read(PageId(page)).unwrap().to_vec())
        .collect()
}

/// The arena's bytes after the moves.
fn moved(backend: &dyn Backend, world: &World, moves: &[Move]) -> Vec<u8> {
    let mut arena = copy_to(&world.arena, backend);
    backend.compact(&mut arena, moves).unwrap();
    bytes(&arena)
}

#[test]
fn new_pages_are_zeros_and_copied_pages_lose_no_bit_in_any_backend() {
    let world = World::new(&Case { sequences: &[(40, 1)], tiers: ALL, ..PLAIN });
    let copy = |backend: &dyn Backend, arena: &mut Arena| {
        for (from, to) in [(0, 5), (1, 0), (5, 1), (2, 2)] {
            arena.copy(PageId(from), PageId(to)).unwrap();
        }
        let pages = [(5, 2), (1, 4), (5, 0)].map(|(from, to)| (PageId(from), PageId(to)));
        backend.copy_pages(arena, &pages).unwrap();
        backend.copy_pages(arena, &[]).unwrap();
        arena.clear_attributions(PageId(1)).unwrap();
    };
    let mut right = copy_to(&world.arena, &Portable);
    copy(&Portable, &mut right);
    for backend in available() {
        let new = backend.arena(PageLayout::new(64), 3).unwrap();
        assert!(bytes(&new).iter().all(|byte| *byte == 0), "{}", backend.name());
        let mut arena = copy_to(&world.arena, &*backend);
        copy(&*backend, &mut arena);
        assert!(bytes(&arena) == bytes(&right), "{}", backend.name());
    }
}

/// Sends each token to the slot of another one, whatever its tier: most slots are read and written.
fn permutation(world: &World) -> Vec<Move> {
    let slots =
        world.plan.pages.iter().flat_map(|page| {
            (0..page.len).map(|index| (Slot { page: page.page, index }, page.tier))
        });
    let from: Vec<_> = slots.collect();
    let mut to = from.clone();
    to.shuffle(&mut StdRng::seed_from_u64(5));
    let offsets = -20i16..;
    from.into_iter()
        .zip(to)
        .zip(offsets)
        .map(|(((from, from_tier), (to, to_tier)), offset)| Move {
            from,
            from_tier,
            to,
            to_tier,
            offset,
        })
        .collect()
}

#[test]
fn every_backend_moves_tokens_as_the_portable_one_does() {
    for head_dim in HEAD_DIMS {
        let world = World::new(&Case { head_dim, sequences: &[(1500, 1)], tiers: ALL, ..PLAIN });
        let moves = permutation(&world);
        for count in [0, 1, 255, moves.len()] {
            let right = moved(&Portable, &world, &moves[..count]);
            for backend in available() {
                let got = moved(&*backend, &world, &moves[..count]);
                assert!(got == right, "{}: head size {head_dim}, {count} moves", backend.name());
            }
        }
    }
}
