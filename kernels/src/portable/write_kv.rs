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
    let are_groups = width > kv_width && width.is_multiple_of(num_kv_heads * head_dim);
    if num_rows != plan.num_rows() || !are_groups {
        return Err(Error::shape("write_kv", format!("qkv {:?} for {num_rows} rows", qkv.shape())));
    }
    check_basis(plan, layer, head_dim)?;
    let turned = with_slice("write_kv", qkv, |qkv| turn(qkv, width, layer, rope, plan))?;
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

/// # Errors
/// The plan's basis belongs to another model.
pub(crate) fn check_basis(plan: &AttentionPlan, layer: usize, head_dim: usize) -> Result<()> {
    let heads = (layer + 1) * plan.num_kv_heads;
    match &plan.basis {
        Some(basis) if basis.head_dim() != head_dim || basis.num_heads() < heads => {
            Err(Error::shape("write_kv", "the key basis belongs to another model".to_owned()))
        }
        _ => Ok(()),
    }
}

/// RoPE on q and k, then the basis or the rotation of every head.
fn turn(
    qkv: &[f32],
    width: usize,
    layer: usize,
    rope: &RopeTable,
    plan: &AttentionPlan,
) -> Vec<f32> {
    let head_dim = 2 * rope.half_dim;
    let roles = Roles::new(width / head_dim, plan, layer);
    let mut turned = qkv.to_vec();
    turned.par_chunks_exact_mut(width).enumerate().for_each(|(row, heads)| {
        for (head, x) in heads.chunks_exact_mut(head_dim).enumerate() {
            let role = roles.of(head);
            if role != Role::Value {
                rope.apply(row, x);
            }
            match (role, &plan.basis) {
                (Role::Query(head), Some(basis)) => basis.head(head).turn_query(x),
                (Role::Key(head), Some(basis)) => basis.head(head).turn_key(x),
                _ => hadamard::rotate(x),
            }
        }
    });
    turned
}

/// What a head of a row of qkv is. The number is that of the (layer, KV head) it belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Query(usize),
    Key(usize),
    Value,
}

/// Who is who in a row of H query heads, G keys and G values.
struct Roles {
    num_heads: usize,
    num_kv_heads: usize,
    /// The first (layer, KV head) of the layer.
    first: usize,
}

impl Roles {
    pub fn new(num_all: usize, plan: &AttentionPlan, layer: usize) -> Self {
        let num_kv_heads = plan.num_kv_heads;
        Self { num_heads: num_all - 2 * num_kv_heads, num_kv_heads, first: layer * num_kv_heads }
    }

    #[inline(always)]
    pub fn of(&self, head: usize) -> Role {
        let Self { num_heads, num_kv_heads, first } = *self;
        match head {
            _ if head < num_heads => Role::Query(first + head * num_kv_heads / num_heads),
            _ if head < num_heads + num_kv_heads => Role::Key(first + head - num_heads),
            _ => Role::Value,
        }
    }
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
