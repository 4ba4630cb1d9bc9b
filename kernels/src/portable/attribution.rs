//! How much each cached token matters to the last queries.

use std::ops::Range;

use candle_core::Tensor;
use rayon::prelude::*;

use super::{
    attention::Heads,
    segment::{Segment, attribution, dot, position, set_attribution},
};
use crate::{
    Arena, Attended, AttentionPlan, Histogram, PageRef, Result, Scoring, Signal, Span,
    backend::TokenAttribution, hadamard, tensor::with_slice,
};

/// A single token cannot take all of the softmax away: keeps `p / (1 - p)` finite.
pub(crate) const LARGEST_SHARE: f32 = 0.999;

/// Pages whose attributions are worth waking a thread.
const MIN_PAGES: usize = 256;

/// See [`crate::Backend::attribute`].
pub fn attribute(
    arena: &mut Arena,
    layer: usize,
    q: &Tensor,
    attended: &Attended,
    plan: &AttentionPlan,
) -> Result<()> {
    let heads = Heads::new("attribute", q, arena.layout().head_dim, plan)?;
    let items: Vec<_> = plan
        .spans
        .iter()
        .enumerate()
        .filter_map(|(index, span)| Some((index, span, span.scoring?)))
        .flat_map(|(index, span, s)| (0..plan.num_kv_heads).map(move |g| (index, span, s, g)))
        .collect();
    let signals: Vec<_> = with_slice("attribute", q, |q| {
        with_slice("attribute", &attended.out, |out| {
            with_slice("attribute", &attended.lse, |lse| {
                let queries = Queries { heads: &heads, q, out, lse, plan };
                items
                    .par_iter()
                    .map(|&(index, span, scoring, kv_head)| {
                        let segment = Segment::decode(arena, plan.pages(layer, index, kv_head));
                        queries.signals(span, scoring, kv_head, &segment)
                    })
                    .collect()
            })
        })
    })???;
    for ((index, _, scoring, kv_head), signals) in items.iter().zip(signals) {
        accumulate(arena, plan.pages(layer, *index, *kv_head), scoring.decay, &signals);
    }
    Ok(())
}

/// The step's queries with what attention made of them.
struct Queries<'a> {
    heads: &'a Heads,
    q: &'a [f32],
    out: &'a [f32],
    lse: &'a [f32],
    plan: &'a AttentionPlan,
}

impl Queries<'_> {
    /// The signal of each token of `segment`, summed over the scored queries.
    fn signals(
        &self,
        span: &Span,
        scoring: Scoring,
        kv_head: usize,
        segment: &Segment,
    ) -> Vec<f32> {
        let mut signals = vec![0f32; segment.len()];
        if scoring.signal == Signal::KeyNorm {
            for (token, signal) in signals.iter_mut().enumerate() {
                let norm = dot(segment.key(token), segment.key(token)).sqrt();
                *signal = 1.0 / norm.max(f32::MIN_POSITIVE);
            }
            return signals;
        }
        let rows = span.rows.end.saturating_sub(scoring.rows).max(span.rows.start)..span.rows.end;
        for index in self.heads.queries(&Span { rows, scoring: None }, kv_head) {
            self.add_signals(index, scoring.signal, segment, &mut signals);
        }
        signals
    }

    fn add_signals(&self, index: usize, signal: Signal, segment: &Segment, signals: &mut [f32]) {
        let head_dim = segment.head_dim;
        let query = &self.q[index * head_dim..(index + 1) * head_dim];
        let mut out = self.out[index * head_dim..(index + 1) * head_dim].to_vec();
        hadamard::rotate(&mut out); // values are cached rotated
        let scale = 1.0 / (head_dim as f32).sqrt();
        let visible = self.plan.visible(self.plan.positions[index / self.heads.num_heads]);
        for (token, total) in signals.iter_mut().enumerate() {
            if !visible.contains(&segment.positions[token]) {
                continue;
            }
            let p = (dot(query, segment.key(token)) * scale - self.lse[index]).exp();
            *total += match signal {
                Signal::Deletion => deletion(p, segment.value(token), &out),
                Signal::AttentionMass | Signal::KeyNorm => p,
            };
        }
    }
}

/// `(p/(1-p))^2 |v - o|^2`.
fn deletion(p: f32, value: &[f32], out: &[f32]) -> f32 {
    let p = p.min(LARGEST_SHARE);
    let odds = p / (1.0 - p);
    odds * odds * value.iter().zip(out).map(|(v, o)| (v - o) * (v - o)).sum::<f32>()
}

/// `a = decay * a + signal` for the tokens of `pages`, in order.
fn accumulate(arena: &mut Arena, pages: &[PageRef], decay: f32, signals: &[f32]) {
    let layout = *arena.layout();
    let mut signals = signals.iter();
    for page in pages {
        let bytes = arena.page_mut(page.page);
        for (index, signal) in (0..usize::from(page.len)).zip(&mut signals) {
            let old = attribution(&layout, bytes, page.tier, index);
            set_attribution(&layout, bytes, page.tier, index, decay * old + signal);
        }
    }
}

/// See [`crate::Backend::attributions`].
pub fn attributions(arena: &Arena, pages: &[PageRef]) -> Vec<TokenAttribution> {
    let layout = arena.layout();
    let num_tokens = |pages: &[PageRef]| pages.iter().map(|page| usize::from(page.len)).sum();
    let unread = TokenAttribution { position: 0, attribution: 0.0 };
    let mut tokens = vec![unread; num_tokens(pages)];
    let mut rest = &mut tokens[..];
    let parts = pages.chunks(MIN_PAGES).map(|pages| {
        let (here, after) = std::mem::take(&mut rest).split_at_mut(num_tokens(pages));
        rest = after;
        (pages, here)
    });
    let parts: Vec<_> = parts.collect();
    parts.into_par_iter().for_each(|(pages, tokens)| {
        let slots =
            pages.iter().flat_map(|page| (0..usize::from(page.len)).map(move |i| (page, i)));
        for (token, (page, index)) in tokens.iter_mut().zip(slots) {
            let bytes = arena.page(page.page);
            token.position = position(layout, bytes, page, index);
            token.attribution = attribution(layout, bytes, page.tier, index);
        }
    });
    tokens
}

/// See [`crate::Backend::histograms`].
pub fn histograms(arena: &Arena, groups: &[&[PageRef]], ranges: &[Range<u32>]) -> Vec<Histogram> {
    let layout = arena.layout();
    let count = |pages: &&[PageRef]| {
        let mut histogram = Histogram::default();
        for page in *pages {
            let bytes = arena.page(page.page);
            for index in 0..usize::from(page.len) {
                let position = position(layout, bytes, page, index);
                if ranges.iter().any(|range| range.contains(&position)) {
                    histogram.add(attribution(layout, bytes, page.tier, index));
                }
            }
        }
        histogram
    };
    groups.par_iter().map(count).collect()
}
