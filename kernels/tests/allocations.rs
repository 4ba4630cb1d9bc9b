//! How often a decode step asks for memory, once it has run before.

mod counting;
mod world;

use candle_core::{
    DType, Device, Tensor,
    quantized::{GgmlDType, QTensor},
};
use keepwell_kernels::{
    Attended, Backend, Linear, RawMatrix, Rope, Slot, Write, available, give_back, team::with_team,
};

use counting::per_step;
use world::{ALL, Case, PLAIN, Sequences, World};

fn of_attention(backend: &dyn Backend, sequences: Sequences) -> usize {
    let world = World::new(&Case { sequences, tiers: ALL, num_kv_heads: 3, ..PLAIN });
    per_step(|| {
        let Attended { out, lse } = world.attend(backend);
        give_back(out);
        give_back(lse);
    })
}

fn of_write_kv(backend: &dyn Backend) -> usize {
    let mut world = World::new(&PLAIN);
    let slot = Slot { page: world.plan.pages[0].page, index: 0 };
    world.plan.writes = vec![Write { slot, offset: 0 }; 2];
    let rope = Rope { frequencies: vec![0.5; 32], attention_factor: 1.0 }.table(&[0]);
    let width = PLAIN.head_dim * PLAIN.num_kv_heads * (PLAIN.group + 2);
    let qkv = ones(1, width);
    per_step(|| {
        let q = backend.write_kv(&mut world.arena, 0, &qkv, &rope, &world.plan);
        give_back(q.unwrap());
    })
}

fn ones(rows: usize, cols: usize) -> Tensor {
    Tensor::ones((rows, cols), DType::F32, &Device::Cpu).unwrap()
}

fn linear(backend: &dyn Backend, dtypes: &[GgmlDType]) -> Box<dyn Linear> {
    const ROWS: usize = 4096;
    let weights = ones(ROWS, 64);
    let part = |dtype: &GgmlDType| {
        let data = QTensor::quantize(&weights, *dtype).unwrap().data().unwrap().into_owned();
        RawMatrix { dtype: *dtype, rows: ROWS, cols: 64, data }
    };
    backend.linear(dtypes.iter().map(part).collect()).unwrap()
}

fn of_product(backend: &dyn Backend, dtypes: &[GgmlDType]) -> usize {
    let (x, linear) = (ones(8, 64), linear(backend, dtypes));
    per_step(|| give_back(linear.forward(&x).unwrap()))
}

fn of_lookup(backend: &dyn Backend) -> usize {
    let linear = linear(backend, &[GgmlDType::Q4_1]);
    per_step(|| give_back(linear.rows(&[3, 1]).unwrap()))
}

fn of_elementwise(backend: &dyn Backend) -> usize {
    let (x, weight) = (ones(8, 64), ones(1, 64).flatten_all().unwrap());
    per_step(|| {
        give_back(backend.rms_norm(&x, &weight, 1e-5).unwrap());
        give_back(backend.silu_mul(&x).unwrap());
        give_back(backend.add(&x, &x).unwrap());
    })
}

#[test]
fn a_decode_step_whose_results_are_given_back_allocates_nothing() {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
    let on_host = available().into_iter().filter(|backend| !backend.has_own_memory());
    for backend in on_host.filter(|backend| backend.name() != "portable") {
        pool.install(|| {
            with_team(|| {
                let (backend, name) = (&*backend, backend.name());
                for sequences in [&[(600, 1)][..], &[(6000, 1)], &[(600, 1); 32]] {
                    assert_eq!(of_attention(backend, sequences), 0, "{name} over {sequences:?}");
                }
                assert_eq!(of_write_kv(backend), 0, "{name}: keys and values");
                assert_eq!(of_lookup(backend), 0, "{name}: embeddings");
                assert_eq!(of_elementwise(backend), 0, "{name}: norms, gates and sums");
                for dtypes in [&[GgmlDType::Q4_1][..], &[GgmlDType::Q8_0, GgmlDType::Q4_0]] {
                    assert_eq!(of_product(backend, dtypes), 0, "{name}: {dtypes:?}");
                }
            })
        });
    }
}
