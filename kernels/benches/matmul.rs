//! Matrix products of SmolLM2-135M on every backend of the host: time, bytes of weights and
//! multiply-adds a second.
//!
//! `cargo bench -p keepwell-kernels --bench matmul [-- words in a name]`

mod rates;

use std::cell::OnceCell;

use candle_core::{
    Device, Tensor,
    quantized::{GgmlDType, QTensor},
};
use criterion::Throughput;
use keepwell_kernels::{Backend, Linear, RawMatrix};
use rates::{Arithmetic, Bench, each_backend, group};

/// (what, in, out, format)
const SHAPES: [(&str, usize, usize, GgmlDType); 6] = [
    ("qkv", 576, 960, GgmlDType::Q4_1),
    ("o", 576, 576, GgmlDType::Q4_1),
    ("gate_up", 576, 3072, GgmlDType::Q4_1),
    ("down", 1536, 576, GgmlDType::Q4_1),
    ("head", 576, 49152, GgmlDType::Q8_0),
    ("gate_up", 576, 3072, GgmlDType::BF16),
];
const NUM_ROWS: [usize; 6] = [1, 2, 4, 8, 16, 512];
/// Copies of a matrix that together exceed the caches, as the layers of a model do.
const RESIDENT: usize = 96 << 20;

fn main() {
    each_backend(Arithmetic::I16, |bench, backend| {
        for shape in SHAPES {
            // In prefill only the last row reaches the head.
            let most = if shape.0 == "head" { 16 } else { usize::MAX };
            // Packed for the first number of rows that is asked for.
            let copies = OnceCell::new();
            for num_rows in NUM_ROWS.into_iter().filter(|num_rows| *num_rows <= most) {
                measure(bench, backend, shape, num_rows, &copies);
            }
        }
    });
}

/// Visits the copies in turn.
fn measure(
    bench: &mut Bench,
    backend: &dyn Backend,
    (name, cols, rows, dtype): (&str, usize, usize, GgmlDType),
    num_rows: usize,
    packed: &OnceCell<Vec<Box<dyn Linear>>>,
) {
    let x = uniform(num_rows, cols);
    let work = Throughput::ElementsAndBytes {
        elements: 2 * (num_rows * cols * rows) as u64,
        bytes: (cols * rows / dtype.block_size() * dtype.type_size()) as u64,
    };
    group(bench, backend, work).bench_function(
        format!("{name} {dtype:?} x {num_rows}"),
        |bencher| {
            let mut in_turn =
                packed.get_or_init(|| copies(backend, dtype, rows, cols)).iter().cycle();
            bencher.iter(|| in_turn.next().map(|linear| linear.forward(&x).expect("shapes agree")));
        },
    );
}

fn copies(
    backend: &dyn Backend,
    dtype: GgmlDType,
    rows: usize,
    cols: usize,
) -> Vec<Box<dyn Linear>> {
    let quantized = QTensor::quantize(&uniform(rows, cols), dtype).expect("host memory");
    let data = quantized.data().expect("host memory").into_owned();
    let raw = || RawMatrix { dtype, rows, cols, data: data.clone() };
    let copy = |_| backend.linear(vec![raw()]).expect("a good matrix");
    (0..(RESIDENT / data.len()).max(1)).map(copy).collect()
}

fn uniform(rows: usize, cols: usize) -> Tensor {
    Tensor::rand(-1f32, 1.0, (rows, cols), &Device::Cpu).expect("host memory")
}
