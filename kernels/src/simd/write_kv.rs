//! RoPE, rotation and the write of keys and values: [`crate::portable::write_kv`] with vectors.

use std::cell::Cell;

use candle_core::Tensor;

use super::{Op, Simd, rotate};
use crate::{
    Arena, AttentionPlan, Error, KeyBasis, Result, RopeTable, Tier, Write,
    codec::Format,
    portable::{
        self,
        segment::{set_attribution, set_offset},
        write_kv::{Role, check_basis},
    },
    team::each_chunk,
    tensor::{MOST_ROWS_KEPT, output, with_slice},
};

/// The largest head size that changes basis with vectors.
const MAX_DIM: usize = 256;
/// Rows that pay for handing work to another thread, without a team.
const MIN_ROWS: usize = 16;

thread_local!(
    /// Keys and values on their way to the cache.
    static TURNED: Cell<Vec<f32>> = const { Cell::new(Vec::new()) }
);

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
    let num_kv_heads = plan.num_kv_heads;
    let kv_width = 2 * num_kv_heads * head_dim;
    let are_groups = width > kv_width && width.is_multiple_of(num_kv_heads * head_dim);
    if num_rows != plan.num_rows() || !are_groups {
        return Err(Error::shape("write_kv", format!("qkv {:?} for {num_rows} rows", qkv.shape())));
    }
    check_basis(plan, layer, head_dim)?;
    if plan.basis.is_some() && (head_dim > MAX_DIM || !head_dim.is_multiple_of(S::LANES)) {
        return portable::write_kv::write_kv(arena, layer, qkv, rope, plan);
    }
    let basis = plan.basis.as_deref();
    let q_width = width - kv_width;
    let mut kv = TURNED.take();
    kv.resize(num_rows * kv_width, 0.0);
    let q = output("write_kv", (num_rows, q_width), |q| {
        with_slice("write_kv", qkv, |qkv| {
            let chunks = [(q, q_width / num_kv_heads), (&mut *kv, 2 * head_dim)];
            each_chunk(chunks, MIN_ROWS * num_kv_heads, |i, [q, kv]| {
                let (row, kv_head) = (i / num_kv_heads, i % num_kv_heads);
                let x = &qkv[row * width..][..width];
                q.copy_from_slice(&x[kv_head * q.len()..][..q.len()]);
                let (keys, values) = x[q_width..].split_at(num_kv_heads * head_dim);
                let (key, value) = kv.split_at_mut(head_dim);
                key.copy_from_slice(&keys[kv_head * head_dim..][..head_dim]);
                value.copy_from_slice(&values[kv_head * head_dim..][..head_dim]);
                let head = layer * num_kv_heads + kv_head;
                let queries = q.chunks_exact_mut(head_dim).map(|x| (Role::Query(head), x));
                for (role, x) in queries.chain([(Role::Key(head), key), (Role::Value, value)]) {
                    simd.vectorize(Turn { row, rope, role, basis, x });
                }
            });
        })
    })?;
    store(simd, arena, layer, &kv, plan);
    if num_rows <= MOST_ROWS_KEPT {
        TURNED.set(kv);
    }
    Ok(q)
}

/// Writes keys and values, (T, G, 2, D) as they are cached, to the plan's slots.
fn store<S: Simd>(simd: S, arena: &mut Arena, layer: usize, kv: &[f32], plan: &AttentionPlan) {
    let layout = *arena.layout();
    let head_dim = layout.head_dim;
    let at = layout.arrays(Tier::F16);
    for (row, kv) in kv.chunks_exact(2 * plan.num_kv_heads * head_dim).enumerate() {
        for (kv_head, kv) in kv.chunks_exact(2 * head_dim).enumerate() {
            let (key, value) = kv.split_at(head_dim);
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
}

/// RoPE, and the basis or the rotation of one head of a row.
struct Turn<'a> {
    row: usize,
    rope: &'a RopeTable,
    role: Role,
    basis: Option<&'a KeyBasis>,
    x: &'a mut [f32],
}

impl<S: Simd> Op<S> for Turn<'_> {
    type Out = ();

    #[inline(always)]
    fn run(self, simd: S) {
        let Self { row, rope, role, basis, x } = self;
        if role != Role::Value {
            rope.apply(row, x);
        }
        match (role, basis) {
            (Role::Query(head), Some(basis)) => turn(simd, basis.head(head).queries, x),
            (Role::Key(head), Some(basis)) => {
                let basis = basis.head(head);
                x.iter_mut().zip(basis.mean).for_each(|(x, mean)| *x -= mean);
                turn(simd, basis.keys, x);
            }
            _ => rotate(simd, x),
        }
    }
}

/// Vectors of sums that stay in registers.
const STRIP: usize = 4;

/// x = M x for the columns of M.
#[inline(always)]
fn turn<S: Simd>(simd: S, columns: &[f32], x: &mut [f32]) {
    let dim = x.len();
    let mut turned = [0f32; MAX_DIM];
    assert!(columns.len() == dim * dim && dim <= MAX_DIM && dim.is_multiple_of(S::LANES));
    let mut first = 0;
    while first < dim {
        let strip = STRIP.min((dim - first) / S::LANES);
        let mut sums = [simd.splat(0.0); STRIP];
        for (column, x) in columns.chunks_exact(dim).zip(x.iter()) {
            let x = simd.splat(*x);
            for (i, sum) in sums[..strip].iter_mut().enumerate() {
                // SAFETY: first + strip * LANES <= dim, the length of a column.
                let c = unsafe { simd.load(column.as_ptr().add(first + i * S::LANES)) };
                *sum = simd.fma(x, c, *sum);
            }
        }
        for (i, sum) in sums[..strip].iter().enumerate() {
            // SAFETY: as above; `turned` is no shorter than `dim`.
            unsafe { simd.store(turned.as_mut_ptr().add(first + i * S::LANES), *sum) };
        }
        first += strip * S::LANES;
    }
    x.copy_from_slice(&turned[..dim]);
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
