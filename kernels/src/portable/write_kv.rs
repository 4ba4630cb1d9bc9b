//! RoPE, rotation and the write of a step's keys and values into open F16 pages.

use candle_core::Tensor;
use rayon::prelude::*;

use super::segment::{encode_token, set_attribution, set_offset};
use crate::{
    Arena, AttentionPlan, Error, Result, RopeTable, Tier, Write, hadamard,
    tensor::{from_vec, with_slice},
};

/// See [`crate::Backend::write_kv`].
pub fn write_kv(
    arena: &mut Arena,
    layer: usize,
    qkv: &Tensor,
    rope: &RopeTable,
    plan: &AttentionPlan,
) -> Result<Tensor> {
    let (num_rows, width) = qkv.dims2()?;
    let head_dim = arena.layout().head_dim;
    let num_kv_heads = plan.num_kv_heads;
    let kv_width = 2 * num_kv_heads * head_dim;
    if num_rows != plan.num_rows() || width <= kv_width || !width.is_multiple_of(head_dim) {
        return Err(Error::shape("write_kv", format!("qkv {:?} for {num_rows} rows", qkv.shape())));
    }
    let turned = with_slice("write_kv", qkv, |qkv| turn(qkv, width, num_kv_heads, rope))?;
    let q_width = width - kv_width;
    let mut q = Vec::with_capacity(num_rows * q_width);
    for (row, turned) in turned.chunks_exact(width).enumerate() {
        let (q_row, kv) = turned.split_at(q_width);
        let (keys, values) = kv.split_at(kv_width / 2);
        q.extend_from_slice(q_row);
        let heads = keys.chunks_exact(head_dim).zip(values.chunks_exact(head_dim));
        for (kv_head, (key, value)) in heads.enumerate() {
            write_token(arena, layer, kv_head, row, (key, value), plan);
        }
    }
    from_vec(q, (num_rows, q_width))
}

/// RoPE on q and k, then the rotation of every head.
fn turn(qkv: &[f32], width: usize, num_kv_heads: usize, rope: &RopeTable) -> Vec<f32> {
    let head_dim = 2 * rope.half_dim;
    let num_turned = width / head_dim - num_kv_heads;
    let mut turned = qkv.to_vec();
    turned.par_chunks_exact_mut(width).enumerate().for_each(|(row, heads)| {
        for (head, x) in heads.chunks_exact_mut(head_dim).enumerate() {
            if head < num_turned {
                rope.apply(row, x);
            }
            hadamard::rotate(x);
        }
    });
    turned
}

fn write_token(
    arena: &mut Arena,
    layer: usize,
    kv_head: usize,
    row: usize,
    (key, value): (&[f32], &[f32]),
    plan: &AttentionPlan,
) {
    let Write { slot, offset } = plan.writes(layer, kv_head)[row];
    let layout = *arena.layout();
    let page = arena.page_mut(slot.page);
    let index = usize::from(slot.index);
    encode_token(&layout, page, Tier::F16, index, key, value);
    set_offset(&layout, page, Tier::F16, index, offset);
    set_attribution(&layout, page, Tier::F16, index, 0.0);
}
