//! Every backend's elementwise operations and cache writes against the portable ones.

mod world;

use std::sync::Arc;

use candle_core::{Device, Tensor};
use keepwell_kernels::{
    Arena, AttentionPlan, Backend, KeyBasis, PageId, PageLayout, Rope, Slot, Span, Tier, available,
    plan::Write, portable::Portable,
};
use rand::{Rng, SeedableRng, rngs::StdRng};

use world::{copy_to, on, on_host};

fn random(seed: u64, rows: usize, cols: usize, range: f32) -> Tensor {
    let mut rng = StdRng::seed_from_u64(seed);
    let data: Vec<f32> = (0..rows * cols).map(|_| rng.random_range(-range..range)).collect();
    Tensor::from_vec(data, (rows, cols), &Device::Cpu).unwrap()
}

/// The largest difference relative to 1 + |b|.
fn difference(a: &Tensor, b: &Tensor) -> f32 {
    assert_eq!(a.dims(), b.dims());
    let [a, b] = [a, b].map(|x| x.flatten_all().unwrap().to_vec1::<f32>().unwrap());
    a.iter().zip(&b).map(|(a, b)| (a - b).abs() / (1.0 + b.abs())).fold(0.0, |m, d| {
        assert!(!d.is_nan());
        f32::max(m, d)
    })
}

#[test]
fn every_backend_norms_and_gates_as_the_portable_one_does() {
    for backend in available() {
        for (rows, cols) in [(1, 2), (3, 30), (17, 64), (40, 578), (2, 3072)] {
            let (x, weight) = (random(1, rows, cols, 9.0), random(2, 1, cols, 2.0));
            let weight = weight.flatten_all().unwrap();
            let norm =
                |b: &dyn Backend| on_host(&b.rms_norm(&on(b, &x), &on(b, &weight), 1e-5).unwrap());
            assert!(difference(&norm(&*backend), &norm(&Portable)) < 2e-6);
            for range in [0.1, 9.0, 300.0] {
                let x = random(3, rows, cols, range);
                let gate = |b: &dyn Backend| on_host(&b.silu_mul(&on(b, &x)).unwrap());
                assert!(difference(&gate(&*backend), &gate(&Portable)) < 2e-6);
            }
        }
    }
}

#[test]
fn every_backend_adds_as_the_portable_one_does() {
    for backend in available() {
        for (rows, cols) in [(1, 1), (3, 85), (1, 256), (40, 578)] {
            let (x, y) = (random(1, rows, cols, 9.0), random(2, rows, cols, 9.0));
            let sum = |b: &dyn Backend| on_host(&b.add(&on(b, &x), &on(b, &y)).unwrap());
            assert_eq!(difference(&sum(&*backend), &sum(&Portable)), 0.0);
        }
    }
}

/// A step of `rows` tokens at positions from 5, two KV heads, written to scattered slots.
fn step(layout: PageLayout, rows: usize) -> (AttentionPlan, Arena) {
    let capacity = layout.capacity(Tier::F16);
    let write = |i: usize| Write {
        slot: Slot { page: PageId((i / capacity) as u32), index: (i % capacity) as u16 },
        offset: 7 - i as i16,
    };
    let plan = AttentionPlan {
        num_kv_heads: 2,
        positions: (5..5 + rows as u32).collect(),
        spans: vec![Span { rows: 0..rows, scoring: None }],
        writes: (0..2 * rows).map(write).collect(),
        ..Default::default()
    };
    (plan, Arena::host(layout, (2 * rows).div_ceil(capacity)).unwrap())
}

#[test]
fn every_backend_writes_keys_and_values_as_the_portable_one_does() {
    for head_dim in [8, 16, 32, 40, 64, 80, 96, 128, 256] {
        for (rows, in_basis) in [(1, false), (3, true), (40, false), (40, true)] {
            let layout = PageLayout::new(head_dim);
            let (mut plan, arena) = step(layout, rows);
            plan.basis = in_basis.then(|| Arc::new(basis(head_dim, 8)));
            let frequencies = (0..head_dim / 2).map(|i| 0.7f32.powi(i as i32)).collect();
            let rope = Rope { frequencies, attention_factor: 1.0 }.table(&plan.positions);
            // Some values beyond f16 before they are clamped.
            let qkv = random(4, rows, 8 * head_dim, 90_000.0);
            let run = |backend: &dyn Backend| {
                let mut arena = copy_to(&arena, backend);
                let qkv = on(backend, &qkv);
                let q = backend.write_kv(&mut arena, 0, &qkv, &rope, &plan).unwrap();
                (on_host(&q), values(&arena, 2 * rows))
            };
            let (q, cached) = run(&Portable);
            for backend in available() {
                let (got_q, got_cached) = run(&*backend);
                // Sums of values near 1e5 are exact to 2e-6 of that.
                let far = (got_q - &q).unwrap().abs().unwrap().max_all().unwrap();
                assert!(far.to_scalar::<f32>().unwrap() < 0.2, "{} {head_dim}", backend.name());
                assert_eq!(got_cached.len(), cached.len());
                for (a, b) in got_cached.iter().zip(&cached) {
                    // And one step of f16, where the order of sums decides a rounding.
                    assert!((a - b).abs() <= 0.2 + b.abs() / 1024.0, "{a} {b}");
                }
            }
        }
    }
}

/// Matrices that keep the size of vectors, about.
fn basis(head_dim: usize, num_heads: usize) -> KeyBasis {
    let mut rng = StdRng::seed_from_u64(9);
    let size = (3.0 / head_dim as f32).sqrt();
    let mut numbers = |len: usize, size: f32| -> Vec<f32> {
        (0..len).map(|_| rng.random_range(-size..size)).collect()
    };
    let squares = num_heads * head_dim * head_dim;
    let means = numbers(num_heads * head_dim, 1e3);
    KeyBasis::new(head_dim, means, numbers(squares, size), numbers(squares, size)).unwrap()
}

/// K and V of the first slots, and their offsets and attributions.
fn values(arena: &Arena, slots: usize) -> Vec<f32> {
    let at = arena.layout().arrays(Tier::F16);
    let mut values = Vec::new();
    for slot in 0..slots {
        let page = arena.read(PageId((slot / at.capacity) as u32)).unwrap();
        let index = slot % at.capacity;
        for (start, bytes) in [(at.keys, at.key_bytes), (at.values, at.value_bytes)] {
            let codes = page[start + index * bytes..][..bytes].as_chunks::<2>().0;
            values.extend(codes.iter().map(|c| half::f16::from_le_bytes(*c).to_f32()));
        }
        for start in [at.positions, at.attributions] {
            values.push(f32::from(page[start + 2 * index]) * 1e6);
        }
    }
    values
}
