//! Launches of `attention_decode.cu` and `attention_prefill.cu`.

use candle_core::Tensor;

use super::{
    Cuda,
    args::{AttentionArgs, AttentionJob, Merge, MergeArgs, Page},
    gpu::{Gpu, Launch},
    memory,
};
use crate::{Arena, Attended, AttentionPlan, Result, portable::attention::Heads};

const OP: &str = "attention";
/// More queries of a KV head than this are worth a tile.
const MAX_DECODE_QUERIES: usize = 16;
/// Blocks that keep a multiprocessor busy.
const BLOCKS_PER_MULTIPROCESSOR: usize = 4;

/// One of the kernels: how many queries a block takes, and how it is launched.
struct Variant {
    kernel: &'static str,
    queries: usize,
    threads: usize,
    /// Tokens that are worth a block of their own.
    min_tokens: usize,
    max_dim: usize,
}

const DECODE: [Variant; 4] = [
    decode("attention_decode_1", 1),
    decode("attention_decode_2", 2),
    decode("attention_decode_4", 4),
    decode("attention_decode_8", 8),
];
const PREFILL: [Variant; 2] =
    [prefill("attention_prefill_32", 32, 128), prefill("attention_prefill_16", 16, 256)];

const fn decode(kernel: &'static str, queries: usize) -> Variant {
    Variant { kernel, queries, threads: 128, min_tokens: 256, max_dim: 256 }
}

const fn prefill(kernel: &'static str, queries: usize, max_dim: usize) -> Variant {
    Variant { kernel, queries, threads: 256, min_tokens: 1024, max_dim }
}

impl Variant {
    /// The kernel for a KV head's queries in one span.
    fn of(num_queries: usize, num_rows: usize, dim: usize) -> &'static Self {
        let variants: &[_] = match num_rows {
            2.. if num_queries > MAX_DECODE_QUERIES => &PREFILL,
            _ => &DECODE,
        };
        let fits = |variant: &&Self| variant.queries >= num_queries && variant.max_dim >= dim;
        let widest = || variants.iter().rfind(|variant| variant.max_dim >= dim);
        let of_tiles = variants.iter().find(|variant| variant.max_dim >= dim);
        match num_rows {
            2.. if num_queries > MAX_DECODE_QUERIES => of_tiles,
            _ => variants.iter().find(fits).or_else(widest),
        }
        .expect("head sizes were checked")
    }

    fn is_decode(&self) -> bool {
        self.threads == DECODE[0].threads
    }

    /// As the kernels lay out their shared memory.
    fn shared_bytes(&self, dim: usize) -> usize {
        const LEVELS: usize = 128;
        const FLOAT: usize = size_of::<f32>();
        if self.is_decode() {
            // Queries, whose place each team's part takes: 4 warps of 32 / (D / 8) teams.
            let teams = 4 * (32 / (dim / 8));
            LEVELS + 8 * self.queries.max(2) + teams * self.queries * (dim + 2) * FLOAT
        } else {
            // Scores, and for as many tokens as queries: page, place, position; then q, and K or V.
            let tokens = self.queries;
            let scores = self.queries * tokens + 3 * tokens;
            LEVELS + (scores + (self.queries + tokens) * (dim + 4)) * FLOAT
        }
    }
}

/// The jobs of one step and layer, and how their parts make up the output.
struct Jobs {
    /// In the order of [`DECODE`], then [`PREFILL`].
    by_variant: Vec<(&'static Variant, Vec<AttentionJob>)>,
    merges: Vec<Merge>,
    num_parts: usize,
}

/// See [`crate::Backend::attention`].
pub fn attention<G: Gpu>(
    cuda: &Cuda<G>,
    arena: &Arena,
    layer: usize,
    q: &Tensor,
    plan: &AttentionPlan,
) -> Result<Attended> {
    let dim = arena.layout().head_dim;
    let cache = cuda.resident.cache(OP, arena)?;
    let heads = Heads::new(OP, q, dim, plan)?;
    let (pages, starts) = layer_pages(OP, arena, layer, plan)?;
    let most = cuda.gpu.num_multiprocessors() * BLOCKS_PER_MULTIPROCESSOR;
    let jobs = Jobs::new(&heads, dim, plan, (&pages, &starts), most);
    let gpu = &*cuda.gpu;
    let pages = cuda.resident.keep("pages", &pages)?;
    let positions = cuda.resident.keep("positions", &plan.positions)?;
    let floats = |len: usize| gpu.alloc(len * size_of::<f32>());
    let parts = [floats(jobs.num_parts * dim)?, floats(jobs.num_parts)?, floats(jobs.num_parts)?];
    let [part_out, part_max, part_sum] = parts.each_ref().map(|part| gpu.address(part));
    gpu.with_addresses(OP, &[q], |from| {
        for (variant, jobs) in &jobs.by_variant {
            let args = AttentionArgs {
                cache,
                q: from[0],
                positions: gpu.address(&positions),
                pages: gpu.address(&pages),
                jobs: 0,
                part_out,
                part_max,
                part_sum,
                num_heads: heads.num_heads as u32,
                group: heads.group as u32,
                window: plan.window.unwrap_or(u32::MAX),
                unused: 0,
            };
            launch_jobs(gpu, variant, jobs, args)?;
        }
        Ok(())
    })?;
    let merges = gpu.upload(&jobs.merges)?;
    let launch = Launch {
        kernel: "attention_merge",
        grid: [jobs.merges.len(), 1],
        threads: dim.next_multiple_of(32),
        shared_bytes: dim * size_of::<f32>(),
    };
    let mut out = None;
    let lse = gpu.output((heads.num_rows, heads.num_heads), |lse| {
        let merged = gpu.output((heads.num_rows, heads.num_heads * dim), |out| {
            let merges = gpu.address(&merges);
            let head_dim = dim as u32;
            let args =
                MergeArgs { out, lse, part_out, part_max, part_sum, merges, head_dim, unused: 0 };
            // SAFETY: each merge names parts that the jobs left.
            unsafe { gpu.launch(launch, &args) }
        });
        out = Some(merged?);
        Ok(())
    })?;
    Ok(Attended { out: out.expect("filled with lse"), lse })
}

fn launch_jobs<G: Gpu>(
    gpu: &G,
    variant: &Variant,
    jobs: &[AttentionJob],
    args: AttentionArgs,
) -> Result<()> {
    let uploaded = gpu.upload(jobs)?;
    let args = AttentionArgs { jobs: gpu.address(&uploaded), ..args };
    let launch = Launch {
        kernel: variant.kernel,
        grid: [jobs.len(), 1],
        threads: variant.threads,
        shared_bytes: variant.shared_bytes(args.cache.head_dim as usize),
    };
    // SAFETY: rows, pages and parts of the jobs were counted from the plan, which was checked.
    unsafe { gpu.launch(launch, &args) }
}

/// All pages of a layer, and where those of each (span, KV head) start.
pub fn layer_pages(
    op: &'static str,
    arena: &Arena,
    layer: usize,
    plan: &AttentionPlan,
) -> Result<(Vec<Page>, Vec<usize>)> {
    let (mut pages, mut starts) = (Vec::new(), vec![0]);
    for span in 0..plan.spans.len() {
        for kv_head in 0..plan.num_kv_heads {
            pages.extend(memory::pages(op, arena, plan.pages(layer, span, kv_head))?);
            starts.push(pages.len());
        }
    }
    Ok((pages, starts))
}

impl Jobs {
    fn new(
        heads: &Heads,
        dim: usize,
        plan: &AttentionPlan,
        (pages, starts): (&[Page], &[usize]),
        max_blocks: usize,
    ) -> Self {
        let by_variant = DECODE.iter().chain(&PREFILL).map(|v| (v, Vec::new())).collect();
        let nothing = Merge { first: 0, stride: 0, count: 0 };
        let merges = vec![nothing; heads.num_rows * heads.num_heads];
        let mut jobs = Self { by_variant, merges, num_parts: 0 };
        let num_groups = plan.spans.len() * plan.num_kv_heads;
        for (group, range) in starts.windows(2).enumerate() {
            let (span, kv_head) = (group / plan.num_kv_heads, group % plan.num_kv_heads);
            let rows = &plan.spans[span].rows;
            let variant = Variant::of(rows.len() * heads.group, rows.len(), dim);
            let tokens: usize = pages[range[0]..range[1]].iter().map(|p| usize::from(p.len)).sum();
            let num_tiles = (rows.len() * heads.group).div_ceil(variant.queries);
            let most = max_blocks.div_ceil(num_groups * num_tiles.max(1));
            let splits = tokens.div_ceil(variant.min_tokens).clamp(1, most);
            for tile in 0..num_tiles {
                jobs.add_tile(
                    heads,
                    variant,
                    (rows.start, rows.len(), kv_head, tile),
                    range,
                    splits,
                );
            }
        }
        jobs.by_variant.retain(|(_, jobs)| !jobs.is_empty());
        jobs
    }

    /// The queries of a tile over `splits` runs of the pages `range[0]..range[1]`.
    fn add_tile(
        &mut self,
        heads: &Heads,
        variant: &Variant,
        (first_row, num_rows, kv_head, tile): (usize, usize, usize, usize),
        range: &[usize],
        splits: usize,
    ) {
        let queries =
            tile * variant.queries..((tile + 1) * variant.queries).min(num_rows * heads.group);
        let first_part = self.num_parts;
        let (_, jobs) = self
            .by_variant
            .iter_mut()
            .find(|(known, _)| known.kernel == variant.kernel)
            .expect("all are there");
        for split in 0..splits {
            let page = |split: usize| (range[0] + (range[1] - range[0]) * split / splits) as u32;
            jobs.push(AttentionJob {
                page_start: page(split),
                page_end: page(split + 1),
                first_row: first_row as u32,
                kv_head: kv_head as u32,
                query_start: queries.start as u32,
                query_end: queries.end as u32,
                part: self.num_parts as u32,
                unused: 0,
            });
            self.num_parts += queries.len();
        }
        for query in queries.clone() {
            let row = first_row + query / heads.group;
            let head = kv_head * heads.group + query % heads.group;
            self.merges[row * heads.num_heads + head] = Merge {
                first: (first_part + query - queries.start) as u32,
                stride: queries.len() as u32,
                count: splits as u32,
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_variant_keeps_to_48_kib_of_shared_memory() {
        for variant in DECODE.iter().chain(&PREFILL) {
            for dim in (8..=variant.max_dim).step_by(8) {
                assert!(variant.shared_bytes(dim) <= 48 << 10, "{} {dim}", variant.kernel);
            }
        }
    }

    #[test]
    fn few_queries_take_the_smallest_decode_kernel_and_many_take_a_tile() {
        let kernel = |queries, rows, dim| Variant::of(queries, rows, dim).kernel;
        assert_eq!(kernel(1, 1, 64), "attention_decode_1");
        assert_eq!(kernel(3, 1, 256), "attention_decode_4");
        assert_eq!(kernel(9, 3, 64), "attention_decode_8");
        assert_eq!(kernel(100, 1, 64), "attention_decode_8");
        assert_eq!(kernel(17, 17, 64), "attention_prefill_32");
        assert_eq!(kernel(17, 17, 256), "attention_prefill_16");
    }
}
