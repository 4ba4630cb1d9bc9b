//! Launch of `write_kv.cu`.

use candle_core::Tensor;

use super::{
    Cuda,
    args::{Address, WriteKvArgs},
    gpu::{Gpu, Launch},
};
use crate::{Arena, AttentionPlan, Error, Result, RopeTable, portable::write_kv::check_basis};

const OP: &str = "write_kv";
/// Rows of a block: `ROWS` of the kernel.
const ROWS: usize = 8;

/// See [`crate::Backend::write_kv`].
pub fn write_kv<G: Gpu>(
    cuda: &Cuda<G>,
    arena: &mut Arena,
    layer: usize,
    qkv: &Tensor,
    (rope, plan): (&RopeTable, &AttentionPlan),
) -> Result<Tensor> {
    let (num_rows, width) = qkv.dims2()?;
    let (dim, num_kv_heads) = (arena.layout().head_dim, plan.num_kv_heads);
    let kv_width = 2 * num_kv_heads * dim;
    if num_rows != plan.num_rows() || width <= kv_width || !width.is_multiple_of(dim) {
        return Err(Error::shape(OP, format!("qkv {:?} for {num_rows} rows", qkv.shape())));
    }
    if 2 * rope.half_dim != dim
        || [&rope.cos, &rope.sin].iter().any(|x| x.len() != num_rows * rope.half_dim)
    {
        return Err(Error::shape(OP, format!("a rope table of {} pairs", rope.half_dim)));
    }
    check_basis(plan, layer, dim)?;
    let cache = cuda.resident.cache(OP, arena)?;
    let num_heads = (width - kv_width) / dim;
    if plan.writes.len() < (layer + 1) * num_kv_heads * num_rows {
        return Err(Error::shape(OP, format!("{} writes in layer {layer}", plan.writes.len())));
    }
    let shape = cuda.shape(dim, num_heads / num_kv_heads.max(1));
    let [means, key_columns, query_columns] = match &plan.basis {
        Some(basis) => cuda.resident.basis(basis, layer * num_kv_heads)?,
        None => [0; 3],
    };
    let launch = Launch {
        kernel: "write_kv",
        grid: [width / dim, num_rows.div_ceil(ROWS)],
        threads: dim.next_multiple_of(32),
        shared_bytes: ROWS * dim * size_of::<f32>(),
    };
    let gpu = &*cuda.gpu;
    let launch = |qkv: &[Address], [cos, sin]: [Address; 2], writes| {
        gpu.output((num_rows, num_heads * dim), |q| {
            let args = WriteKvArgs {
                cache,
                q,
                qkv: qkv[0],
                cos,
                sin,
                writes,
                means,
                key_columns,
                query_columns,
                num_rows: num_rows as u32,
                num_heads: num_heads as u32,
                num_kv_heads: num_kv_heads as u32,
                unused: 0,
            };
            // SAFETY: the shapes and the slots were checked.
            unsafe { gpu.launch(launch, &args) }
        })
    };
    cuda.steps.with((OP, layer), arena, plan, &shape, |step| {
        cuda.resident.with_rope(rope, |rope| {
            gpu.with_addresses(OP, &[qkv], |qkv| launch(qkv, rope, step.writes()))
        })
    })
}
