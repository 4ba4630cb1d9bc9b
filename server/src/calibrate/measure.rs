//! The measurements of a calibration, in two passes over a text.
//!
//! First every head is looked at: its basis, and the noise of each format in it. Then, one head at a
//! time, keys or values of a prefix are coarsened or evicted and the change of the model's predictions
//! is measured (KL divergence of the logits), so that heads stand on one scale: of what comes next, and
//! of what comes again.

use std::{
    ops::Range,
    panic::resume_unwind,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread::ScopedJoinHandle,
};

use anyhow::{Result, ensure};
use keepwell_kernels::{Backend, PerTier, TIERS, Tier, codec::Format};
use keepwell_models::Model;
use rayon::prelude::*;

use super::{
    Calibration,
    observe::{key_basis, observe, shifts},
    window::{self, Divergence, Window},
};
use crate::{
    compress::{HeadPrices, Prices, Protection, REFUSED},
    trial::Lab,
};

/// Tokens that are looked at for bases.
const OBSERVED: usize = 2048;
const NUM_WINDOWS: usize = 2;
/// Tokens of a text that is too short to say anything.
const FEWEST: usize = 512;
const MAX_CHUNK: usize = 512;
/// What is coarsened to measure how much keys or values matter: the other part stays as good as
/// exact.
const COARSE_KEYS: Tier = Tier::K2V8;
const COARSE_VALUES: Tier = Tier::K8V2;
/// Errors of evicted tokens of many layers add up.
const COHERENCE: f32 = 3.0;
/// How much a token that repeats what was read counts against one of running text.
const RECALL: f32 = 0.1;
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
    let tokens =
        &tokens[..tokens.len().min(NUM_WINDOWS * window::LEN).max(OBSERVED.min(tokens.len()))];
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

/// What one head's coarsening does to predictions, summed over windows.
#[derive(Clone, Copy, Debug, Default)]
struct Impact {
    keys: Divergence,
    values: Divergence,
    /// For each unit of what is evicted.
    evicted: Divergence,
}

impl Impact {
    fn prices(&self, noise: &Noise) -> HeadPrices {
        let evicted = COHERENCE * price(self.evicted);
        let (keys, values) = (price(self.keys), price(self.values));
        let of_coarse = noise.key[COARSE_KEYS].max(f32::MIN_POSITIVE);
        let key = PerTier::new(|tier| match noise.key[tier] {
            broken if broken >= MOST_NOISE => REFUSED,
            noise => keys * noise / of_coarse,
        });
        let of_coarse = noise.value[COARSE_VALUES].max(f32::MIN_POSITIVE);
        let value = PerTier::new(|tier| values * noise.value[tier] / of_coarse);
        let recalled = RECALL * (self.keys.recalled + self.values.recalled);
        HeadPrices { key, value, evicted, unforeseen: recalled / (keys + values) }
    }
}

fn price(divergence: Divergence) -> f32 {
    divergence.continued + RECALL * divergence.recalled
}

/// Measures all heads on windows of the text.
fn impacts(lab: &Lab, tokens: &[u32], progress: &dyn Fn(f32)) -> Result<Vec<Impact>> {
    let config = lab.config();
    let longest = config.context_len.saturating_sub(window::NUM_RECALLED);
    let window_len = window::LEN.min(tokens.len()).min(longest);
    ensure!(window_len >= window::SHORTEST, "a context of {} is too short", config.context_len);
    let windows: Vec<_> = tokens.chunks_exact(window_len).take(NUM_WINDOWS).collect();
    let num_heads = config.num_layers * config.num_kv_heads;
    let mut impacts = vec![Impact::default(); num_heads];
    let num_steps = (windows.len() * config.num_layers) as f32;
    let mut done = 0;
    for tokens in &windows {
        let window = Window::new(lab, tokens)?;
        for layer in 0..config.num_layers {
            let heads = layer * config.num_kv_heads..(layer + 1) * config.num_kv_heads;
            // Values of a layer's heads matter alike, nearly: one look saves two.
            let looks: Vec<Look> = std::iter::once(Look::Values(heads.clone()))
                .chain(heads.clone().flat_map(|head| [Look::Keys(head), Look::Evicted(head)]))
                .collect();
            let seen = side_by_side(&looks, lab.runs_side_by_side(), |look| look.at(&window))?;
            for (look, divergence) in looks.iter().zip(seen) {
                look.note(divergence, &mut impacts);
            }
            done += 1;
            progress(done as f32 / num_steps);
        }
    }
    raise(&mut impacts, |impact| &mut impact.keys);
    raise(&mut impacts, |impact| &mut impact.values);
    raise(&mut impacts, |impact| &mut impact.evicted);
    let finite = |i: &Impact| [i.keys, i.values, i.evicted].iter().all(|x| x.is_finite());
    ensure!(impacts.iter().all(finite), "the model's predictions are not finite");
    Ok(impacts)
}

/// One trial: what is coarsened, of which heads of a layer.
enum Look {
    Values(Range<usize>),
    Keys(usize),
    Evicted(usize),
}

impl Look {
    fn at(&self, window: &Window) -> Result<Divergence> {
        match self {
            Look::Values(heads) => window.coarsening(heads, COARSE_VALUES),
            Look::Keys(head) => window.coarsening(&(*head..head + 1), COARSE_KEYS),
            Look::Evicted(head) => window.eviction(*head),
        }
    }

    fn note(&self, divergence: Divergence, impacts: &mut [Impact]) {
        match self {
            Look::Values(heads) => impacts[heads.clone()]
                .iter_mut()
                .for_each(|impact| impact.values += divergence / heads.len() as f32),
            Look::Keys(head) => impacts[*head].keys += divergence,
            Look::Evicted(head) => impacts[*head].evicted += divergence,
        }
    }
}

/// Results in the order of the tasks, so many of which run at once: while one copies and books on a
/// single core, another computes on the others. On threads of their own, for a task waits for those
/// of the pool.
fn side_by_side<A: Sync, B: Send>(
    tasks: &[A],
    at_once: usize,
    run: impl Fn(&A) -> Result<B> + Sync,
) -> Result<Vec<B>> {
    let next = AtomicUsize::new(0);
    let work = || -> Result<Vec<(usize, B)>> {
        let indices = std::iter::from_fn(|| Some(next.fetch_add(1, Ordering::Relaxed)));
        let tasks = indices.map_while(|index| Some((index, tasks.get(index)?)));
        tasks.map(|(index, task)| Ok((index, run(task)?))).collect()
    };
    let done = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..at_once).map(|_| scope.spawn(work)).collect();
        let join = |worker: ScopedJoinHandle<_>| worker.join().unwrap_or_else(|e| resume_unwind(e));
        workers.into_iter().map(join).collect::<Result<Vec<_>>>()
    });
    let mut done: Vec<_> = done?.into_iter().flatten().collect();
    done.sort_by_key(|(index, _)| *index);
    Ok(done.into_iter().map(|(_, result)| result).collect())
}

/// No head is worth nothing.
fn raise(impacts: &mut [Impact], of: impl Fn(&mut Impact) -> &mut Divergence) {
    let mut mean = Divergence::default();
    let num_heads = impacts.len() as f32;
    impacts.iter_mut().for_each(|impact| mean += *of(impact) / num_heads);
    let least = |mean: f32| (LEAST_SHARE * mean).max(1e-9);
    for impact in impacts {
        let Divergence { continued, recalled } = of(impact);
        *continued = continued.max(least(mean.continued));
        *recalled = recalled.max(least(mean.recalled));
    }
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    use super::*;

    /// Of a head that two bits of key break, and of one that they do not.
    fn noise(of_two_bits: f32) -> Noise {
        let two_bits = Tier::K2V8.info().key;
        let key = |tier: Tier| if tier.info().key == two_bits { of_two_bits } else { 0.01 };
        Noise { key: PerTier::new(key), value: PerTier::new(|_| 0.01) }
    }

    fn impact(keys: f32, evicted: f32) -> Impact {
        let of = |continued: f32| Divergence { continued, ..Divergence::default() };
        Impact { keys: of(keys), values: of(0.001), evicted: of(evicted) }
    }

    #[test]
    fn keys_as_noisy_as_logits_are_refused_by_name_however_little_they_seem_to_do() {
        let noises = [noise(MOST_NOISE), noise(0.9)];
        assert_eq!(refused(&noises), ["k2 keys in 1 of 2 heads"]);
        let prices = noises.map(|noise| impact(0.001, 0.1).prices(&noise));
        let refuses = |head: &HeadPrices, tier| Prices::new(vec![head.clone()]).refuses(tier);
        assert!(refuses(&prices[0], Tier::K2V8) && refuses(&prices[0], Tier::K2V2));
        assert!(!refuses(&prices[0], Tier::K3V3) && !refuses(&prices[1], Tier::K2V8));
    }

    #[test]
    fn results_come_in_the_order_of_the_tasks_and_an_error_takes_their_place() {
        let tasks: Vec<usize> = (0..50).collect();
        let squares = side_by_side(&tasks, 3, |n| Ok(n * n)).unwrap();
        assert!(squares.into_iter().eq(tasks.iter().map(|n| n * n)));
        let failing = |n: &usize| if *n == 20 { Err(anyhow!("the twentieth")) } else { Ok(()) };
        let error = side_by_side(&tasks, 3, failing).unwrap_err();
        assert_eq!(error.to_string(), "the twentieth");
    }

    #[test]
    fn a_head_of_which_nothing_is_missed_still_has_a_price() {
        let mut impacts = [impact(0.0, 0.0), impact(1.0, 1.0)];
        raise(&mut impacts, |impact| &mut impact.keys);
        assert_eq!(impacts.map(|impact| impact.keys.continued), [LEAST_SHARE * 0.5, 1.0]);
    }
}
