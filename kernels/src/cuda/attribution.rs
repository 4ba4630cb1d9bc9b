//! Launches of `attribution.cu`.

use std::ops::Range;

use candle_core::Tensor;

use super::{
    Cuda,
    args::{
        self, AttributionArgs, AttributionJob, HistogramArgs, ReadTokensArgs, RotateArgs,
        bytes_of_mut,
    },
    gpu::{Gpu, Launch},
    memory,
};
use crate::{
    Arena, Attended, AttentionPlan, Error, Histogram, PageRef, Result, Scoring, Signal,
    backend::TokenAttribution, histogram::BINS, portable::attention::Heads,
};

const OP: &str = "attribute";
const THREADS: usize = 128;
/// Tokens that are worth a block of their own.
const MIN_TOKENS: usize = 128;
/// Pages that a block of `read_tokens` reads, one to a warp.
const READ_WARPS: usize = 8;
const HISTOGRAM_THREADS: usize = 256;

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
    let shape = cuda.shape(dim, heads.group);
    cuda.steps.with((OP, layer), arena, plan, &shape, |step| {
        let jobs = step.layer().attribution;
        if jobs.len == 0 {
            return Ok(());
        }
        cuda.rotated.with(out.elem_count() * size_of::<f32>(), |rotated| {
            let gpu = &*cuda.gpu;
            gpu.with_addresses(OP, &[q, out, lse], |from| {
                rotate(gpu, dim, from[1], (rotated, out.elem_count() / dim))?;
                let tile = if dim <= 128 { 32 } else { 16 };
                let args = AttributionArgs {
                    cache,
                    q: from[0],
                    rotated_out: rotated,
                    lse: from[2],
                    positions: step.positions(),
                    pages: step.pages(),
                    jobs: step.address(jobs),
                    num_heads: heads.num_heads as u32,
                    group: heads.group as u32,
                    window: plan.window.unwrap_or(u32::MAX),
                    tile,
                };
                // Levels, then q and out, lse and sight of a tile's queries.
                let shared_bytes = 128 + tile as usize * (8 * dim + 4 + 8);
                let grid = [jobs.len, 1];
                let launch = Launch { kernel: "attribution", grid, threads: THREADS, shared_bytes };
                // SAFETY: shapes and pages were checked; the jobs count rows and pages of the plan.
                unsafe { gpu.launch(launch, &args) }
            })
        })
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

/// Runs of pages, given how many tokens each holds, that are worth a block.
pub fn runs(lens: impl Iterator<Item = usize>) -> Vec<Range<usize>> {
    let (mut runs, mut start, mut tokens, mut end) = (Vec::new(), 0, 0, 0);
    for len in lens {
        end += 1;
        tokens += len;
        if tokens >= MIN_TOKENS {
            runs.push(start..end);
            (start, tokens) = (end, 0);
        }
    }
    if start < end {
        runs.push(start..end);
    }
    runs
}

/// A block's work: some pages of a KV head, and the last of a span's rows.
pub fn job(
    span: &Range<usize>,
    scoring: Scoring,
    kv_head: usize,
    group: usize,
    pages: Range<usize>,
) -> AttributionJob {
    let Scoring { rows, signal, decay } = scoring;
    let num_rows = rows.min(span.len());
    AttributionJob {
        page_start: pages.start as u32,
        page_end: pages.end as u32,
        first_row: (span.end - num_rows) as u32,
        kv_head: kv_head as u32,
        num_queries: (num_rows * group) as u32,
        signal: match signal {
            Signal::Deletion => 0,
            Signal::AttentionMass => 1,
            Signal::KeyNorm => 2,
        },
        decay,
        unused: 0,
    }
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

/// See [`crate::Backend::histograms`].
pub fn histograms<G: Gpu>(
    cuda: &Cuda<G>,
    arena: &Arena,
    groups: &[&[PageRef]],
    ranges: &[Range<u32>],
) -> Result<Vec<Histogram>> {
    const OP: &str = "histograms";
    let cache = cuda.resident.cache(OP, arena)?;
    if groups.is_empty() || ranges.is_empty() {
        return Ok(vec![Histogram::default(); groups.len()]);
    }
    let add = |end: &mut u32, pages: &&[PageRef]| {
        *end += pages.len() as u32;
        Some(*end)
    };
    let ends: Vec<u32> = groups.iter().scan(0, add).collect();
    let ranges: Vec<_> =
        ranges.iter().map(|range| args::Range { start: range.start, end: range.end }).collect();
    let mut counts = vec![0u32; groups.len() * BINS];
    let gpu = &*cuda.gpu;
    let pages = gpu.upload(&memory::pages(OP, arena, &groups.concat())?)?;
    let (ends, uploaded) = (gpu.upload(&ends)?, gpu.upload(&ranges)?);
    let out = gpu.alloc(4 * counts.len())?;
    let args = HistogramArgs {
        cache,
        pages: gpu.address(&pages),
        ends: gpu.address(&ends),
        ranges: gpu.address(&uploaded),
        counts: gpu.address(&out),
        num_ranges: ranges.len() as u32,
        unused: 0,
    };
    let launch = Launch {
        kernel: "histogram",
        grid: [groups.len(), 1],
        threads: HISTOGRAM_THREADS,
        shared_bytes: 4 * BINS,
    };
    // SAFETY: the pages were checked, `ends` counts them, and there are BINS counts for each group.
    unsafe { gpu.launch(launch, &args) }?;
    gpu.read(&out, 0, bytes_of_mut(&mut counts))?;
    let (counts, _) = counts.as_chunks::<BINS>();
    Ok(counts.iter().map(|counts| Histogram { counts: *counts }).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_of_pages_hold_enough_tokens_for_a_block_but_the_last() {
        assert!(runs(std::iter::empty()).is_empty());
        assert_eq!(runs([3].into_iter()), std::slice::from_ref(&(0..1)));
        assert_eq!(runs([64, 64, 200, 8].into_iter()), [0..2, 2..3, 3..4]);
    }
}
