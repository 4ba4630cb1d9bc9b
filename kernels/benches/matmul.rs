//! Matrix products of SmolLM2-135M on every backend: milliseconds, GB/s of weights, GOP/s.
//!
//! `cargo bench -p keepwell-kernels --bench matmul`

mod ceiling;

use std::time::Instant;

use candle_core::{
    Device, Tensor,
    quantized::{GgmlDType, QTensor},
};
use keepwell_kernels::{Backend, Linear, RawMatrix, available};

/// (in, out, format, times per token)
const SHAPES: [(usize, usize, GgmlDType, f64); 5] = [
    (576, 960, GgmlDType::Q4_1, 30.0),
    (576, 576, GgmlDType::Q4_1, 30.0),
    (576, 3072, GgmlDType::Q4_1, 30.0),
    (1536, 576, GgmlDType::Q4_1, 30.0),
    (576, 49152, GgmlDType::Q8_0, 1.0),
];
const NUM_ROWS: [usize; 6] = [1, 2, 4, 8, 16, 512];
/// Copies of a matrix that together exceed the caches, as the layers of a model do.
const RESIDENT: usize = 96 << 20;

fn main() {
    let read = ceiling::read_bandwidth();
    println!("reading memory: {read:.1} GB/s with {} threads", rayon::current_num_threads());
    // The step runs inside the pool: a call from outside costs a wake-up each time.
    let on_host = available().into_iter().filter(|backend| !backend.has_own_memory());
    rayon::scope(|_| on_host.for_each(|backend| measure(&*backend, read)));
}

fn measure(backend: &dyn Backend, read: f64) {
    if std::env::args().any(|arg| arg == "--fast") && backend.name() == "portable" {
        return;
    }
    for num_rows in NUM_ROWS {
        let mut total = 0.0;
        for (cols, rows, dtype, times) in SHAPES {
            // In prefill only the last row reaches the head.
            let num_rows = if times == 1.0 { num_rows.min(16) } else { num_rows };
            let start = Instant::now();
            let copies = copies(backend, dtype, rows, cols, num_rows);
            if num_rows == 1 {
                let bytes = copies.iter().map(|copy| copy.bytes()).sum::<usize>();
                let rate = bytes as f64 / start.elapsed().as_secs_f64() / 1e6;
                println!("{:8} packed {dtype:?} at {rate:.0} MB/s or more", backend.name());
            }
            let seconds = time(&copies, &uniform(num_rows, cols));
            total += seconds * times;
            let gigabytes = copies[0].bytes() as f64 / seconds / 1e9;
            println!(
                "{:8} {num_rows:4} x {cols:5} x {rows:5} {dtype:?}: {:8.3} ms {gigabytes:6.1} GB/s ({:3.0} %) \
                 {:7.1} GOP/s",
                backend.name(),
                seconds * 1e3,
                gigabytes / read * 100.0,
                2e-9 * (num_rows * cols * rows) as f64 / seconds,
            );
        }
        let rate = num_rows as f64 / total;
        println!(
            "{:8} {num_rows:4} rows: {:.2} ms, {rate:.0} tokens/s\n",
            backend.name(),
            total * 1e3
        );
    }
}

fn copies(
    backend: &dyn Backend,
    dtype: GgmlDType,
    rows: usize,
    cols: usize,
    num_rows: usize,
) -> Vec<Box<dyn Linear>> {
    let quantized = QTensor::quantize(&uniform(rows, cols), dtype).expect("host memory");
    let data = quantized.data().expect("host memory").into_owned();
    let resident = if num_rows > 16 { 0 } else { RESIDENT };
    let num_copies = (resident / data.len()).max(1);
    let raw = || RawMatrix { dtype, rows, cols, data: data.clone() };
    let copy = |_| backend.linear(vec![raw()]).expect("a good matrix");
    (0..num_copies).map(copy).collect()
}

fn uniform(rows: usize, cols: usize) -> Tensor {
    Tensor::rand(-1f32, 1.0, (rows, cols), &Device::Cpu).expect("host memory")
}

/// Seconds of one product: the fastest of rounds that each visit every copy.
fn time(copies: &[Box<dyn Linear>], x: &Tensor) -> f64 {
    let round = |_| {
        let start = Instant::now();
        for linear in copies {
            std::hint::black_box(linear.forward(x).expect("shapes agree"));
        }
        start.elapsed().as_secs_f64() / copies.len() as f64
    };
    (0..9).map(round).fold(f64::INFINITY, f64::min)
}
