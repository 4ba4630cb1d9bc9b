//! How often a decode step asks for memory, once it has run before.

mod counting;
mod world;

use candle_core::{
    Device, Tensor,
    quantized::{GgmlDType, QTensor},
};
use keepwell_kernels::{Backend, RawMatrix, available};

use counting::per_step;
use world::{ALL, Case, PLAIN, Sequences, World};

fn of_attention(backend: &dyn Backend, sequences: Sequences) -> usize {
    let world = World::new(&Case { sequences, tiers: ALL, num_kv_heads: 3, ..PLAIN });
    per_step(|| drop(world.attend(backend)))
}

fn of_product(backend: &dyn Backend, rows: usize) -> usize {
    let x = Tensor::ones((1, 64), candle_core::DType::F32, &Device::Cpu).unwrap();
    let weights = Tensor::ones((rows, 64), candle_core::DType::F32, &Device::Cpu).unwrap();
    let dtype = GgmlDType::Q4_1;
    let data = QTensor::quantize(&weights, dtype).unwrap().data().unwrap().into_owned();
    let linear = backend.linear(vec![RawMatrix { dtype, rows, cols: 64, data }]).unwrap();
    per_step(|| drop(linear.forward(&x).unwrap()))
}

/// Results and lists of what is to be done are allocated; nothing for each part of the work.
#[test]
fn a_decode_step_allocates_no_more_often_the_more_there_is_to_read() {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
    let on_host = available().into_iter().filter(|backend| !backend.has_own_memory());
    for backend in on_host.filter(|backend| backend.name() != "portable") {
        pool.install(|| {
            let (short, long) =
                (of_attention(&*backend, &[(600, 1)]), of_attention(&*backend, &[(6000, 1)]));
            let many = of_attention(&*backend, &[(600, 1); 32]);
            let (small, large) = (of_product(&*backend, 32), of_product(&*backend, 8192));
            let name = backend.name();
            println!("{name}: attention {short}, {long}, {many}; product {small}, {large}");
            assert!(long <= short + 8 && long <= 32, "{name}: {short} and {long}");
            // Some lists grow by doubling.
            assert!(many <= short + 16, "{name}: {short} and {many} of 32 sequences");
            assert!(large <= small + 4 && large <= 16, "{name}: {small} and {large}");
        });
    }
}
