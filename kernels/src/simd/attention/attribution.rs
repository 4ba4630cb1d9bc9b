//! How much each cached token matters to the last queries, as [`crate::portable::attribution`]
//! specifies it: tiles and products as in attention, the weights from its log-sum-exps.

use std::{f32::consts::LOG2_E, ops::Range};

use candle_core::Tensor;
use half::bf16;

use super::{
    Scratch,
    coded::Coded,
    direct::Direct,
    num_tokens,
    pieces::{Pages, TOKENS},
    signals::{Queries, inverse_norms},
    tile::{Tile, transpose},
    with_scratch,
};
use crate::{
    Arena, Attended, AttentionPlan, PageRef, Result, Scoring, Signal,
    portable::{attention::Heads, segment::to_bf16},
    simd::{Op, Simd, rotate},
    team::each_chunk,
    tensor::with_slice,
};

/// Tokens worth an item of their own.
const MIN_TOKENS: usize = 512;
const ITEMS_PER_THREAD: usize = 4;

/// One part of the pages of a KV head, and the queries that judge its tokens.
struct Item<'a> {
    rows: Range<usize>,
    scoring: Scoring,
    kv_head: usize,
    pages: Pages<'a>,
}

/// See [`crate::Backend::attribute`].
pub fn attribute<S: Simd>(
    simd: S,
    arena: &mut Arena,
    layer: usize,
    q: &Tensor,
    attended: &Attended,
    plan: &AttentionPlan,
) -> Result<()> {
    let heads = Heads::new("attribute", q, arena.layout().head_dim, plan)?;
    let items = items(layer, plan);
    if items.is_empty() {
        return Ok(());
    }
    let mut signals = vec![Vec::new(); items.len()];
    with_slice("attribute", q, |q| {
        with_slice("attribute", &attended.out, |out| {
            with_slice("attribute", &attended.lse, |lse| {
                let step = Step { simd, arena, plan, heads: &heads, q, out, lse };
                let head_dim = step.arena.layout().head_dim;
                each_chunk([(&mut signals, 1)], 1, |i, [signals]| {
                    signals[0] = with_scratch(head_dim, |scratch| step.signals(&items[i], scratch));
                });
            })
        })
    })???;
    for (item, signals) in items.iter().zip(signals) {
        accumulate(arena, item.pages.visited(), item.scoring.decay, &signals);
    }
    Ok(())
}

fn items(layer: usize, plan: &AttentionPlan) -> Vec<Item<'_>> {
    let mut items = Vec::new();
    for (index, span) in plan.spans.iter().enumerate() {
        let Some(scoring) = span.scoring else { continue };
        let rows = span.rows.end.saturating_sub(scoring.rows).max(span.rows.start)..span.rows.end;
        for kv_head in 0..plan.num_kv_heads {
            let pages = plan.pages(layer, index, kv_head);
            let parts = (num_tokens(pages) / MIN_TOKENS)
                .clamp(1, ITEMS_PER_THREAD * rayon::current_num_threads());
            let of_head = plan.page_range(layer, index, kv_head);
            let len = pages.len().div_ceil(parts).max(1);
            items.extend(of_head.clone().step_by(len).map(|start| {
                let pages = Pages::new(&plan.pages, start..(start + len).min(of_head.end));
                Item { rows: rows.clone(), scoring, kv_head, pages }
            }));
        }
    }
    items
}

/// The step's queries with what attention made of them.
struct Step<'a, S> {
    simd: S,
    arena: &'a Arena,
    plan: &'a AttentionPlan,
    heads: &'a Heads,
    q: &'a [f32],
    out: &'a [f32],
    lse: &'a [f32],
}

impl<S: Simd> Step<'_, S> {
    /// The signal of each token of the item's pages, summed over its queries.
    fn signals(&self, item: &Item, scratch: &mut Scratch) -> Vec<f32> {
        let mut signals = vec![0f32; num_tokens(item.pages.visited())];
        let queries = self.queries(item);
        let judges = (&queries, item.scoring.signal);
        let asks_queries = item.scoring.signal != Signal::KeyNorm;
        if !asks_queries || !Direct::serves::<S>(queries.lse.len(), queries.head_dim) {
            self.tiled(&queries, item.scoring.signal, item.pages, scratch, &mut signals);
            return signals;
        }
        let Some(wide) = self.simd.wide().filter(|_| Coded::serves(queries.head_dim)) else {
            scratch.direct.signals(self.simd, self.arena, item.pages, judges, &mut signals);
            return signals;
        };
        let mut rest = &mut signals[..];
        for (is_float, pages) in item.pages.runs() {
            let (here, after) = rest.split_at_mut(num_tokens(pages.visited()));
            if is_float {
                scratch.direct.signals(self.simd, self.arena, pages, judges, here);
            } else {
                scratch.coded.signals(wide, self.arena, pages, judges, here);
            }
            rest = after;
        }
        signals
    }

    fn tiled(
        &self,
        queries: &Queries,
        signal: Signal,
        pages: Pages,
        Scratch { tile, turned, .. }: &mut Scratch,
        signals: &mut [f32],
    ) {
        let wanted = if signal == Signal::KeyNorm { 0..u32::MAX } else { queries.wanted() };
        tile.each(self.simd, self.arena, pages, wanted, |tile| {
            let mut totals = [0f32; TOKENS];
            match signal {
                Signal::KeyNorm => inverse_norms(self.simd, tile, &mut totals),
                Signal::AttentionMass => queries.add(self.simd, tile, None, &mut totals),
                Signal::Deletion => {
                    self.simd.vectorize(Transpose { tile, out: turned });
                    queries.add(self.simd, tile, Some(turned), &mut totals);
                }
            }
            signals[tile.start..tile.start + tile.len].copy_from_slice(&totals[..tile.len]);
        });
    }

    fn queries(&self, item: &Item) -> Queries {
        let Heads { num_heads, group, .. } = *self.heads;
        let head_dim = self.arena.layout().head_dim;
        let scale = LOG2_E / (head_dim as f32).sqrt();
        let mut queries = Queries { head_dim, ..Queries::default() };
        for row in item.rows.clone() {
            let first = row * num_heads + item.kv_head * group;
            let of_group = first * head_dim..(first + group) * head_dim;
            queries.data.extend(self.q[of_group.clone()].iter().map(|q| q * scale));
            queries.out.extend_from_slice(&self.out[of_group]);
            queries.lse.extend(self.lse[first..first + group].iter().map(|lse| lse * LOG2_E));
            let visible = self.plan.visible(self.plan.positions[row]);
            queries.visible.extend(std::iter::repeat_n(visible, group));
        }
        self.simd.vectorize(Rotate { rows: &mut queries.out, head_dim });
        queries
    }
}

struct Transpose<'a> {
    tile: &'a Tile,
    out: &'a mut [f32],
}

impl<S: Simd> Op<S> for Transpose<'_> {
    type Out = ();

    #[inline(always)]
    fn run(self, simd: S) {
        let Tile { values, stride, len, .. } = self.tile;
        transpose(simd, values, self.out, *stride, *len);
    }
}

struct Rotate<'a> {
    rows: &'a mut [f32],
    head_dim: usize,
}

impl<S: Simd> Op<S> for Rotate<'_> {
    type Out = ();

    #[inline(always)]
    fn run(self, simd: S) {
        self.rows.chunks_exact_mut(self.head_dim).for_each(|row| rotate(simd, row));
    }
}

/// `a = decay * a + signal` for the tokens of `pages`, in order.
fn accumulate(arena: &mut Arena, pages: &[PageRef], decay: f32, mut signals: &[f32]) {
    let layout = *arena.layout();
    for page in pages {
        let (here, rest) = signals.split_at(usize::from(page.len));
        let start = layout.arrays(page.tier).attributions;
        let (stored, _) = arena.page_mut(page.page)[start..].as_chunks_mut::<2>();
        for (stored, signal) in stored.iter_mut().zip(here) {
            let old = bf16::from_le_bytes(*stored).to_f32();
            *stored = to_bf16(decay * old + signal).to_le_bytes();
        }
        signals = rest;
    }
}
