//! How far predictions are from others: Kullback-Leibler divergences over a vocabulary.

use keepwell_server::trial::Logits;
use rayon::prelude::*;

/// Predictions that others are compared with, one for each position.
pub struct Reference {
    log_probabilities: Vec<Vec<f32>>,
    /// The same without the logarithm: every comparison weighs by them.
    probabilities: Vec<Vec<f32>>,
}

/// What a comparison found, position by position.
pub struct Divergence {
    /// `sum p (log p - log q)`, in nats.
    pub kls: Vec<f64>,
    /// Share of positions whose likeliest token is the same.
    pub top1: f64,
    /// Mean change of the negative log-likelihood of the tokens that follow.
    pub nll_delta: f64,
}

impl Reference {
    pub fn new(logits: &Logits) -> Self {
        let log_probabilities = log_probabilities(logits);
        let exp = |row: &Vec<f32>| row.iter().map(|v| v.exp()).collect();
        let probabilities = log_probabilities.par_iter().map(exp).collect();
        Self { log_probabilities, probabilities }
    }

    /// `next`: the token after each position.
    pub fn compare(&self, logits: &Logits, next: &[u32]) -> Divergence {
        let rows = log_probabilities(logits);
        let pairs = || self.log_probabilities.par_iter().zip(&rows);
        let weighted = pairs().zip(&self.probabilities);
        let kls: Vec<f64> = weighted.map(|((p, q), weights)| divergence(weights, p, q)).collect();
        let num_equal = pairs().filter(|(p, q)| argmax(p) == argmax(q)).count();
        let delta = |((p, q), token): ((&Vec<f32>, &Vec<f32>), &u32)| {
            f64::from(p[*token as usize]) - f64::from(q[*token as usize])
        };
        let deltas = self.log_probabilities.iter().zip(&rows).zip(next).map(delta);
        let num_rows = rows.len() as f64;
        let nll_delta = deltas.sum::<f64>() / num_rows;
        Divergence { kls, top1: num_equal as f64 / num_rows, nll_delta }
    }
}

fn log_probabilities(logits: &Logits) -> Vec<Vec<f32>> {
    let normalized = |row: usize| {
        let row = logits.row(row);
        let largest = row.iter().fold(f32::NEG_INFINITY, |m, v| m.max(*v));
        let sum: f64 = row.iter().map(|v| f64::from((v - largest).exp())).sum();
        let lse = largest + sum.ln() as f32;
        row.iter().map(|v| v - lse).collect()
    };
    (0..logits.num_rows()).into_par_iter().map(normalized).collect()
}

/// `sum p (log p - log q)`, of p and the logarithms of both; never below 0 but for rounding.
fn divergence(p: &[f32], log_p: &[f32], log_q: &[f32]) -> f64 {
    let change = |(p, q): (&f32, &f32)| f64::from(*p) - f64::from(*q);
    let changes = log_p.iter().zip(log_q).map(change);
    p.iter().zip(changes).map(|(p, change)| f64::from(*p) * change).sum::<f64>().max(0.0)
}

fn argmax(row: &[f32]) -> usize {
    row.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).map_or(0, |(id, _)| id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn divergence_is_that_of_the_textbook() {
        let ln = |p: [f32; 2]| p.map(f32::ln);
        let divergence = |p: [f32; 2], q: [f32; 2]| divergence(&p, &ln(p), &ln(q));
        let expected = 0.5 * (0.5f64 / 0.25).ln() + 0.5 * (0.5f64 / 0.75).ln();
        assert!((divergence([0.5, 0.5], [0.25, 0.75]) - expected).abs() < 1e-6);
        assert_eq!(divergence([0.2, 0.8], [0.2, 0.8]), 0.0);
    }
}
