//! The measurements of a calibration, in two passes over a text.
//!
//! First every head is looked at: its basis, and the noise of each format in it. Then, one head at a
//! time, keys or values of a prefix are coarsened and the change of the model's predictions is
//! measured (KL divergence of the logits), so that heads stand on one scale.

use std::sync::Arc;

use anyhow::{Result, ensure};
use keepwell_kernels::{Backend, PerTier, Scoring, Signal, TIERS, Tier, codec::Format};
use keepwell_models::Model;
use rayon::prelude::*;

use super::{
    Calibration,
    observe::{key_basis, observe, shifts},
};
use crate::{
    cache::Assignment,
    compress::{HeadPrices, Prices, Protection, refine},
    trial::{Lab, Logits, Recipe, Trial},
};

/// Tokens that are looked at for bases.
const OBSERVED: usize = 2048;
/// Tokens that are coarsened, and those whose predictions are compared.
const PREFIX: usize = 704;
const FORCED: usize = 48;
const NUM_WINDOWS: usize = 2;
/// Tokens of a text that is too short to say anything.
const FEWEST: usize = 512;
const MAX_CHUNK: usize = 512;
/// What is coarsened to measure how much keys or values matter: the other part stays as good as
/// exact.
const COARSE_KEYS: Tier = Tier::K2V8;
const COARSE_VALUES: Tier = Tier::K8V2;
/// Queries that judge the prefix.
const SCORED: usize = 64;
/// Errors of evicted tokens of many layers add up.
const COHERENCE: f32 = 3.0;
/// A head that seems not to matter at all is given this share of the mean: two windows miss things.
const LEAST_SHARE: f32 = 0.02;
/// Logit noise of this variance is as bad as losing the token: a format that brings it is refused.
const MOST_NOISE: f32 = 1.0;

/// Measures a model with `tokens` of a text; calls `progress` with the share done.
///
/// # Errors
/// A text or a context too short, or a failing kernel.
pub fn measure(
    model: &dyn Model,
    backend: &dyn Backend,
    tokens: &[u32],
    progress: &dyn Fn(f32),
) -> Result<Calibration> {
    let config = model.config();
    let tokens = &tokens
        [..tokens.len().min(NUM_WINDOWS * (PREFIX + FORCED)).max(OBSERVED.min(tokens.len()))];
    ensure!(tokens.len() >= FEWEST, "{} tokens of text are too few to calibrate", tokens.len());
    let protection = Protection { prompt_end: 0, ..Protection::default() };
    let lab = Lab::new(model, backend, MAX_CHUNK, protection);
    let observed = tokens.len().min(OBSERVED).min(config.context_len);
    let samples = observe(&lab, &tokens[..observed])?;
    let shifts = shifts(config);
    let bases: Vec<_> = samples.par_iter().map(|sample| sample.basis(&shifts)).collect();
    let basis = Arc::new(key_basis(&bases, config.head_dim)?);
    let noise: Vec<_> = samples
        .par_iter()
        .zip(&bases)
        .map(|(sample, basis)| Noise {
            key: by_format(|tier| tier.info().key, |format| sample.key_noise(basis, format)),
            value: by_format(|tier| tier.info().value, |format| sample.value_noise(format)),
        })
        .collect();
    let refused = refused(&noise);
    let turned = Calibration { basis: Some(basis), ..Calibration::default() };
    let impacts = impacts(&lab.calibrated(&turned), tokens, progress)?;
    let heads = noise.iter().zip(&impacts).map(|(noise, impact)| impact.prices(noise));
    Ok(Calibration { prices: Arc::new(Prices::new(heads.collect())), refused, ..turned })
}

/// What the formats do to one head.
struct Noise {
    key: PerTier<f32>,
    value: PerTier<f32>,
}

/// Which key formats are as bad as losing the token, and in how many heads.
fn refused(noise: &[Noise]) -> Vec<String> {
    // Tiers that share a key format stand together: one of them speaks for it.
    let formats =
        TIERS.iter().map(|info| info.tier).filter(|tier| tier.info().value == Format::Int8);
    let report = formats.filter_map(|tier| {
        let heads = noise.iter().filter(|noise| noise.key[tier] >= MOST_NOISE).count();
        let name = tier.name().split('v').next().unwrap_or_default();
        (heads > 0).then(|| format!("{name} keys in {heads} of {} heads", noise.len()))
    });
    report.collect()
}

/// Each format is measured once, though many tiers share it.
fn by_format(format: fn(Tier) -> Format, noise: impl Fn(Format) -> f32) -> PerTier<f32> {
    let mut known: Vec<(Format, f32)> = Vec::new();
    PerTier::new(|tier| {
        let format = format(tier);
        if format == Format::F16 {
            return 0.0;
        }
        if let Some((_, noise)) = known.iter().find(|(known, _)| *known == format) {
            return *noise;
        }
        let noise = noise(format);
        known.push((format, noise));
        noise
    })
}

/// KL divergence that one head's coarsening brings about.
#[derive(Clone, Copy, Debug, Default)]
struct Impact {
    keys: f32,
    values: f32,
    /// For each unit of importance that is evicted.
    evicted: f32,
}

impl Impact {
    fn prices(&self, noise: &Noise) -> HeadPrices {
        let evicted = COHERENCE * self.evicted;
        let key = PerTier::new(|tier| {
            let price = self.keys * noise.key[tier] / noise.key[COARSE_KEYS].max(f32::MIN_POSITIVE);
            if noise.key[tier] >= MOST_NOISE { price.max(evicted) } else { price }
        });
        let of_coarse = noise.value[COARSE_VALUES].max(f32::MIN_POSITIVE);
        let value = PerTier::new(|tier| self.values * noise.value[tier] / of_coarse);
        HeadPrices { key, value, evicted }
    }
}

/// A prefix in F16 and what the model predicts after it.
struct Window<'a> {
    prefix: Trial<'a>,
    forced: &'a [u32],
    reference: Vec<Vec<f32>>,
    /// By head, the refined importance of the prefix's tokens in page order.
    scores: Vec<Vec<f32>>,
}

impl<'a> Window<'a> {
    fn new(lab: &Lab<'a>, tokens: &'a [u32]) -> Result<Self> {
        let (context, forced) = tokens.split_at(tokens.len() - FORCED);
        let (before, judged) = context.split_at(context.len() - SCORED);
        let mut prefix = lab.start(Recipe::exact(), tokens.len())?;
        prefix.observe(before, None)?;
        let scoring = Scoring { rows: SCORED, signal: Signal::Deletion, decay: 1.0 };
        prefix.observe(judged, Some(scoring))?;
        let reference = log_softmax(&prefix.fork()?.force(forced)?);
        let scores = (0..prefix.num_heads()).map(|head| {
            let states = prefix.states(head)?;
            let (positions, mut scores): (Vec<u32>, Vec<f32>) =
                states.iter().map(|state| (state.position, state.attribution)).unzip();
            let undecided = unprotected(scores.len());
            refine(&positions[undecided.clone()], &mut scores[undecided]);
            Ok(scores)
        });
        let scores = scores.collect::<Result<_>>()?;
        Ok(Self { prefix, forced, reference, scores })
    }

    /// Mean KL divergence to the exact predictions when `assign` decides, by head and token, what
    /// becomes of the prefix's tokens that are not protected.
    fn divergence(&self, assign: impl Fn(usize, usize) -> Assignment) -> Result<f32> {
        let mut trial = self.prefix.fork()?;
        let len = self.prefix.len();
        let of_head = |head: usize| -> Vec<Assignment> {
            let decide = |token: usize| match unprotected(len).contains(&token) {
                true => assign(head, token),
                false => Some(Tier::F16),
            };
            (0..len).map(decide).collect()
        };
        trial.assign(&(0..trial.num_heads()).map(of_head).collect::<Vec<_>>())?;
        let predicted = log_softmax(&trial.force(self.forced)?);
        let rows = self.reference.par_iter().zip(&predicted);
        let total: f64 = rows.map(|(p, q)| kl_divergence(p, q)).sum();
        Ok((total / self.reference.len() as f64).max(0.0) as f32)
    }

    /// The same for tokens whose importance is below the head's median, evicted in the heads named;
    /// and how much importance, in units of a token's mean, that is.
    fn eviction(&self, heads: &std::ops::Range<usize>) -> Result<(f32, f32)> {
        let undecided = unprotected(self.prefix.len());
        let median = |scores: &Vec<f32>| median(&scores[undecided.clone()]);
        let medians: Vec<f32> = self.scores.iter().map(median).collect();
        let evicts = |head: usize, token: usize| {
            heads.contains(&head) && self.scores[head][token] < medians[head]
        };
        let divergence =
            self.divergence(|head, token| (!evicts(head, token)).then_some(Tier::F16))?;
        let lost: f32 = heads
            .clone()
            .flat_map(|head| undecided.clone().map(move |token| (head, token)))
            .filter(|(head, token)| evicts(*head, *token))
            .map(|(head, token)| self.scores[head][token])
            .sum();
        Ok((divergence, lost / undecided.len() as f32))
    }
}

/// Tokens of a context that are up for a decision.
fn unprotected(len: usize) -> std::ops::Range<usize> {
    let Protection { sinks, recent, .. } = Protection::default();
    sinks..len.saturating_sub(recent).max(sinks)
}

/// Measures all heads on windows of the text.
fn impacts(lab: &Lab, tokens: &[u32], progress: &dyn Fn(f32)) -> Result<Vec<Impact>> {
    let config = lab.config();
    let window_len = (PREFIX + FORCED).min(tokens.len()).min(config.context_len);
    let windows: Vec<_> = tokens.chunks_exact(window_len).take(NUM_WINDOWS).collect();
    let num_heads = config.num_layers * config.num_kv_heads;
    let mut impacts = vec![Impact::default(); num_heads];
    let num_trials = (windows.len() * (2 * num_heads + config.num_layers)) as f32;
    let mut done = 0;
    let mut report = || {
        done += 1;
        progress(done as f32 / num_trials);
    };
    for tokens in &windows {
        let window = Window::new(lab, tokens)?;
        let coarsen = |coarse: Tier, only: usize| {
            window.divergence(move |head, _| Some(if head == only { coarse } else { Tier::F16 }))
        };
        for layer in 0..config.num_layers {
            let heads = layer * config.num_kv_heads..(layer + 1) * config.num_kv_heads;
            let (divergence, lost) = window.eviction(&heads)?;
            report();
            for head in heads {
                impacts[head].keys += coarsen(COARSE_KEYS, head)? / windows.len() as f32;
                report();
                impacts[head].values += coarsen(COARSE_VALUES, head)? / windows.len() as f32;
                report();
                let each = divergence / lost.max(f32::MIN_POSITIVE);
                impacts[head].evicted += each / windows.len() as f32;
            }
        }
    }
    raise(&mut impacts, |impact| &mut impact.keys);
    raise(&mut impacts, |impact| &mut impact.values);
    raise(&mut impacts, |impact| &mut impact.evicted);
    let finite = |i: &Impact| [i.keys, i.values, i.evicted].iter().all(|x| x.is_finite());
    ensure!(impacts.iter().all(finite), "the model's predictions are not finite");
    Ok(impacts)
}

/// No head is worth nothing.
fn raise(impacts: &mut [Impact], of: impl Fn(&mut Impact) -> &mut f32) {
    let mean = impacts.iter_mut().map(|i| *of(i)).sum::<f32>() / impacts.len() as f32;
    let least = (LEAST_SHARE * mean).max(1e-9);
    impacts.iter_mut().for_each(|i| *of(i) = of(i).max(least));
}

fn median(scores: &[f32]) -> f32 {
    let mut sorted = scores.to_vec();
    sorted.sort_unstable_by(f32::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(0.0)
}

fn log_softmax(logits: &Logits) -> Vec<Vec<f32>> {
    let rows: Vec<_> = logits.rows().collect();
    let of_row = |row: &&[f32]| -> Vec<f32> {
        let largest = row.iter().fold(f32::NEG_INFINITY, |m, x| m.max(*x));
        let sum: f32 = row.iter().map(|x| (x - largest).exp()).sum();
        let normalizer = largest + sum.ln();
        row.iter().map(|x| x - normalizer).collect()
    };
    rows.par_iter().map(of_row).collect()
}

/// Of log-probabilities `q` from `p`.
fn kl_divergence(p: &[f32], q: &[f32]) -> f64 {
    p.iter().zip(q).map(|(p, q)| f64::from(p.exp() * (p - q))).sum()
}
