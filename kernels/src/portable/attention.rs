//! Softmax attention over pages of mixed tiers.
//!
//! `o_t = sum_j p_tj v_j`, `p_tj = exp(q_t k_j / sqrt(D) - lse_t)` over the positions row t sees.

use candle_core::Tensor;
use rayon::prelude::*;

use super::segment::{Segment, dot};
use crate::{
    Arena, Attended, AttentionPlan, Error, Result, Span, hadamard,
    tensor::{from_vec, with_slice},
};

/// See [`crate::Backend::attention`].
pub fn attention(
    arena: &Arena,
    layer: usize,
    q: &Tensor,
    plan: &AttentionPlan,
) -> Result<Attended> {
    let head_dim = arena.layout().head_dim;
    let heads = Heads::new("attention", q, head_dim, plan)?;
    let mut out = vec![0f32; heads.num_rows * heads.num_heads * head_dim];
    let mut lse = vec![0f32; heads.num_rows * heads.num_heads];
    let items: Vec<_> = (0..plan.spans.len())
        .flat_map(|span| (0..plan.num_kv_heads).map(move |kv_head| (span, kv_head)))
        .collect();
    with_slice("attention", q, |q| {
        let attended: Vec<_> = items
            .par_iter()
            .map(|&(span, kv_head)| {
                let segment = Segment::decode(arena, plan.pages(layer, span, kv_head));
                attend_group(&heads, kv_head, &plan.spans[span], q, &segment, plan)
            })
            .collect();
        for (&(span, kv_head), rows) in items.iter().zip(attended) {
            let queries = heads.queries(&plan.spans[span], kv_head);
            for (index, (o, l)) in queries.zip(rows) {
                out[index * head_dim..(index + 1) * head_dim].copy_from_slice(&o);
                lse[index] = l;
            }
        }
    })?;
    Ok(Attended {
        out: from_vec(out, (heads.num_rows, heads.num_heads * head_dim))?,
        lse: from_vec(lse, (heads.num_rows, heads.num_heads))?,
    })
}

/// Numbers of rows and query heads of a step.
pub(crate) struct Heads {
    pub num_rows: usize,
    pub num_heads: usize,
    /// Query heads per KV head.
    pub group: usize,
}

impl Heads {
    pub fn new(
        op: &'static str,
        q: &Tensor,
        head_dim: usize,
        plan: &AttentionPlan,
    ) -> Result<Self> {
        let (num_rows, width) = q.dims2()?;
        let num_heads = width / head_dim;
        if num_rows != plan.num_rows()
            || !width.is_multiple_of(head_dim)
            || !num_heads.is_multiple_of(plan.num_kv_heads)
        {
            let reason = format!("q {:?}, head size {head_dim}", q.shape());
            return Err(Error::shape(op, reason));
        }
        Ok(Self { num_rows, num_heads, group: num_heads / plan.num_kv_heads })
    }

    /// Indices (row * H + head) of a span's queries that share a KV head, row by row.
    pub fn queries(&self, span: &Span, kv_head: usize) -> impl Iterator<Item = usize> + use<> {
        let (num_heads, group) = (self.num_heads, self.group);
        let heads = kv_head * group..(kv_head + 1) * group;
        span.rows.clone().flat_map(move |row| heads.clone().map(move |h| row * num_heads + h))
    }
}

/// Output (D) and log-sum-exp of each query of the group, in the order of [`Heads::queries`].
fn attend_group(
    heads: &Heads,
    kv_head: usize,
    span: &Span,
    q: &[f32],
    segment: &Segment,
    plan: &AttentionPlan,
) -> Vec<(Vec<f32>, f32)> {
    let head_dim = segment.head_dim;
    heads
        .queries(span, kv_head)
        .map(|index| {
            let query = &q[index * head_dim..(index + 1) * head_dim];
            let position = plan.positions[index / heads.num_heads];
            attend(query, segment, plan.visible(position))
        })
        .collect()
}

fn attend(query: &[f32], segment: &Segment, visible: std::ops::Range<u32>) -> (Vec<f32>, f32) {
    let scale = 1.0 / (segment.head_dim as f32).sqrt();
    let scores: Vec<_> = (0..segment.len())
        .filter(|&token| visible.contains(&segment.positions[token]))
        .map(|token| (token, dot(query, segment.key(token)) * scale))
        .collect();
    let largest = scores.iter().fold(f32::NEG_INFINITY, |m, (_, s)| m.max(*s));
    let sum: f32 = scores.iter().map(|(_, s)| (s - largest).exp()).sum();
    let lse = largest + sum.ln();
    let mut out = vec![0f32; segment.head_dim];
    for (token, score) in scores {
        let p = (score - lse).exp();
        for (o, v) in out.iter_mut().zip(segment.value(token)) {
            *o += p * v;
        }
    }
    hadamard::rotate_back(&mut out);
    (out, lse)
}
