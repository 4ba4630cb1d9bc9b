//! Every backend's attributions against the portable ones, over pages of all tiers.

mod world;

use keepwell_kernels::{
    Attended, Backend, Histogram, PageRef, Scoring, Signal, available, portable::Portable,
    team::with_team,
};

use world::{ALL, Case, PLAIN, RAGGED, World, copy_to, on};

const CASES: &[Case] = &[
    PLAIN,
    Case { sequences: &[(0, 70)], ..PLAIN },
    Case { sequences: RAGGED, tiers: ALL, ..PLAIN },
    Case { sequences: RAGGED, tiers: ALL, shuffled: true, window: Some(50), ..PLAIN },
    Case { sequences: &[(5000, 1)], tiers: ALL, num_kv_heads: 3, ..PLAIN },
    Case { sequences: &[(3000, 40)], tiers: ALL, window: Some(1000), ..PLAIN },
    Case { head_dim: 128, group: 4, sequences: RAGGED, tiers: ALL, ..PLAIN },
    Case { head_dim: 96, group: 5, sequences: RAGGED, tiers: ALL, ..PLAIN },
    Case { head_dim: 80, group: 1, sequences: RAGGED, tiers: ALL, ..PLAIN },
    Case { head_dim: 40, group: 7, sequences: RAGGED, tiers: ALL, ..PLAIN },
    Case { head_dim: 32, group: 8, sequences: RAGGED, tiers: ALL, window: Some(64), ..PLAIN },
    Case { head_dim: 16, group: 2, sequences: RAGGED, tiers: ALL, ..PLAIN },
    Case { head_dim: 8, group: 3, sequences: &[(300, 20)], tiers: ALL, ..PLAIN },
    Case { head_dim: 160, group: 3, sequences: &[(300, 20)], tiers: ALL, ..PLAIN },
    Case { head_dim: 256, group: 2, sequences: &[(150, 1), (0, 20)], tiers: ALL, ..PLAIN },
];
/// One step of bf16, which keeps 8 bits.
const ROUNDING: f32 = 1.0 / 128.0;
/// (signal, factor on the queries, relative tolerance)
const SIGNALS: [(Signal, f64, f32); 4] = [
    (Signal::Deletion, 1.0, ROUNDING),
    // One token takes nearly all of the softmax: v is close to o, and 1 / (1 - p) makes much of the
    // rounding of large scores.
    (Signal::Deletion, 12.0, 0.05),
    (Signal::AttentionMass, 1.0, ROUNDING),
    (Signal::KeyNorm, 1.0, ROUNDING),
];

/// Attributions of all tokens after one scored step; a span in three is not scored.
fn attributions(backend: &dyn Backend, case: &Case, signal: Signal, sharpness: f64) -> Vec<f32> {
    let mut world = World::new(case);
    world.q = (world.q * sharpness).unwrap();
    for (index, span) in world.plan.spans.iter_mut().enumerate().filter(|(i, _)| i % 3 != 1) {
        span.scoring = Some(Scoring { rows: 1 + 15 * index, signal, decay: 0.5 });
    }
    let attended = world.attend(&Portable);
    let World { arena, plan, q } = world;
    let mut arena = copy_to(&arena, backend);
    let attended = Attended { out: on(backend, &attended.out), lse: on(backend, &attended.lse) };
    backend.attribute(&mut arena, 0, &on(backend, &q), &attended, &plan).unwrap();
    let tokens = backend.attributions(&arena, &plan.pages).unwrap();
    tokens.iter().map(|token| token.attribution).collect()
}

#[test]
fn attributions_are_the_same_with_any_number_of_threads() {
    let case = Case { sequences: &[(5000, 1), (0, 130), (4500, 40)], tiers: ALL, ..PLAIN };
    // A device has threads of its own.
    for backend in available().into_iter().filter(|backend| !backend.has_own_memory()) {
        for signal in [Signal::Deletion, Signal::AttentionMass, Signal::KeyNorm] {
            let with = |threads| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                pool.install(|| with_team(|| attributions(&*backend, &case, signal, 1.0)))
            };
            let one = with(1);
            for threads in [2, 3, 64] {
                assert_eq!(one, with(threads), "{} {signal:?} {threads}", backend.name());
            }
        }
    }
}

#[test]
fn every_backend_attributes_as_the_portable_one_does() {
    for case in CASES {
        for (signal, sharpness, tolerance) in SIGNALS {
            let right = attributions(&Portable, case, signal, sharpness);
            for backend in available() {
                let got = attributions(&*backend, case, signal, sharpness);
                assert_eq!(got.len(), right.len());
                for (token, (a, b)) in got.iter().zip(&right).enumerate() {
                    let near = (a - b).abs() <= b.abs() * tolerance + 1e-9;
                    assert!(near, "{}: {case:?} {signal:?} {token}: {a} {b}", backend.name());
                }
            }
        }
    }
}

#[test]
fn a_step_without_scoring_changes_no_attribution() {
    let case = Case { sequences: RAGGED, tiers: ALL, ..PLAIN };
    let world = World::new(&case);
    let Attended { out, lse } = world.attend(&Portable);
    let before = Portable.attributions(&world.arena, &world.plan.pages).unwrap();
    for backend in available() {
        let mut arena = copy_to(&world.arena, &*backend);
        let attended = Attended { out: on(&*backend, &out), lse: on(&*backend, &lse) };
        let q = on(&*backend, &world.q);
        backend.attribute(&mut arena, 0, &q, &attended, &world.plan).unwrap();
        assert_eq!(backend.attributions(&arena, &world.plan.pages).unwrap(), before);
    }
}

/// Pages of one tier after each other: groups of several pages, of one and of none.
fn groups(pages: &[PageRef]) -> Vec<&[PageRef]> {
    let mut groups: Vec<_> = pages.chunk_by(|a, b| a.tier == b.tier).collect();
    groups.insert(1, &[]);
    groups.push(pages);
    groups
}

#[test]
fn every_backend_counts_the_attributions_it_reads() {
    for case in CASES {
        let world = World::new(case);
        let groups = groups(&world.plan.pages);
        let some = [0..u32::MAX, 7..7, 4..60, 64..65, 1000..4900];
        for ranges in [&some[..1], &some[1..2], &some[2..], &[]] {
            let count = |pages: &&[PageRef]| {
                let mut histogram = Histogram::default();
                for token in Portable.attributions(&world.arena, pages).unwrap() {
                    if ranges.iter().any(|range| range.contains(&token.position)) {
                        histogram.add(token.attribution);
                    }
                }
                histogram
            };
            let right: Vec<_> = groups.iter().map(count).collect();
            for backend in available() {
                let arena = copy_to(&world.arena, &*backend);
                let got = backend.histograms(&arena, &groups, ranges).unwrap();
                assert_eq!(got, right, "{}: {case:?} {ranges:?}", backend.name());
            }
        }
    }
}
