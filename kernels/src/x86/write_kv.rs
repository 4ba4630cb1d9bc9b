//! RoPE, rotation and the write of keys and values: [`crate::portable::write_kv`] with vectors.

use candle_core::Tensor;
use rayon::prelude::*;

use super::simd::{Op, Simd, rotate};
use crate::{
    Arena, AttentionPlan, Error, Result, RopeTable, Tier, Write,
    codec::Format,
    portable::segment::{set_attribution, set_offset},
    tensor::{from_vec, with_slice},
};

/// Rows that pay for handing work to another thread.
const MIN_ROWS: usize = 16;

/// See [`crate::Backend::write_kv`].
pub fn write_kv<S: Simd>(
    simd: S,
    arena: &mut Arena,
    layer: usize,
    qkv: &Tensor,
    rope: &RopeTable,
    plan: &AttentionPlan,
) -> Result<Tensor> {
    let (num_rows, width) = qkv.dims2()?;
    let layout = *arena.layout();
    let head_dim = layout.head_dim;
    let kv_width = 2 * plan.num_kv_heads * head_dim;
    if num_rows != plan.num_rows() || width <= kv_width || !width.is_multiple_of(head_dim) {
        return Err(Error::shape("write_kv", format!("qkv {:?} for {num_rows} rows", qkv.shape())));
    }
    let q_width = width - kv_width;
    let mut q = vec![0f32; num_rows * q_width];
    let mut kv = vec![0f32; num_rows * kv_width];
    with_slice("write_kv", qkv, |qkv| {
        qkv.par_chunks_exact(width)
            .zip(q.par_chunks_exact_mut(q_width).zip(kv.par_chunks_exact_mut(kv_width)))
            .enumerate()
            .with_min_len(MIN_ROWS)
            .for_each(|(row, (x, (q, kv)))| {
                q.copy_from_slice(&x[..q_width]);
                kv.copy_from_slice(&x[q_width..]);
                let (keys, values) = kv.split_at_mut(kv_width / 2);
                for (heads, turn) in [(q, true), (keys, true), (values, false)] {
                    let rope = turn.then_some(rope);
                    simd.vectorize(Turn { row, rope, heads, head_dim });
                }
            });
    })?;
    let at = layout.arrays(Tier::F16);
    for (row, kv) in kv.chunks_exact(kv_width).enumerate() {
        let (keys, values) = kv.split_at(kv_width / 2);
        let heads = keys.chunks_exact(head_dim).zip(values.chunks_exact(head_dim));
        for (kv_head, (key, value)) in heads.enumerate() {
            let Write { slot, offset } = plan.writes(layer, kv_head)[row];
            let (page, index) = (arena.page_mut(slot.page), usize::from(slot.index));
            for (x, start, len) in
                [(key, at.keys, at.key_bytes), (value, at.values, at.value_bytes)]
            {
                let codes = &mut page[start + index * len..][..len];
                simd.vectorize(Encode { x, codes });
            }
            set_offset(&layout, page, Tier::F16, index, offset);
            set_attribution(&layout, page, Tier::F16, index, 0.0);
        }
    }
    from_vec(q, (num_rows, q_width))
}

/// RoPE, if any, and rotation of the heads of a row.
struct Turn<'a> {
    row: usize,
    rope: Option<&'a RopeTable>,
    heads: &'a mut [f32],
    head_dim: usize,
}

impl<S: Simd> Op<S> for Turn<'_> {
    type Out = ();

    #[inline(always)]
    fn run(self, simd: S) {
        for x in self.heads.chunks_exact_mut(self.head_dim) {
            if let Some(rope) = self.rope {
                rope.apply(self.row, x);
            }
            rotate(simd, x);
        }
    }
}

/// [`Format::F16`]'s encoding.
struct Encode<'a> {
    x: &'a [f32],
    codes: &'a mut [u8],
}

impl<S: Simd> Op<S> for Encode<'_> {
    type Out = ();

    #[inline(always)]
    fn run(self, simd: S) {
        let Self { x, codes } = self;
        assert!(codes.len() == 2 * x.len());
        let whole = x.len() / S::LANES * S::LANES;
        for i in (0..whole).step_by(S::LANES) {
            // SAFETY: i + LANES <= x.len(), and codes are twice as many bytes.
            unsafe {
                let v = simd.clamp_f16(simd.load(x.as_ptr().add(i)));
                simd.store_f16(codes.as_mut_ptr().add(2 * i), v);
            }
        }
        Format::F16.encode(&x[whole..], &mut codes[2 * whole..]);
    }
}
