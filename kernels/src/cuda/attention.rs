//! Launches of `attention_decode.cu`, `attention_prefill.cu` and `attention_prefill_mma.cu`.

use candle_core::Tensor;

use super::{
    Cuda,
    args::{Address, AttentionArgs, Cache, MergeArgs},
    gpu::{Gpu, Launch},
    step::Uploaded,
};
use crate::{Arena, Attended, AttentionPlan, Result, portable::attention::Heads};

const OP: &str = "attention";

/// See [`crate::Backend::attention`].
pub fn attention<G: Gpu>(
    cuda: &Cuda<G>,
    arena: &Arena,
    layer: usize,
    q: &Tensor,
    plan: &AttentionPlan,
) -> Result<Attended> {
    let layout = *arena.layout();
    let cache = cuda.resident.cache(OP, arena)?;
    let heads = Heads::new(OP, q, layout.head_dim, plan)?;
    let shape = cuda.shape(layout.head_dim, heads.group);
    cuda.steps.with((OP, layer), arena, plan, &shape, |step| {
        let floats = step.layer().num_parts * (layout.head_dim + 2);
        cuda.parts.with(floats * size_of::<f32>(), |parts| {
            let parts = Parts::new(parts, step.layer().num_parts, layout.head_dim);
            let window = plan.window.unwrap_or(u32::MAX);
            attend(&*cuda.gpu, (q, &heads, window), (cache, layout.page_bytes), step, &parts)?;
            merge(&*cuda.gpu, &heads, layout.head_dim, step, &parts)
        })
    })
}

/// What jobs leave: outputs (parts, D), maxima and sums (parts).
struct Parts {
    out: Address,
    max: Address,
    sum: Address,
}

impl Parts {
    fn new(start: Address, num_parts: usize, dim: usize) -> Self {
        let floats = |count: usize| start + (count * size_of::<f32>()) as Address;
        Self { out: start, max: floats(num_parts * dim), sum: floats(num_parts * (dim + 1)) }
    }
}

fn attend<G: Gpu>(
    gpu: &G,
    (q, heads, window): (&Tensor, &Heads, u32),
    (cache, page_bytes): (Cache, usize),
    step: &Uploaded,
    parts: &Parts,
) -> Result<()> {
    gpu.with_addresses(OP, &[q], |from| {
        for (variant, jobs) in &step.layer().attention {
            let (shared_bytes, fetches) = variant.shared_bytes(cache.head_dim as usize, page_bytes);
            let args = AttentionArgs {
                cache,
                q: from[0],
                positions: step.positions(),
                pages: step.pages(),
                jobs: step.address(*jobs),
                part_out: parts.out,
                part_max: parts.max,
                part_sum: parts.sum,
                num_heads: heads.num_heads as u32,
                group: heads.group as u32,
                window,
                fetches: fetches.into(),
            };
            let (kernel, threads) = (variant.kernel, variant.threads);
            let launch = Launch { kernel, grid: [jobs.len, 1], threads, shared_bytes };
            // SAFETY: rows, pages and parts of the jobs were counted from the plan, which was checked.
            unsafe { gpu.launch(launch, &args) }?;
        }
        Ok(())
    })
}

fn merge<G: Gpu>(
    gpu: &G,
    heads: &Heads,
    dim: usize,
    step: &Uploaded,
    parts: &Parts,
) -> Result<Attended> {
    let merges = step.layer().merges;
    let launch = Launch {
        kernel: "attention_merge",
        grid: [merges.len, 1],
        threads: dim.next_multiple_of(32),
        shared_bytes: dim * size_of::<f32>(),
    };
    let mut out = None;
    let lse = gpu.output((heads.num_rows, heads.num_heads), |lse| {
        let merged = gpu.output((heads.num_rows, heads.num_heads * dim), |out| {
            let args = MergeArgs {
                out,
                lse,
                part_out: parts.out,
                part_max: parts.max,
                part_sum: parts.sum,
                merges: step.address(merges),
                head_dim: dim as u32,
                unused: 0,
            };
            // SAFETY: each merge names parts that the jobs left.
            unsafe { gpu.launch(launch, &args) }
        });
        out = Some(merged?);
        Ok(())
    })?;
    Ok(Attended { out: out.expect("filled with lse"), lse })
}
