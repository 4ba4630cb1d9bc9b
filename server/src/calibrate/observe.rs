//! What a head's queries ask of its keys, on the calibration text.

use std::{cell::RefCell, ops::Range};

use anyhow::{Context, Result};
use keepwell_kernels::{KeyBasis, Rope, codec::Format, hadamard};
use keepwell_models::{ModelConfig, Probed};
use nalgebra::{DMatrix, DVector};
use rayon::prelude::*;

use super::basis::{Basis, Sample};
use crate::trial::{Lab, Recipe};

/// Every so many tokens a query is looked at.
const STRIDE: usize = 8;
/// Queries before have seen too little.
const FIRST_QUERY: usize = 128;
/// Keys that are kept exact anyway say nothing: the first of a text, and the latest.
const SINKS: usize = 4;
const RECENT: usize = 64;
/// No token or query counts for more than this many.
const LARGEST_WEIGHT: f32 = 100.0;
/// Places of the context that a basis is to serve.
const NUM_SHIFTS: usize = 24;
/// Share of the weights that all get alike.
const EVEN: f32 = 0.5;

/// One head's keys and values, rotated, and what matters of them.
pub struct HeadSample {
    /// (N, D)
    pub keys: DMatrix<f32>,
    /// (N, D)
    pub values: DMatrix<f32>,
    /// Second moments of queries (D, D), weighted.
    pub queries: DMatrix<f32>,
    /// (N), mean 1: how much each key matters to the queries.
    pub weights: Vec<f32>,
}

/// Runs the model over `tokens` and looks at every head.
///
/// # Errors
/// A failing kernel, or a system without memory for the cache.
pub fn observe(lab: &Lab, tokens: &[u32]) -> Result<Vec<HeadSample>> {
    let config = lab.config();
    let mut trial = lab.start(Recipe::exact(), tokens.len())?;
    // By layer, (tokens, H * D)
    let queries = RefCell::new(vec![Vec::<f32>::new(); config.num_layers]);
    trial.probe(tokens, &|layer, probed| {
        if let Probed::Queries(q) = probed {
            queries.borrow_mut()[layer].extend(q.flatten_all()?.to_vec1::<f32>()?);
        }
        Ok(())
    })?;
    let queries = queries.into_inner();
    let (dim, group) = (config.head_dim, config.num_heads / config.num_kv_heads);
    let segments: Vec<_> = (0..trial.num_heads()).map(|head| trial.segment(head)).collect();
    let samples = segments.par_iter().enumerate().map(|(head, segment)| {
        let (layer, kv_head) = (head / config.num_kv_heads, head % config.num_kv_heads);
        let width = config.num_heads * dim;
        let of_group = kv_head * group * dim..(kv_head + 1) * group * dim;
        let rows = (FIRST_QUERY..tokens.len()).step_by(STRIDE);
        let rows: Vec<_> = rows.map(|row| (row, &queries[layer][row * width..][..width])).collect();
        let matrix = |x: &[f32]| DMatrix::from_row_slice(segment.len(), dim, x);
        HeadSample::new(matrix(&segment.keys), matrix(&segment.values), &rows, of_group)
    });
    Ok(samples.collect())
}

impl HeadSample {
    /// `rows`: (position, its queries of all heads), `of_group` those that share this KV head.
    fn new(
        keys: DMatrix<f32>,
        values: DMatrix<f32>,
        rows: &[(usize, &[f32])],
        of_group: Range<usize>,
    ) -> Self {
        let dim = keys.ncols();
        let mut weights = vec![0f32; keys.nrows()];
        let mut queries = Vec::new();
        for start in of_group.step_by(dim) {
            let of_head: Vec<_> = rows.iter().map(|(_, q)| &q[start..start + dim]).collect();
            let q = DMatrix::from_fn(rows.len(), dim, |row, col| of_head[row][col]);
            let positions: Vec<usize> = rows.iter().map(|(position, _)| *position).collect();
            let seen = deletions(&q, &keys, &values, &positions);
            weights.iter_mut().zip(seen.column_sum().iter()).for_each(|(sum, seen)| *sum += seen);
            queries.push((q, seen.row_sum().iter().copied().collect::<Vec<f32>>()));
        }
        even_out(&mut weights);
        Self { queries: second_moments(queries, dim), keys, values, weights }
    }

    /// The basis, on top of the rotation that keys have here.
    pub fn basis(&self, shifts: &[DMatrix<f32>]) -> Basis {
        let (queries, keys, weights) = (&self.queries, &self.keys, &self.weights[..]);
        Basis::new(&Sample { queries, keys, weights, shifts })
    }

    /// Variance of the logits that `format` brings about when keys are coded in it, in the basis.
    pub fn key_noise(&self, basis: &Basis, format: Format) -> f32 {
        let dim = self.keys.ncols();
        let error = |row: usize| {
            let key = &basis.keys * (self.keys.row(row).transpose() - &basis.mean);
            // Back to where the queries are.
            let error = basis.queries.transpose() * coding_error(format, key.as_slice());
            (&self.queries * &error).dot(&error) / dim as f32
        };
        self.weighted_mean(error)
    }

    /// Error of values in `format`, relative to their power.
    pub fn value_noise(&self, format: Format) -> f32 {
        let value = |row: usize| self.values.row(row).transpose();
        let error =
            self.weighted_mean(|row| coding_error(format, value(row).as_slice()).norm_squared());
        error / self.weighted_mean(|row| value(row).norm_squared()).max(f32::MIN_POSITIVE)
    }

    /// Over every [`STRIDE`]th token but the first.
    fn weighted_mean(&self, of: impl Fn(usize) -> f32) -> f32 {
        let rows = (SINKS..self.keys.nrows()).step_by(STRIDE);
        let total: f32 = rows.clone().map(|row| self.weights[row]).sum();
        rows.map(|row| self.weights[row] * of(row)).sum::<f32>() / total.max(f32::MIN_POSITIVE)
    }
}

/// (keys, queries): `p^2 |v - o|^2`, what the output of each query owes to each key that is not
/// kept exact anyway. A query's numbers stand together.
fn deletions(
    q: &DMatrix<f32>,
    keys: &DMatrix<f32>,
    values: &DMatrix<f32>,
    positions: &[usize],
) -> DMatrix<f32> {
    let scale = 1.0 / (keys.ncols() as f32).sqrt();
    let mut p = (keys * q.transpose()) * scale;
    for (mut of_query, position) in p.column_iter_mut().zip(positions) {
        let visible = position + 1;
        let largest = of_query.rows(0, visible).max();
        of_query.iter_mut().enumerate().for_each(|(key, s)| {
            *s = if key < visible { (*s - largest).exp() } else { 0.0 };
        });
        of_query /= of_query.sum();
    }
    let out = values.transpose() * &p;
    let products = values * &out;
    let norms: Vec<f32> = values.row_iter().map(|value| value.norm_squared()).collect();
    let outs: Vec<f32> = out.column_iter().map(|out| out.norm_squared()).collect();
    DMatrix::from_fn(p.nrows(), p.ncols(), |key, query| {
        if key < SINKS || key + RECENT > positions[query] {
            return 0.0;
        }
        let distance = norms[key] - 2.0 * products[(key, query)] + outs[query];
        p[(key, query)].powi(2) * distance
    })
}

fn second_moments(queries: Vec<(DMatrix<f32>, Vec<f32>)>, dim: usize) -> DMatrix<f32> {
    let mut weights: Vec<f32> = queries.iter().flat_map(|(_, w)| w.iter().copied()).collect();
    even_out(&mut weights);
    let mut weights = weights.chunks(queries.first().map_or(1, |(q, _)| q.nrows()));
    let mut moments = DMatrix::zeros(dim, dim);
    for (q, _) in &queries {
        let mut weighted = q.clone();
        for (mut row, weight) in weighted.row_iter_mut().zip(weights.next().unwrap_or_default()) {
            row *= *weight;
        }
        moments += q.transpose() * weighted / (q.nrows() * queries.len()) as f32;
    }
    // Symmetric but for rounding.
    (&moments + moments.transpose()) * 0.5
}

/// Mean 1, no weight beyond reason, half of it the same for all: the text is only a sample.
fn even_out(weights: &mut [f32]) {
    let mean = |weights: &[f32]| weights.iter().sum::<f32>() / weights.len().max(1) as f32;
    for limit in [LARGEST_WEIGHT, f32::MAX] {
        let mean = mean(weights);
        if mean <= 0.0 || !mean.is_finite() {
            return weights.fill(1.0);
        }
        weights.iter_mut().for_each(|w| *w = (*w / mean).min(limit));
    }
    weights.iter_mut().for_each(|w| *w = EVEN + (1.0 - EVEN) * *w);
}

/// What RoPE adds when a text starts later, at [`NUM_SHIFTS`] places of the context.
pub fn shifts(config: &ModelConfig) -> Vec<DMatrix<f32>> {
    let dim = config.head_dim;
    let rope = Rope { attention_factor: 1.0, ..config.rope.clone() };
    let starts: Vec<u32> =
        (0..NUM_SHIFTS).map(|i| (i * config.context_len / NUM_SHIFTS) as u32).collect();
    let table = rope.table(&starts);
    let shift = |row: usize| {
        let columns = (0..dim).map(|channel| {
            let mut x = vec![0f32; dim];
            x[channel] = 1.0;
            hadamard::rotate_back(&mut x);
            table.apply(row, &mut x);
            hadamard::rotate(&mut x);
            DVector::from_vec(x)
        });
        DMatrix::from_columns(&columns.collect::<Vec<_>>())
    };
    (0..NUM_SHIFTS).map(shift).collect()
}

fn coding_error(format: Format, x: &[f32]) -> DVector<f32> {
    let (mut codes, mut decoded) = (vec![0; format.vector_bytes(x.len())], vec![0f32; x.len()]);
    let scale = format.encode(x, &mut codes);
    format.decode(&codes, scale, &mut decoded);
    DVector::from_iterator(x.len(), decoded.iter().zip(x).map(|(a, b)| a - b))
}

/// All heads' bases as kernels want them: after RoPE, not after the rotation.
///
/// # Errors
/// A basis is not finite: the model's keys or queries are not.
pub fn key_basis(bases: &[Basis], dim: usize) -> Result<KeyBasis> {
    let (mut means, mut keys, mut queries) = (Vec::new(), Vec::new(), Vec::new());
    for basis in bases {
        let mut mean: Vec<f32> = basis.mean.iter().copied().collect();
        hadamard::rotate_back(&mut mean);
        means.extend(mean);
        for (columns, matrix) in [(&mut keys, &basis.keys), (&mut queries, &basis.queries)] {
            for channel in 0..dim {
                let mut unit = vec![0f32; dim];
                unit[channel] = 1.0;
                hadamard::rotate(&mut unit);
                columns.extend((matrix * DVector::from_vec(unit)).iter());
            }
        }
    }
    KeyBasis::new(dim, means, keys, queries).context("the model's keys have no basis")
}
