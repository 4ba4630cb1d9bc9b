//! The key basis of one head, from what its queries ask and its keys hold.
//!
//! An error e in a key changes the score of query q by q e: what matters is its size measured with
//! the second moments of queries, Q. In the coordinates R k with R = Q^(1/2) all directions matter
//! alike; there the principal axes of the keys (Karhunen-Loève) sort the channels, and each eighth of
//! them is scaled to unit variance. Inside an eighth a Hadamard transform makes channels alike.

use nalgebra::{DMatrix, DVector, SymmetricEigen};

/// Channels that share a number of bits stand in runs of at least this many.
const LANE: usize = keepwell_kernels::codec::LANE;
/// Of the mean eigenvalue: directions that no query asked for may be asked for later.
const FLOOR: f32 = 1e-4;

/// Queries and keys of one head with how much each of them matters.
pub struct Sample<'a> {
    /// Second moments of queries (D, D), weighted.
    pub queries: &'a DMatrix<f32>,
    /// (N, D)
    pub keys: &'a DMatrix<f32>,
    /// (N)
    pub weights: &'a [f32],
    /// RoPE turns what a key is about as it moves along the context: each of these (D, D) takes
    /// queries and keys some way further, so that the basis serves all positions.
    pub shifts: &'a [DMatrix<f32>],
}

/// k' = F (k - mean), q' = F^-T q.
pub struct Basis {
    pub mean: DVector<f32>,
    pub keys: DMatrix<f32>,
    pub queries: DMatrix<f32>,
}

impl Basis {
    pub fn new(sample: &Sample) -> Self {
        let dim = sample.keys.ncols();
        let here = sample.keys.row_mean().transpose();
        let mean = average(sample.shifts, |shift| shift * &here);
        let around = covariance(sample, &here);
        let covariance = average(sample.shifts, |shift| {
            let apart = shift * &here - &mean;
            shift * &around * shift.transpose() + &apart * apart.transpose()
        });
        let queries = average(sample.shifts, |shift| shift * sample.queries * shift.transpose());
        let (root, inverse_root) = roots(&queries);
        let SymmetricEigen { eigenvalues, eigenvectors } =
            SymmetricEigen::new(&root * covariance * &root);
        let mut order: Vec<usize> = (0..dim).collect();
        order.sort_by(|a, b| eigenvalues[*b].total_cmp(&eigenvalues[*a]));
        let axes = DMatrix::from_fn(dim, dim, |row, col| eigenvectors[(col, order[row])]);
        let spread = hadamard(dim) * axes;
        let deviations =
            lane_deviations(&order.iter().map(|i| eigenvalues[*i]).collect::<Vec<_>>());
        let scale = |matrix: DMatrix<f32>, of: fn(f32) -> f32| {
            DMatrix::from_fn(dim, dim, |row, col| matrix[(row, col)] * of(deviations[row]))
        };
        Self {
            keys: scale(&spread * root, f32::recip),
            queries: scale(spread * inverse_root, |deviation| deviation),
            mean,
        }
    }
}

fn average<M>(shifts: &[DMatrix<f32>], of: impl Fn(&DMatrix<f32>) -> M) -> M
where
    M: std::ops::AddAssign + std::ops::Mul<f32, Output = M>,
{
    let share = 1.0 / shifts.len() as f32;
    let mut sum = of(&shifts[0]) * share;
    shifts[1..].iter().for_each(|shift| sum += of(shift) * share);
    sum
}

fn covariance(sample: &Sample, mean: &DVector<f32>) -> DMatrix<f32> {
    let mut weighted = sample.keys.clone();
    let total: f32 = sample.weights.iter().sum::<f32>().max(f32::MIN_POSITIVE);
    for (mut row, weight) in weighted.row_iter_mut().zip(sample.weights) {
        let root = (weight / total).sqrt();
        row.iter_mut().zip(mean.iter()).for_each(|(k, mean)| *k = (*k - mean) * root);
    }
    weighted.transpose() * weighted
}

/// The square root of a positive matrix and its inverse, small eigenvalues raised.
fn roots(matrix: &DMatrix<f32>) -> (DMatrix<f32>, DMatrix<f32>) {
    let floor = (FLOOR * matrix.trace() / matrix.nrows() as f32).max(1e-12);
    let SymmetricEigen { eigenvalues, eigenvectors: axes } = SymmetricEigen::new(matrix.clone());
    let root = |power: f32| {
        let scaled = DMatrix::from_fn(axes.nrows(), axes.ncols(), |row, col| {
            axes[(row, col)] * (eigenvalues[col].max(0.0) + floor).powf(power)
        });
        scaled * axes.transpose()
    };
    (root(0.5), root(-0.5))
}

/// Root mean variance of each lane, for each of its channels.
fn lane_deviations(variances: &[f32]) -> Vec<f32> {
    let least = variances.iter().fold(0f32, |m, v| m.max(*v)) * 1e-6;
    variances
        .chunks(LANE)
        .flat_map(|lane| {
            let mean = lane.iter().sum::<f32>() / lane.len() as f32;
            std::iter::repeat_n(mean.max(least).max(1e-12).sqrt(), lane.len())
        })
        .collect()
}

/// The Walsh-Hadamard transform of each lane.
fn hadamard(dim: usize) -> DMatrix<f32> {
    let scale = 1.0 / (LANE as f32).sqrt();
    DMatrix::from_fn(dim, dim, |row, col| {
        let sign =
            if ((row % LANE) & (col % LANE)).count_ones().is_multiple_of(2) { 1.0 } else { -1.0 };
        if row / LANE == col / LANE { sign * scale } else { 0.0 }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{Rng, SeedableRng, rngs::StdRng};

    const DIM: usize = 16;

    /// Keys that vary by 10 along one axis, off the origin, and by about 1 along the others.
    fn keys(rng: &mut StdRng) -> DMatrix<f32> {
        DMatrix::from_fn(500, DIM, |_, col| {
            let wide = if col == 5 { 10.0 } else { 1.0 };
            7.0 + wide * rng.random_range(-1.7f32..1.7)
        })
    }

    fn basis() -> (Basis, DMatrix<f32>) {
        let mut rng = StdRng::seed_from_u64(1);
        let keys = keys(&mut rng);
        let mut queries = DMatrix::identity(DIM, DIM);
        queries[(9, 9)] = 0.0;
        let weights = vec![1.0; keys.nrows()];
        let shifts = &[DMatrix::identity(DIM, DIM)];
        let sample = Sample { queries: &queries, keys: &keys, weights: &weights, shifts };
        (Basis::new(&sample), keys)
    }

    #[test]
    fn the_two_changes_of_basis_cancel_in_every_score() {
        let (basis, _) = basis();
        let product = basis.queries.transpose() * &basis.keys;
        assert!((product - DMatrix::identity(DIM, DIM)).abs().max() < 1e-3);
    }

    #[test]
    fn lanes_have_unit_variance_and_what_no_query_asks_for_comes_last() {
        let (basis, keys) = basis();
        let mut turned = DMatrix::zeros(keys.nrows(), DIM);
        for (row, mut out) in keys.row_iter().zip(turned.row_iter_mut()) {
            out.copy_from(&(&basis.keys * (row.transpose() - &basis.mean)).transpose());
        }
        for lane in 0..DIM / LANE {
            let power = turned.columns(lane * LANE, LANE).norm_squared();
            let variance = power / (keys.nrows() * LANE) as f32;
            assert!((variance - 1.0).abs() < 0.02, "lane {lane}: {variance}");
        }
        // A unit of error in a channel of the first lane counts for more than in the last.
        let mut asked = DMatrix::identity(DIM, DIM);
        asked[(9, 9)] = 0.0;
        let asked = &basis.queries * asked;
        let weight = |lane: usize| asked.rows(lane * LANE, LANE).norm();
        assert!(weight(0) > 2.0 * weight(1));
    }
}
