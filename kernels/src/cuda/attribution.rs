//! Launches of `attribution.cu`.

use candle_core::Tensor;

use super::{
    Cuda,
    args::{AttributionArgs, AttributionJob, Page, ReadTokensArgs, RotateArgs, bytes_of_mut},
    attention::layer_pages,
    gpu::{Gpu, Launch},
    memory,
};
use crate::{
    Arena, Attended, AttentionPlan, Error, PageRef, Result, Scoring, Signal,
    backend::TokenAttribution, portable::attention::Heads,
};

const OP: &str = "attribute";
const THREADS: usize = 128;
/// Tokens that are worth a block of their own.
const MIN_TOKENS: usize = 128;
/// Pages that a block of `read_tokens` reads, one to a warp.
const READ_WARPS: usize = 8;

/// See [`crate::Backend::attribute`].
pub fn attribute<G: Gpu>(
    cuda: &Cuda<G>,
    arena: &mut Arena,
    layer: usize,
    (q, attended): (&Tensor, &Attended),
    plan: &AttentionPlan,
) -> Result<()> {
    let dim = arena.layout().head_dim;
    let cache = cuda.resident.cache(OP, arena)?;
    let heads = Heads::new(OP, q, dim, plan)?;
    let Attended { out, lse } = attended;
    if out.dims() != q.dims() || lse.dims() != [heads.num_rows, heads.num_heads] {
        let reason = format!("q {:?}, out {:?}, lse {:?}", q.shape(), out.shape(), lse.shape());
        return Err(Error::shape(OP, reason));
    }
    let (pages, starts) = layer_pages(OP, arena, layer, plan)?;
    let jobs = jobs(&heads, plan, &pages, &starts);
    if jobs.is_empty() {
        return Ok(());
    }
    let gpu = &*cuda.gpu;
    let pages = cuda.resident.keep("pages", &pages)?;
    let positions = cuda.resident.keep("positions", &plan.positions)?;
    let uploaded = gpu.upload(&jobs)?;
    let rotated = gpu.alloc(out.elem_count() * size_of::<f32>())?;
    let tile = if dim <= 128 { 32 } else { 16 };
    gpu.with_addresses(OP, &[q, out, lse], |from| {
        let rotated = gpu.address(&rotated);
        rotate(gpu, dim, from[1], (rotated, out.elem_count() / dim))?;
        let args = AttributionArgs {
            cache,
            q: from[0],
            rotated_out: rotated,
            lse: from[2],
            positions: gpu.address(&positions),
            pages: gpu.address(&pages),
            jobs: gpu.address(&uploaded),
            num_heads: heads.num_heads as u32,
            group: heads.group as u32,
            window: plan.window.unwrap_or(u32::MAX),
            tile,
        };
        // Levels, then q and out, lse and sight of a tile's queries.
        let shared_bytes = 128 + tile as usize * (8 * dim + 4 + 8);
        let launch =
            Launch { kernel: "attribution", grid: [jobs.len(), 1], threads: THREADS, shared_bytes };
        // SAFETY: shapes and pages were checked; the jobs count rows and pages of the plan.
        unsafe { gpu.launch(launch, &args) }
    })
}

fn rotate<G: Gpu>(gpu: &G, dim: usize, x: u64, (out, num_vectors): (u64, usize)) -> Result<()> {
    let launch = Launch {
        kernel: "rotate_heads",
        grid: [num_vectors, 1],
        threads: dim.next_multiple_of(32),
        shared_bytes: dim * size_of::<f32>(),
    };
    // SAFETY: both hold num_vectors vectors of `dim`.
    unsafe { gpu.launch(launch, &RotateArgs { out, x, head_dim: dim as u32, unused: 0 }) }
}

/// Runs of pages of every (span, KV head) that is scored.
fn jobs(
    heads: &Heads,
    plan: &AttentionPlan,
    pages: &[Page],
    starts: &[usize],
) -> Vec<AttributionJob> {
    let mut jobs = Vec::new();
    for (group, range) in starts.windows(2).enumerate() {
        let span = &plan.spans[group / plan.num_kv_heads];
        let Some(Scoring { rows, signal, decay }) = span.scoring else { continue };
        let num_rows = rows.min(span.rows.len());
        let job = |page_start: usize, page_end: usize| AttributionJob {
            page_start: page_start as u32,
            page_end: page_end as u32,
            first_row: (span.rows.end - num_rows) as u32,
            kv_head: (group % plan.num_kv_heads) as u32,
            num_queries: (num_rows * heads.group) as u32,
            signal: match signal {
                Signal::Deletion => 0,
                Signal::AttentionMass => 1,
                Signal::KeyNorm => 2,
            },
            decay,
            unused: 0,
        };
        let (mut start, mut tokens) = (range[0], 0);
        for (page, entry) in pages.iter().enumerate().take(range[1]).skip(range[0]) {
            tokens += usize::from(entry.len);
            if tokens >= MIN_TOKENS || page + 1 == range[1] {
                jobs.push(job(start, page + 1));
                (start, tokens) = (page + 1, 0);
            }
        }
    }
    jobs
}

/// See [`crate::Backend::attributions`].
pub fn attributions<G: Gpu>(
    cuda: &Cuda<G>,
    arena: &Arena,
    pages: &[PageRef],
) -> Result<Vec<TokenAttribution>> {
    const OP: &str = "attributions";
    let cache = cuda.resident.cache(OP, arena)?;
    let mut num_tokens = 0;
    let mut starts = Vec::with_capacity(pages.len());
    for page in pages {
        starts.push(num_tokens);
        num_tokens += u32::from(page.len);
    }
    let mut positions = vec![0u32; num_tokens as usize];
    let mut attributions = vec![0f32; num_tokens as usize];
    let gpu = &*cuda.gpu;
    let uploaded = gpu.upload(&memory::pages(OP, arena, pages)?)?;
    let starts = gpu.upload(&starts)?;
    let out = [gpu.alloc(4 * positions.len())?, gpu.alloc(4 * positions.len())?];
    let args = ReadTokensArgs {
        cache,
        pages: gpu.address(&uploaded),
        starts: gpu.address(&starts),
        token_positions: gpu.address(&out[0]),
        token_attributions: gpu.address(&out[1]),
        num_pages: pages.len() as u32,
        unused: 0,
    };
    let launch = Launch {
        kernel: "read_tokens",
        grid: [pages.len().div_ceil(READ_WARPS), 1],
        threads: READ_WARPS * 32,
        shared_bytes: 0,
    };
    // SAFETY: the pages were checked, and there is room for all their tokens.
    unsafe { gpu.launch(launch, &args) }?;
    gpu.read(&out[0], 0, bytes_of_mut(&mut positions))?;
    gpu.read(&out[1], 0, bytes_of_mut(&mut attributions))?;
    let token = |(position, attribution)| TokenAttribution { position, attribution };
    Ok(positions.into_iter().zip(attributions).map(token).collect())
}
