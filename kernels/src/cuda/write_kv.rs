//! Launch of `write_kv.cu`.

use candle_core::Tensor;

use super::{
    Cuda,
    args::{WriteKvArgs, WriteSlot},
    gpu::{Gpu, Launch},
    memory::check_slot,
};
use crate::{
    Arena, AttentionPlan, Error, Result, RopeTable, Tier, Write, portable::write_kv::check_basis,
};

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
    let writes = writes(arena, layer, plan)?;
    let [means, key_columns, query_columns] = match &plan.basis {
        Some(basis) => cuda.resident.basis(basis, layer * num_kv_heads)?,
        None => [0; 3],
    };
    let (gpu, resident) = (&*cuda.gpu, &cuda.resident);
    let [cos, sin] = [resident.keep("cos", &rope.cos)?, resident.keep("sin", &rope.sin)?];
    let writes = gpu.upload(&writes)?;
    let launch = Launch {
        kernel: "write_kv",
        grid: [width / dim, num_rows.div_ceil(ROWS)],
        threads: dim.next_multiple_of(32),
        shared_bytes: ROWS * dim * size_of::<f32>(),
    };
    gpu.with_addresses(OP, &[qkv], |from| {
        gpu.output((num_rows, num_heads * dim), |q| {
            let args = WriteKvArgs {
                cache,
                q,
                qkv: from[0],
                cos: gpu.address(&cos),
                sin: gpu.address(&sin),
                writes: gpu.address(&writes),
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
    })
}

fn writes(arena: &Arena, layer: usize, plan: &AttentionPlan) -> Result<Vec<WriteSlot>> {
    let all = (0..plan.num_kv_heads).flat_map(|kv_head| plan.writes(layer, kv_head));
    all.map(|&Write { slot, offset }| {
        check_slot(OP, arena, slot, Tier::F16)?;
        Ok(WriteSlot { page: slot.page.0, index: slot.index, offset })
    })
    .collect()
}
