//! The emulator notices what is wrong with kernels that were broken on purpose.
#![cfg(feature = "cuda-emu")]

mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};

use candle_core::{
    Device, Tensor,
    quantized::{GgmlDType, QTensor},
};
use keepwell_kernels::{
    Backend, Move, RawMatrix, Scoring, Signal, Slot,
    cuda::{Broken, Emulator, broken},
    portable::Portable,
};

use world::{ALL, Case, PLAIN, World, copy_to};

const SEEDS: std::ops::Range<u32> = 0..3;

/// Every number that the kernels give for some small work.
#[derive(Default)]
struct Results {
    floats: Vec<f32>,
    /// Rounded to bf16, up or down.
    attributions: Vec<f32>,
}

impl Results {
    fn is_near(&self, right: &Self) -> bool {
        let near = |a: &[f32], b: &[f32], share: f32| {
            let near = |(a, b): (&f32, &f32)| (a - b).abs() <= share * b.abs() + 2e-5;
            a.len() == b.len() && a.iter().zip(b).all(near)
        };
        near(&self.floats, &right.floats, 1e-5)
            && near(&self.attributions, &right.attributions, 2e-2)
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
        all.extend(product(backend, dtype)?.flatten_all()?.to_vec1::<f32>()?);
    }
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
        results.attributions.extend(tokens.iter().map(|token| token.attribution));
        backend.compact(&mut arena, &moves(&world))?;
        let tokens = backend.attributions(&arena, &world.plan.pages)?;
        all.extend(tokens.iter().map(|token| token.position as f32));
    }
    Ok(results)
}

/// 20 rows by a matrix of 70.
fn product(backend: &dyn Backend, dtype: GgmlDType) -> keepwell_kernels::Result<Tensor> {
    let wave = |rows: usize, cols: usize| {
        Tensor::arange(0f32, (rows * cols) as f32, &Device::Cpu)?.sin()?.reshape((rows, cols))
    };
    let (rows, cols) = (70, 160);
    let data = QTensor::quantize(&wave(rows, cols)?, dtype)?.data()?.into_owned();
    backend.linear(vec![RawMatrix { dtype, rows, cols, data }])?.forward(&wave(20, cols)?)
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
    assert!(broken.len() >= 20);
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
