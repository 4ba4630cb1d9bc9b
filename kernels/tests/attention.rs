//! Every backend's attention against the portable one, over pages of all tiers.

mod world;

use candle_core::Tensor;
use keepwell_kernels::{
    ActivationBits, Attended, Backend, Tier, available, portable::Portable, team::with_team,
};

use world::{ALL, Case, PLAIN, RAGGED, World};

const CASES: &[Case] = &[
    PLAIN,
    Case { sequences: &[(0, 70)], ..PLAIN },
    Case { sequences: &[(8, 1)], tiers: &[Tier::K8V8], ..PLAIN },
    Case { sequences: &[(8, 1)], tiers: &[Tier::K8V4], ..PLAIN },
    Case { sequences: &[(8, 1)], tiers: &[Tier::K4V4], ..PLAIN },
    Case { sequences: RAGGED, tiers: ALL, ..PLAIN },
    Case { sequences: RAGGED, tiers: ALL, shuffled: true, window: Some(50), ..PLAIN },
    Case { sequences: &[(5000, 1)], tiers: ALL, num_kv_heads: 3, ..PLAIN },
    Case { sequences: &[(3000, 40)], tiers: ALL, window: Some(1000), ..PLAIN },
    Case { head_dim: 128, group: 4, sequences: RAGGED, tiers: ALL, ..PLAIN },
    Case { head_dim: 256, group: 1, sequences: RAGGED, tiers: ALL, ..PLAIN },
    Case { head_dim: 32, group: 8, sequences: RAGGED, tiers: ALL, window: Some(64), ..PLAIN },
    Case { head_dim: 16, group: 2, sequences: RAGGED, tiers: ALL, ..PLAIN },
    Case { head_dim: 80, group: 1, sequences: RAGGED, tiers: ALL, ..PLAIN },
    Case { head_dim: 96, group: 5, sequences: RAGGED, tiers: ALL, ..PLAIN },
    Case { head_dim: 8, group: 2, sequences: RAGGED, tiers: ALL, ..PLAIN },
    Case { head_dim: 40, group: 100, sequences: &[(20, 3)], tiers: ALL, ..PLAIN },
];

/// The largest difference.
fn difference(a: &Tensor, b: &Tensor) -> f32 {
    assert_eq!(a.dims(), b.dims());
    let [a, b] = [a, b].map(|x| x.flatten_all().unwrap().to_vec1::<f32>().unwrap());
    a.iter().zip(&b).map(|(a, b)| if a == b { 0.0 } else { (a - b).abs() }).fold(0.0, |m, d| {
        assert!(!d.is_nan());
        f32::max(m, d)
    })
}

/// Few queries and many take different ways through a backend: each tier, head size and number of
/// query heads, over pages cut by groups and windows.
#[test]
fn a_decoding_row_attends_in_every_backend_as_in_the_portable_one() {
    let tiers = ALL.iter().map(std::slice::from_ref).chain([ALL]);
    for ((group, head_dim), tiers) in [16, 32, 64, 80, 96, 128]
        .into_iter()
        .flat_map(|head_dim| [1, 2, 3, 4, 5, 7, 8, 9].map(|group| (group, head_dim)))
        .flat_map(|shape| tiers.clone().map(move |tiers| (shape, tiers)))
    {
        for window in [None, Some(50)] {
            let case =
                Case { head_dim, group, tiers, window, sequences: &[(150, 1), (2, 1)], ..PLAIN };
            check(&case);
            check(&Case { shuffled: true, ..case });
        }
    }
}

#[test]
fn every_backend_attends_as_the_portable_one_does() {
    CASES.iter().for_each(check);
}

fn check(case: &Case) {
    let world = World::new(case);
    let right = world.attend(&Portable);
    for backend in available() {
        check_near(&world.attend(&*backend), &right, &*backend, case);
    }
}

/// Every backend, and every one that can do with activations of 8 bits.
fn backends() -> impl Iterator<Item = Box<dyn Backend>> {
    available().into_iter().flat_map(|backend| {
        let coarse = backend.with_activations(ActivationBits::Eight);
        [Some(backend), coarse].into_iter().flatten()
    })
}

/// With activations of 8 bits queries may have 16 and weights and values 8, of their largest.
#[test]
fn activations_of_8_bits_attend_nearly_as_the_portable_backend_does() {
    let tiers = ALL.iter().map(std::slice::from_ref).chain([ALL]);
    let cases = tiers.flat_map(|tiers| {
        [64, 128].map(|head_dim| Case { head_dim, tiers, sequences: RAGGED, ..PLAIN })
    });
    for case in cases.chain(CASES.iter().copied()) {
        let world = World::new(&case);
        let right = world.attend(&Portable);
        let largest = difference(&right.out, &(&right.out * 0.0).unwrap());
        for backend in available() {
            let Some(coarse) = backend.with_activations(ActivationBits::Eight) else { continue };
            let got = world.attend(&*coarse);
            let (out, lse) = (difference(&got.out, &right.out), difference(&got.lse, &right.lse));
            let name = backend.name();
            assert!(out < 0.01 * largest, "{name}: {case:?}: {out} of {largest}");
            assert!(lse < 4e-3, "{name}: {case:?}: {lse}");
        }
    }
}

fn check_near(got: &Attended, right: &Attended, backend: &dyn Backend, case: &Case) {
    let (out, lse) = (difference(&got.out, &right.out), difference(&got.lse, &right.lse));
    assert!(out < 2e-5 && lse < 2e-5, "{}: {case:?}: {out} {lse}", backend.name());
}

/// A backend may keep what it made of a step's plan for the next layer, not for another step.
#[test]
fn steps_follow_each_other_in_one_backend_and_each_goes_by_its_own_plan() {
    let first = Case { sequences: &[(300, 1), (40, 20)], tiers: ALL, ..PLAIN };
    let steps = [
        first,
        Case { sequences: &[(301, 1), (40, 20)], ..first },
        Case { sequences: &[(301, 1), (40, 20)], shuffled: true, ..first },
        Case { window: Some(30), ..first },
        Case { group: 1, ..first },
        Case { sequences: &[(2, 1)], ..first },
        Case { head_dim: 80, ..first },
        first,
    ];
    for backend in available() {
        for case in steps {
            let mut world = World::new(&case);
            check_near(&world.attend(&*backend), &world.attend(&Portable), &*backend, &case);
            // The same shape, and fewer tokens on a page.
            world.plan.pages[0].len -= 1;
            check_near(&world.attend(&*backend), &world.attend(&Portable), &*backend, &case);
        }
    }
}

#[test]
fn a_query_attends_to_what_comes_after_it_in_no_backend() {
    // A chunk of two rows: what the second row's token holds must not reach the first row.
    let case = Case { sequences: &[(100, 2)], ..PLAIN };
    let mut world = World::new(&case);
    for backend in backends() {
        let before = world.attend(&*backend).out.narrow(0, 0, 1).unwrap();
        for kv_head in 0..case.num_kv_heads {
            let page = *world.plan.pages(0, 0, kv_head).last().unwrap();
            let last = usize::from(page.len - 1);
            let bytes = world.arena.page_mut(page.page);
            bytes[last * 128..(last + 1) * 128].fill(0x33);
        }
        let after = world.attend(&*backend).out.narrow(0, 0, 1).unwrap();
        assert_eq!(difference(&before, &after), 0.0, "{}", backend.name());
    }
}

#[test]
fn scores_far_apart_neither_overflow_nor_vanish() {
    let mut world = World::new(&Case { sequences: &[(200, 3)], ..PLAIN });
    world.q = (world.q * 60.0).unwrap();
    let right = world.attend(&Portable);
    for backend in available() {
        let got = world.attend(&*backend);
        let lse = difference(&got.lse, &right.lse);
        let out = difference(&got.out, &right.out);
        // Scores of some hundreds have a rounding of 2^-16.
        assert!(out < 2e-3 && lse < 2e-3, "{}: {out} {lse}", backend.name());
    }
}

#[test]
fn every_backend_attends_alike_with_any_number_of_threads() {
    let long = &[(5000, 1), (0, 130), (2000, 1), (4500, 40)];
    let world = World::new(&Case { sequences: long, tiers: ALL, ..PLAIN });
    for backend in backends() {
        let attend = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| with_team(|| world.attend(&*backend)))
        };
        let one = attend(1);
        for threads in [2, 3, 64] {
            let many = attend(threads);
            assert_eq!(difference(&one.out, &many.out), 0.0, "{} {threads}", backend.name());
            assert_eq!(difference(&one.lse, &many.lse), 0.0, "{} {threads}", backend.name());
        }
    }
}
