//! How the attention of one layer is cut into jobs, one to a block, and its output put together again.

use super::args::{AttentionJob, Merge};
use crate::AttentionPlan;

/// More queries of a KV head than this are worth a tile.
const MAX_DECODE_QUERIES: usize = 16;
const SHARED_BYTES: usize = 48 << 10;

/// One of the kernels: how many queries a block takes, and how it is launched.
#[derive(Debug)]
pub struct Variant {
    pub kernel: &'static str,
    pub threads: usize,
    kind: Kind,
    queries: usize,
    /// Tokens that are worth a block of their own.
    min_tokens: usize,
    max_dim: usize,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Decode,
    Tile,
    /// On tensor cores, with tiles of so many tokens.
    Mma(usize),
}

const DECODE: [Variant; 4] = [
    decode("attention_decode_1", 1),
    decode("attention_decode_2", 2),
    decode("attention_decode_4", 4),
    decode("attention_decode_8", 8),
];
const TILE: [Variant; 2] =
    [tile("attention_prefill_32", 32, 128), tile("attention_prefill_16", 16, 256)];
const MMA: [Variant; 2] =
    [mma("attention_prefill_mma_64", 64, 32, 128), mma("attention_prefill_mma_32", 32, 16, 256)];

const fn decode(kernel: &'static str, queries: usize) -> Variant {
    let (kind, threads) = (Kind::Decode, 128);
    Variant { kernel, kind, queries, threads, min_tokens: 256, max_dim: 256 }
}

const fn tile(kernel: &'static str, queries: usize, max_dim: usize) -> Variant {
    let (kind, threads) = (Kind::Tile, 256);
    Variant { kernel, kind, queries, threads, min_tokens: 1024, max_dim }
}

const fn mma(kernel: &'static str, queries: usize, tokens: usize, max_dim: usize) -> Variant {
    let (kind, threads) = (Kind::Mma(tokens), 2 * queries);
    Variant { kernel, kind, queries, threads, min_tokens: 1024, max_dim }
}

impl Variant {
    fn all() -> impl Iterator<Item = &'static Self> {
        DECODE.iter().chain(&TILE).chain(&MMA)
    }

    /// The kernel for a KV head's queries in one span.
    fn of(num_queries: usize, num_rows: usize, dim: usize, tensor_cores: bool) -> &'static Self {
        let fits = |variant: &&Self| variant.max_dim >= dim;
        let found = match num_queries > MAX_DECODE_QUERIES {
            true if tensor_cores => MMA.iter().find(fits),
            true if num_rows > 1 => TILE.iter().find(fits),
            _ => DECODE.iter().find(|v| v.queries >= num_queries).or_else(|| DECODE.last()),
        };
        found.expect("head sizes were checked")
    }

    /// Of a block, as the kernels lay it out; and whether it has room for pages to come while others
    /// are worked on.
    pub fn shared_bytes(&self, dim: usize, page_bytes: usize) -> (usize, bool) {
        const LEVELS: usize = 128;
        const FLOAT: usize = size_of::<f32>();
        match self.kind {
            Kind::Decode => {
                // Queries and two pages of each warp, whose place each team's part takes: 4 warps of
                // 32 / (D / 8) teams.
                let (warps, teams) = (4, 4 * (32 / (dim / 8)));
                let before = LEVELS + 8 * self.queries.max(2);
                let parts = before + teams * self.queries * (dim + 2) * FLOAT;
                let pages = before + self.queries * dim * FLOAT + warps * 2 * page_bytes;
                match pages <= SHARED_BYTES {
                    true => (parts.max(pages), true),
                    false => (parts, false),
                }
            }
            Kind::Tile => {
                // Scores, and for as many tokens as queries: page, place, position; then q, K or V.
                let tokens = self.queries;
                let scores = self.queries * tokens + 3 * tokens;
                (LEVELS + (scores + (self.queries + tokens) * (dim + 4)) * FLOAT, false)
            }
            Kind::Mma(tokens) => {
                // Five numbers of a token and three of a query; then halves of q, twice, and K or V.
                let stride = dim.next_multiple_of(16) + 8;
                let numbers = 5 * tokens + 4 + 3 * self.queries;
                (LEVELS + numbers * FLOAT + (2 * self.queries + tokens) * stride * 2, false)
            }
        }
    }
}

/// What decides how a layer's attention is cut, beside the plan.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shape {
    pub dim: usize,
    /// Query heads of a KV head.
    pub group: usize,
    /// Blocks that keep the device busy.
    pub max_blocks: usize,
    pub tensor_cores: bool,
}

/// The jobs of one step and layer, and how their parts make up the output.
pub struct Jobs {
    pub by_variant: Vec<(&'static Variant, Vec<AttentionJob>)>,
    /// (T, H)
    pub merges: Vec<Merge>,
    pub num_parts: usize,
}

impl Jobs {
    /// Pages are counted as in the plan.
    pub fn new(plan: &AttentionPlan, layer: usize, shape: &Shape) -> Self {
        let nothing = Merge { first: 0, stride: 0, count: 0 };
        let merges = vec![nothing; plan.num_rows() * plan.num_kv_heads * shape.group];
        let by_variant = Variant::all().map(|v| (v, Vec::new())).collect();
        let mut jobs = Self { by_variant, merges, num_parts: 0 };
        for span in 0..plan.spans.len() {
            for kv_head in 0..plan.num_kv_heads {
                jobs.add_group(plan, shape, (layer, span, kv_head));
            }
        }
        jobs.by_variant.retain(|(_, jobs)| !jobs.is_empty());
        jobs
    }

    /// All queries of a KV head in one span.
    fn add_group(
        &mut self,
        plan: &AttentionPlan,
        shape: &Shape,
        (layer, span, kv_head): (usize, usize, usize),
    ) {
        let rows = &plan.spans[span].rows;
        let num_queries = rows.len() * shape.group;
        let variant = Variant::of(num_queries, rows.len(), shape.dim, shape.tensor_cores);
        let pages = plan.pages(layer, span, kv_head);
        let tokens: usize = pages.iter().map(|page| usize::from(page.len)).sum();
        let num_tiles = num_queries.div_ceil(variant.queries);
        let num_groups = plan.spans.len() * plan.num_kv_heads;
        let most = shape.max_blocks.div_ceil(num_groups * num_tiles.max(1));
        let splits = tokens.div_ceil(variant.min_tokens).clamp(1, most);
        for tile in 0..num_tiles {
            let queries = tile * variant.queries..((tile + 1) * variant.queries).min(num_queries);
            for (i, query) in queries.clone().enumerate() {
                let row = rows.start + query / shape.group;
                let head = kv_head * shape.group + query % shape.group;
                self.merges[row * plan.num_kv_heads * shape.group + head] = Merge {
                    first: (self.num_parts + i) as u32,
                    stride: queries.len() as u32,
                    count: splits as u32,
                };
            }
            let pages = plan.page_range(layer, span, kv_head);
            let page = |split: usize| (pages.start + pages.len() * split / splits) as u32;
            for split in 0..splits {
                self.add(
                    variant,
                    AttentionJob {
                        page_start: page(split),
                        page_end: page(split + 1),
                        first_row: rows.start as u32,
                        kv_head: kv_head as u32,
                        query_start: queries.start as u32,
                        query_end: queries.end as u32,
                        part: self.num_parts as u32,
                        unused: 0,
                    },
                );
                self.num_parts += queries.len();
            }
        }
    }

    fn add(&mut self, variant: &Variant, job: AttentionJob) {
        let mut known = self.by_variant.iter_mut();
        let (_, jobs) = known.find(|(v, _)| v.kernel == variant.kernel).expect("all are there");
        jobs.push(job);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::PageLayout;

    fn shared_bytes(variant: &Variant, dim: usize) -> (usize, bool) {
        variant.shared_bytes(dim, PageLayout::new(dim).page_bytes)
    }

    #[test]
    fn every_variant_keeps_to_48_kib_of_shared_memory() {
        for variant in Variant::all() {
            for dim in (8..=variant.max_dim).step_by(8) {
                assert!(shared_bytes(variant, dim).0 <= SHARED_BYTES, "{} {dim}", variant.kernel);
            }
        }
    }

    #[test]
    fn pages_are_fetched_ahead_up_to_head_size_128_and_not_at_256() {
        for variant in &DECODE {
            assert!([16, 64, 96, 128].iter().all(|&dim| shared_bytes(variant, dim).1));
            assert!(!shared_bytes(variant, 256).1);
        }
    }

    #[test]
    fn few_queries_take_the_smallest_decode_kernel_and_many_take_a_tile() {
        let kernel = |queries, rows, dim, mma| Variant::of(queries, rows, dim, mma).kernel;
        for mma in [false, true] {
            assert_eq!(kernel(1, 1, 64, mma), "attention_decode_1");
            assert_eq!(kernel(3, 1, 256, mma), "attention_decode_4");
            assert_eq!(kernel(9, 3, 64, mma), "attention_decode_8");
        }
        assert_eq!(kernel(100, 1, 64, false), "attention_decode_8");
        assert_eq!(kernel(17, 17, 64, false), "attention_prefill_32");
        assert_eq!(kernel(17, 17, 256, false), "attention_prefill_16");
        assert_eq!(kernel(100, 1, 64, true), "attention_prefill_mma_64");
        assert_eq!(kernel(17, 17, 128, true), "attention_prefill_mma_64");
        assert_eq!(kernel(17, 17, 136, true), "attention_prefill_mma_32");
    }
}
