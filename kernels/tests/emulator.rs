//! The emulator notices what is wrong with kernels that were broken on purpose.
#![cfg(feature = "cuda-emu")]

mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};

use candle_core::{
    Device, Tensor,
    quantized::{GgmlDType, QTensor},
};
use keepwell_kernels::{
    AttentionPlan, Backend, Histogram, Linear, Move, PageId, PageLayout, PageRef, RawMatrix, Rope,
    Scoring, Signal, Slot, Tier, Write,
    cuda::{Broken, Emulator, broken},
    portable::{Portable, segment::Segment},
};

use world::{ALL, Case, PLAIN, World, copy_to};

const SEEDS: std::ops::Range<u32> = 0..3;

/// Every number that the kernels give for some small work.
#[derive(Default)]
struct Results {
    floats: Vec<f32>,
    /// To bf16 or f16, up or down.
    rounded: Vec<f32>,
}

impl Results {
    fn is_near(&self, right: &Self) -> bool {
        let near = |a: &[f32], b: &[f32], share: f32| {
            let near = |(a, b): (&f32, &f32)| (a - b).abs() <= share * b.abs() + 2e-5;
            a.len() == b.len() && a.iter().zip(b).all(near)
        };
        near(&self.floats, &right.floats, 1e-5) && near(&self.rounded, &right.rounded, 2e-2)
    }
}

fn results(backend: &dyn Backend) -> keepwell_kernels::Result<Results> {
    let mut results = Results::default();
    let all = &mut results.floats;
    // As many floats as fill a row of a device's memory to its end.
    let x = Tensor::arange(0f32, 300.0, &Device::Cpu)?.affine(0.01, -1.0)?.reshape((3, 100))?;
    let weight = Tensor::ones(100, candle_core::DType::F32, &Device::Cpu)?;
    all.extend(backend.rms_norm(&x, &weight, 1e-5)?.flatten_all()?.to_vec1::<f32>()?);
    all.extend(backend.silu_mul(&x)?.flatten_all()?.to_vec1::<f32>()?);
    for dtype in [GgmlDType::Q4_1, GgmlDType::Q8_0] {
        let linear = linear(backend, dtype)?;
        all.extend(linear.forward(&wave(20, 160)?)?.flatten_all()?.to_vec1::<f32>()?);
        all.extend(linear.rows(&[69, 0, 33])?.flatten_all()?.to_vec1::<f32>()?);
    }
    let (q, cached) = written(backend)?;
    all.extend(q);
    results.rounded.extend([cached.keys, cached.values].concat());
    for sequences in [&[(150, 1)][..], &[(60, 40)]] {
        let mut world = World::new(&Case { sequences, tiers: ALL, ..PLAIN });
        for span in &mut world.plan.spans {
            span.scoring = Some(Scoring { rows: 40, signal: Signal::Deletion, decay: 0.5 });
        }
        let mut arena = copy_to(&world.arena, backend);
        let attended = backend.attention(&arena, 0, &world.q, &world.plan)?;
        for x in [&attended.out, &attended.lse] {
            all.extend(x.flatten_all()?.to_vec1::<f32>()?);
        }
        backend.attribute(&mut arena, 0, &world.q, &attended, &world.plan)?;
        let tokens = backend.attributions(&arena, &world.plan.pages)?;
        results.rounded.extend(tokens.iter().map(|token| token.attribution));
        let some = 3..90;
        let ranges = std::slice::from_ref(&some);
        for Histogram { counts } in backend.histograms(&arena, &[&world.plan.pages], ranges)? {
            // Roundings up or down may cross into the next octave.
            all.push(counts.iter().sum::<u32>() as f32);
        }
        backend.compact(&mut arena, &moves(&world))?;
        let last = PageId(arena.num_pages() as u32 - 1);
        backend.copy_pages(&mut arena, &[(world.plan.pages[0].page, last)])?;
        let tokens = backend.attributions(&arena, &world.plan.pages)?;
        all.extend(tokens.iter().map(|token| token.position as f32));
    }
    Ok(results)
}

fn wave(rows: usize, cols: usize) -> candle_core::Result<Tensor> {
    Tensor::arange(0f32, (rows * cols) as f32, &Device::Cpu)?.sin()?.reshape((rows, cols))
}

/// A matrix of 70 rows.
fn linear(backend: &dyn Backend, dtype: GgmlDType) -> keepwell_kernels::Result<Box<dyn Linear>> {
    let (rows, cols) = (70, 160);
    let data = QTensor::quantize(&wave(rows, cols)?, dtype)?.data()?.into_owned();
    backend.linear(vec![RawMatrix { dtype, rows, cols, data }])
}

/// Queries (T, H * D), and the keys and values that the cache holds, of a step of 11 rows.
fn written(backend: &dyn Backend) -> keepwell_kernels::Result<(Vec<f32>, Segment)> {
    const ROWS: usize = 11;
    let layout = PageLayout::new(64);
    let capacity = layout.capacity(Tier::F16);
    let write = |i: usize| Write {
        slot: Slot { page: PageId((i / capacity) as u32), index: (i % capacity) as u16 },
        offset: 0,
    };
    let plan = AttentionPlan {
        num_kv_heads: 1,
        positions: (5..5 + ROWS as u32).collect(),
        writes: (0..ROWS).map(write).collect(),
        ..Default::default()
    };
    let frequencies = (0..32).map(|i| 0.7f32.powi(i)).collect();
    let rope = Rope { frequencies, attention_factor: 1.0 }.table(&plan.positions);
    let mut arena = backend.arena(layout, ROWS.div_ceil(capacity))?;
    let q = backend.write_kv(&mut arena, 0, &wave(ROWS, 4 * 64)?, &rope, &plan)?;
    let page = |page: usize| PageRef {
        page: PageId(page as u32),
        base: 0,
        len: capacity.min(ROWS - page * capacity) as u16,
        tier: Tier::F16,
    };
    let pages: Vec<_> = (0..arena.num_pages()).map(page).collect();
    Ok((q.flatten_all()?.to_vec1()?, Segment::decode(&arena, &pages)))
}

/// The first tokens of two pages change places.
fn moves(world: &World) -> Vec<Move> {
    let slot = |page: usize| Slot { page: world.plan.pages[page].page, index: 0 };
    let tier = |page: usize| world.plan.pages[page].tier;
    [(0, 1), (1, 0), (2, 3)]
        .map(|(from, to)| Move {
            from: slot(from),
            from_tier: tier(from),
            to: slot(to),
            to_tier: tier(to),
            offset: 5,
        })
        .to_vec()
}

#[test]
fn whole_kernels_give_the_same_in_any_order_of_threads() {
    let right = results(&Portable).unwrap();
    for make in Emulator::all() {
        let backend = make();
        assert!(results(&backend).unwrap().is_near(&right), "{}", backend.name());
    }
}

#[test]
fn every_broken_kernel_is_noticed_under_some_order_of_threads() {
    let right = results(&Portable).unwrap();
    let broken = broken();
    assert!(broken.len() >= 26);
    for broken in broken {
        let tries = SEEDS.flat_map(|seed| [false, true].map(|plain| (seed, plain)));
        let noticed = tries.filter_map(|(seed, plain)| notice(broken, seed, plain, &right)).next();
        println!("{}: {noticed:?}", broken.what);
        assert!(noticed.is_some(), "{} and nobody noticed", broken.what);
    }
}

/// What shows that kernels are broken under an order of threads, if anything does.
fn notice(broken: Broken, seed: u32, plain: bool, right: &Results) -> Option<String> {
    let mut backend = Emulator::broken(broken, seed);
    if plain {
        backend = backend.without_tensor_cores("cuda-emu-plain");
    }
    // A write beside a buffer panics when the buffer is freed.
    match catch_unwind(AssertUnwindSafe(|| results(&backend))) {
        Ok(Ok(got)) if got.is_near(right) => None,
        Ok(Ok(_)) => Some("wrong results".to_owned()),
        Ok(Err(error)) => Some(error.to_string()),
        Err(_) => Some("a write beside a buffer".to_owned()),
    }
}
