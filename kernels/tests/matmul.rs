//! Every backend's matrix products against f64 sums over the weights as candle dequantizes them.

mod world;

use candle_core::{
    Device, Tensor,
    quantized::{GgmlDType, QTensor},
};
use keepwell_kernels::{
    ActivationBits, Backend, Linear, RawMatrix, available, portable::Portable, team::with_team,
};
use rand::{Rng, SeedableRng, rngs::StdRng};

use world::{on, on_host};

use GgmlDType::{BF16, F16, F32, Q2K, Q3K, Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0};

const QUANTIZED: [GgmlDType; 10] = [Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2K, Q3K, Q4K, Q5K, Q6K];
/// Quantized anew to 8 bits.
const REQUANTIZED: [GgmlDType; 3] = [Q2K, Q3K, Q6K];
const FLOATS: [GgmlDType; 3] = [F32, F16, BF16];

fn random(seed: u64, rows: usize, cols: usize) -> Tensor {
    let mut rng = StdRng::seed_from_u64(seed);
    let data: Vec<f32> = (0..rows * cols).map(|_| rng.random_range(-1.0..1.0)).collect();
    Tensor::from_vec(data, (rows, cols), &Device::Cpu).unwrap()
}

/// A matrix in a file's format, and what candle reads from it.
fn matrix(seed: u64, dtype: GgmlDType, rows: usize, cols: usize) -> (RawMatrix, Tensor) {
    let quantized = QTensor::quantize(&random(seed, rows, cols), dtype).unwrap();
    let data = quantized.data().unwrap().into_owned();
    (RawMatrix { dtype, rows, cols, data }, quantized.dequantize(&Device::Cpu).unwrap())
}

/// A matrix of several parts: rows and format of each, `cols` columns.
fn parts(cols: usize, parts: &[(usize, GgmlDType)]) -> (Vec<RawMatrix>, Tensor) {
    let of = |(seed, (rows, dtype)): (usize, &(usize, GgmlDType))| {
        matrix(seed as u64, *dtype, *rows, cols)
    };
    let (raw, dense): (Vec<_>, Vec<_>) = parts.iter().enumerate().map(of).unzip();
    (raw, Tensor::cat(&dense, 0).unwrap())
}

fn vec2(x: &Tensor) -> Vec<Vec<f32>> {
    x.to_vec2().unwrap()
}

/// x W^T, wherever the backend computes it.
fn product(backend: &dyn Backend, linear: &dyn Linear, x: &Tensor) -> Vec<Vec<f32>> {
    vec2(&on_host(&linear.forward(&on(backend, x)).unwrap()))
}

/// The root mean square error of y, as a share of the root mean square of what is right.
fn error(y: &[Vec<f32>], right: &[Vec<f32>]) -> f64 {
    let (mut error, mut power) = (0f64, 0f64);
    assert_eq!(y.len(), right.len());
    for (a, b) in y.iter().zip(right) {
        assert_eq!(a.len(), b.len());
        for (a, b) in a.iter().zip(b) {
            error += f64::from(a - b).powi(2);
            power += f64::from(*b).powi(2);
        }
    }
    (error / power.max(1e-30)).sqrt()
}

fn exact(x: &Tensor, w: &Tensor) -> Vec<Vec<f32>> {
    let dot = |x: &Vec<f32>, w: &Vec<f32>| {
        x.iter().zip(w).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>() as f32
    };
    let w = vec2(w);
    vec2(x).iter().map(|x| w.iter().map(|w| dot(x, w)).collect()).collect()
}

/// (rows of x, in, parts)
type Case = (usize, usize, &'static [(usize, GgmlDType)]);

const CASES: &[Case] = &[
    (1, 32, &[(1, Q4_1)]),
    (1, 64, &[(16, Q8_0)]),
    (2, 96, &[(17, Q4_0)]),
    (3, 288, &[(33, Q5_0)]),
    (4, 32, &[(5, Q5_1), (7, Q8_0)]),
    (5, 64, &[(40, Q4_1), (9, Q4_0)]),
    (6, 512, &[(31, Q4K)]),
    (7, 256, &[(48, Q5K)]),
    (8, 768, &[(50, Q6K)]),
    (3, 512, &[(40, Q2K), (21, Q3K)]),
    (9, 576, &[(64, Q8_0)]),
    (16, 576, &[(100, Q4_1)]),
    (33, 1536, &[(70, Q4_1)]),
    (64, 64, &[(16, Q4_1)]),
    (65, 64, &[(300, Q8_0)]),
    (150, 256, &[(200, Q4K), (33, Q4K)]),
    (1, 576, &[(3072, Q4_1)]),
    (2, 256, &[(20, Q4K), (20, Q4K), (20, Q6K)]),
    (7, 256, &[(3, F16), (5, Q4_0), (4, F32), (6, Q8_0)]),
    (3, 80, &[(7, F32), (9, F32)]),
    (3, 81, &[(700, F16)]),
    (40, 81, &[(600, BF16), (20, BF16)]),
    (1, 576, &[(960, BF16)]),
    (4, 100, &[(33, F16), (40, BF16)]),
    (5, 100, &[(33, F16), (40, BF16)]),
];

#[test]
fn every_backend_multiplies_as_the_portable_one_does() {
    for (num_rows, cols, shape) in CASES {
        let (raw, _) = parts(*cols, shape);
        let x = random(99, *num_rows, *cols);
        let right = vec2(&Portable.linear(raw.clone()).unwrap().forward(&x).unwrap());
        for backend in available() {
            let y = product(&*backend, &*backend.linear(raw.clone()).unwrap(), &x);
            let error = error(&y, &right);
            assert!(error < 2e-6, "{}: {num_rows} x {cols} x {shape:?}: {error}", backend.name());
        }
    }
}

/// The largest codes of each format, all alike.
fn extreme(dtype: GgmlDType, code: u8) -> RawMatrix {
    let one = half::f16::ONE.to_le_bytes();
    let block = match dtype {
        Q4_1 => [&one[..], &[0; 2], &[code; 16]].concat(),
        _ => [&one[..], &[code; 32]].concat(),
    };
    RawMatrix { dtype, rows: 16, cols: 64, data: block.repeat(16 * 2) }
}

#[test]
fn no_sum_of_the_largest_codes_and_activations_overflows() {
    // 127 times 256 is the largest code of an activation, and this one has the largest bytes: 127 and
    // -128.
    let largest_bytes = (126.5 * 256.0) / (127.0 * 256.0);
    let row =
        |sign: f32| (0..64).map(move |k| sign * if k % 32 == 0 { 1.0 } else { largest_bytes });
    let x: Vec<f32> = (0..8).flat_map(|r| row(if r % 2 == 0 { 1.0 } else { -1.0 })).collect();
    let x = Tensor::from_vec(x, (8, 64), &Device::Cpu).unwrap();
    for (dtype, code, weight) in [(Q4_1, 0xff, 15.0), (Q8_0, 127, 127.0), (Q8_0, 128, -128.0)] {
        let right = 2.0 * weight * (1.0 + 31.0 * largest_bytes);
        for backend in available() {
            let linear = backend.linear(vec![extreme(dtype, code)]).unwrap();
            for (r, y) in product(&*backend, &*linear, &x).iter().enumerate() {
                let right = if r % 2 == 0 { right } else { -right };
                let close = |y: &f32| (y / right - 1.0).abs() < 1e-5;
                assert!(y.iter().all(close), "{} {dtype:?} {code}: {y:?}", backend.name());
            }
        }
    }
}

/// x as 8 bits a number keep it, blocks of 32 by themselves.
fn in_8_bits(x: &Tensor) -> Tensor {
    let shape = x.shape().clone();
    let mut data = x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    for block in data.chunks_mut(32) {
        let step = block.iter().fold(0f32, |m, v| m.max(v.abs())) / 127.0;
        block.iter_mut().for_each(|v| *v = (*v / step).round_ties_even() * step);
    }
    Tensor::from_vec(data, shape, &Device::Cpu).unwrap()
}

#[test]
fn activations_keep_8_bits_where_that_is_asked_for() {
    let kept = |(_, dtype): &(usize, GgmlDType)| [Q4_0, Q4_1, Q8_0].contains(dtype);
    for backend in available().iter().filter_map(|b| b.with_activations(ActivationBits::Eight)) {
        let mut furthest = 0f64;
        for (num_rows, cols, shape) in CASES.iter().filter(|(_, _, shape)| shape.iter().all(kept)) {
            let (raw, dense) = parts(*cols, shape);
            let x = random(99, *num_rows, *cols);
            let y = product(&*backend, &*backend.linear(raw).unwrap(), &x);
            let error = |x| error(&y, &exact(x, &dense));
            let (rounded, own) = (error(&in_8_bits(&x)), error(&x));
            assert!(rounded < 1e-3, "{}: {num_rows} x {cols} x {shape:?}", backend.name());
            furthest = furthest.max(own);
        }
        // What 16 bits would not be.
        assert!(furthest > 2e-3, "{}: {furthest}", backend.name());
    }
}

#[test]
fn products_differ_from_exact_ones_by_the_rounding_of_scales_and_activations() {
    for backend in available() {
        for (num_rows, cols, shape) in CASES {
            let (raw, dense) = parts(*cols, shape);
            let x = random(99, *num_rows, *cols);
            let y = product(&*backend, &*backend.linear(raw).unwrap(), &x);
            let error = error(&y, &exact(&x, &dense));
            let is_requantized = shape.iter().any(|(_, dtype)| REQUANTIZED.contains(dtype));
            let bound = if is_requantized { 5e-3 } else { 1e-3 };
            assert!(error < bound, "{}: {num_rows} x {cols} x {shape:?}: {error}", backend.name());
        }
    }
}

#[test]
fn rows_come_back_as_candle_dequantizes_them() {
    for dtype in QUANTIZED.into_iter().chain(FLOATS) {
        let (raw, dense) = parts(512, &[(21, dtype), (14, dtype)]);
        let ids = [34, 0, 21, 20, 20, 7];
        let right = dense.index_select(&Tensor::new(&ids, &Device::Cpu).unwrap(), 0).unwrap();
        // f16 holds the products of Q4_K's and Q5_K's scales.
        let bound = match dtype {
            Q2K | Q3K | Q6K => 4e-3,
            Q4K | Q5K => 1e-3,
            _ => 1e-7,
        };
        for backend in available() {
            let linear = backend.linear(raw.clone()).unwrap();
            let error = error(&vec2(&on_host(&linear.rows(&ids).unwrap())), &vec2(&right));
            assert!(error <= bound, "{}: {dtype:?}: {error}", backend.name());
        }
    }
}

#[test]
fn rows_of_mixed_parts_are_found_in_their_part() {
    let (raw, dense) = parts(256, &[(3, Q4K), (18, Q8_0), (2, F16)]);
    let ids = [22, 2, 3, 20, 21, 0];
    let right = dense.index_select(&Tensor::new(&ids, &Device::Cpu).unwrap(), 0).unwrap();
    for backend in available() {
        let linear = backend.linear(raw.clone()).unwrap();
        assert!(error(&vec2(&on_host(&linear.rows(&ids).unwrap())), &vec2(&right)) < 1e-3);
        assert!(linear.rows(&[23]).is_err());
        assert_eq!(linear.rows(&[]).unwrap().dims(), [0, 256]);
    }
}

#[test]
fn a_row_beyond_the_matrix_is_an_error_that_names_it() {
    for backend in available() {
        for dtype in [Q4_1, Q8_0, F32, BF16] {
            let linear = backend.linear(vec![matrix(1, dtype, 20, 64).0]).unwrap();
            assert!(linear.rows(&[19]).is_ok());
            for id in [20, 31, u32::MAX] {
                let error = linear.rows(&[id]).err().unwrap().to_string();
                assert_eq!(error, format!("rows: row {id} of a matrix of 20 rows"));
            }
        }
    }
}

#[test]
fn a_matrix_whose_bytes_and_shape_disagree_is_refused_by_name() {
    let good = matrix(1, Q4_1, 4, 64).0;
    let change = |f: fn(&mut RawMatrix)| {
        let mut raw = good.clone();
        f(&mut raw);
        raw
    };
    let hostile = [
        change(|raw| raw.rows = 5),
        change(|raw| raw.rows = 0),
        change(|raw| raw.cols = 0),
        change(|raw| raw.cols = 63),
        change(|raw| raw.data.truncate(7)),
        change(|raw| raw.dtype = Q4K),
        change(|raw| raw.rows = usize::MAX / 2),
        change(|raw| (raw.rows, raw.cols) = (1 << 60, 32 << 10)),
    ];
    for raw in hostile {
        let shape = format!("({}, {})", raw.rows, raw.cols);
        for backend in available() {
            let error = backend.linear(vec![raw.clone()]).err().unwrap().to_string();
            assert!(error.starts_with("linear: ") && error.contains(&shape), "{error}");
        }
    }
}

#[test]
fn parts_of_different_width_no_parts_and_unknown_formats_are_refused() {
    let error = |parts| Portable.linear(parts).err().unwrap().to_string();
    assert_eq!(error(vec![]), "linear: no matrix given");
    let two = vec![matrix(1, Q4_1, 4, 64).0, matrix(1, Q4_1, 4, 32).0];
    assert_eq!(error(two), "linear: parts of 64 and 32 columns in one matrix");
    assert!(error(vec![matrix(1, GgmlDType::Q8K, 4, 256).0]).contains("Q8K"));
}

#[test]
fn x_of_another_width_is_refused() {
    for backend in available() {
        for dtype in [Q4_1, F16] {
            let linear = backend.linear(vec![matrix(1, dtype, 4, 64).0]).unwrap();
            let error =
                linear.forward(&on(&*backend, &random(1, 2, 32))).err().unwrap().to_string();
            assert_eq!(error, "linear: x [2, 32] by a matrix of 64 columns");
        }
    }
}

#[test]
fn a_row_of_zeros_gives_zeros_and_no_rows_give_none() {
    for backend in available() {
        let linear = backend.linear(vec![matrix(1, Q4_1, 20, 64).0]).unwrap();
        let zeros = Tensor::zeros((2, 64), candle_core::DType::F32, &Device::Cpu).unwrap();
        assert_eq!(product(&*backend, &*linear, &zeros), vec![vec![0.0; 20]; 2]);
        let none = on(&*backend, &zeros).narrow(0, 0, 0).unwrap();
        assert_eq!(linear.forward(&none).unwrap().dims(), [0, 20]);
    }
}

#[test]
fn what_is_not_a_number_in_x_reaches_y() {
    for backend in available() {
        let linear = backend.linear(vec![matrix(1, Q8_0, 20, 64).0]).unwrap();
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut x = vec![1.0; 64];
            x[40] = bad;
            let x = Tensor::from_vec(x, (1, 64), &Device::Cpu).unwrap();
            let y = product(&*backend, &*linear, &x);
            assert!(y[0].iter().all(|y| !y.is_finite()), "{}: {y:?}", backend.name());
        }
    }
}

#[test]
fn resident_bytes_are_5_bits_a_weight_for_q4_1_and_9_for_q8_0() {
    for (dtype, bytes) in [(Q4_1, 32 * 64 * 5 / 8), (Q8_0, 32 * 64 * 9 / 8), (F16, 32 * 64 * 2)] {
        let linear: Box<dyn Linear> = Portable.linear(vec![matrix(1, dtype, 32, 64).0]).unwrap();
        assert_eq!(linear.bytes(), bytes);
    }
}

#[test]
fn products_are_the_same_with_any_number_of_threads() {
    // A device has threads of its own.
    for backend in available().into_iter().filter(|backend| !backend.has_own_memory()) {
        for (num_rows, cols, shape) in CASES {
            let linear = backend.linear(parts(*cols, shape).0).unwrap();
            let x = random(99, *num_rows, *cols);
            let with = |threads| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                pool.install(|| with_team(|| product(&*backend, &*linear, &x)))
            };
            assert!([2, 64].into_iter().all(|threads| with(threads) == with(1)));
        }
    }
}
