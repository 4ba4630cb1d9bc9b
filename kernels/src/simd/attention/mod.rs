//! Softmax attention over pages of mixed tiers, as [`crate::portable::attention`] specifies it.
//!
//! The work is cut twice: rows of a sequence into blocks, and the pages of a KV head into parts of
//! about equal work, so that one long sequence keeps all threads busy. A part reads each page once
//! for all query heads of the group: few queries work on the codes, many on tiles of decoded tokens.
//! The parts' running sums are merged row by row.

pub mod attribution;
mod codes;
pub mod direct;
mod direct_signals;
pub mod pieces;
mod product;
pub mod signals;
pub mod softmax;
pub mod tile;
#[cfg(not(target_arch = "x86_64"))]
pub mod uncoded;

use std::{
    cell::{Cell, RefCell},
    ops::Range,
};

use candle_core::Tensor;
use rayon::prelude::*;

#[cfg(not(target_arch = "x86_64"))]
pub use self::uncoded as coded;
#[cfg(target_arch = "x86_64")]
pub(crate) use crate::x86::coded;

use self::{
    coded::{Coded, QueryCodes, serves_many},
    direct::{Direct, MAX_QUERIES},
    pieces::{Pages, TOKENS},
    softmax::{Partial, Queries},
    tile::Tile,
};
use crate::simd::{Op, Simd, exp2, rotate_back};
use crate::{
    Arena, Attended, AttentionPlan, PageRef, Result,
    portable::attention::Heads,
    team::each_chunk,
    tensor::{MOST_ROWS_KEPT, output, with_slice},
};

/// Queries that share the decoding of a tile.
const QUERIES_PER_ITEM: usize = 192;
/// Tokens of a part: some microseconds of a decoding row's work, as much of a prefilling block's as
/// keeps many threads busy. Not chosen by the number of threads: parts decide how sums are rounded.
const TOKENS_PER_PART: usize = 512;
const TOKENS_PER_TILED_PART: usize = 4096;
/// Rows whose parts are merged on another thread, without a team.
const MIN_ROWS: usize = 16;
/// (block, KV head)s whose queries are prepared on another thread.
const MIN_ASKED: usize = 16;

/// Some rows of a span.
struct Block {
    span: usize,
    rows: Range<usize>,
    /// Parts into which the pages of each KV head are cut.
    parts: usize,
    /// Number of the block's first item.
    first_item: usize,
}

/// One part of the pages of a KV head, for the rows of a block.
struct Item {
    /// Number of (block, KV head).
    asked: usize,
    /// Of the plan's pages.
    pages: Range<usize>,
}

/// The queries of a block to one KV head.
#[derive(Default)]
struct Asked {
    queries: Queries,
    /// In integers, where codes are multiplied as such.
    codes: QueryCodes,
    is_coded: bool,
}

/// See [`crate::Backend::attention`].
pub fn attention<S: Simd>(
    simd: S,
    arena: &Arena,
    layer: usize,
    q: &Tensor,
    plan: &AttentionPlan,
) -> Result<Attended> {
    let head_dim = arena.layout().head_dim;
    let heads = Heads::new("attention", q, head_dim, plan)?;
    let step = Step { simd, arena, plan, heads: &heads };
    let mut buffers = BUFFERS.take();
    buffers.cut(layer, &heads, plan);
    let Buffers { blocks, items, owners, asked, partials } = &mut buffers;
    with_slice("attention", q, |q| step.ask(q, blocks, asked))?;
    each_chunk([(&mut partials[..items.len()], 1)], 1, |i, [partial]| {
        let Item { asked: index, pages } = &items[i];
        let (asked, pages) = (&asked[*index], Pages::new(&plan.pages, pages.clone()));
        with_scratch(head_dim, |scratch| step.attend(asked, pages, scratch, &mut partial[0]));
    });
    let width = heads.num_heads * head_dim;
    let mut lse = None;
    let out = output("attention", (heads.num_rows, width), |out| {
        lse = Some(output("attention", (heads.num_rows, heads.num_heads), |lse| {
            let chunks = [(out, heads.group * head_dim), (lse, heads.group)];
            each_chunk(chunks, MIN_ROWS * plan.num_kv_heads, |i, to| {
                let (row, kv_head) = (i / plan.num_kv_heads, i % plan.num_kv_heads);
                let owner = owners[row].map(|index| &blocks[index]);
                step.merge(owner, (row, kv_head), partials, to);
            });
            Ok(())
        })?);
        Ok(())
    })?;
    if heads.num_rows <= MOST_ROWS_KEPT {
        BUFFERS.set(buffers);
    }
    Ok(Attended { out, lse: lse.expect("filled with out") })
}

/// Cuts the rows of each span.
fn cut_rows(layer: usize, heads: &Heads, plan: &AttentionPlan, blocks: &mut Vec<Block>) {
    let rows_per_block = (QUERIES_PER_ITEM / heads.group).max(1);
    blocks.clear();
    for (index, span) in plan.spans.iter().enumerate() {
        for start in span.rows.clone().step_by(rows_per_block) {
            let rows = start..(start + rows_per_block).min(span.rows.end);
            blocks.push(Block { span: index, rows, parts: 0, first_item: 0 });
        }
    }
    let mut first_item = 0;
    for block in blocks {
        let is_tiled = block.rows.len() * heads.group > MAX_QUERIES;
        let part = if is_tiled { TOKENS_PER_TILED_PART } else { TOKENS_PER_PART };
        block.parts = (num_tokens(plan.pages(layer, block.span, 0)) / part).max(1);
        block.first_item = first_item;
        first_item += block.parts * plan.num_kv_heads;
    }
}

fn num_tokens(pages: &[PageRef]) -> usize {
    pages.iter().map(|page| usize::from(page.len)).sum()
}

/// Cuts the pages of each block: its items are ordered by KV head, then by part.
fn cut_pages(layer: usize, blocks: &[Block], plan: &AttentionPlan, items: &mut Vec<Item>) {
    items.clear();
    for (index, block) in blocks.iter().enumerate() {
        for kv_head in 0..plan.num_kv_heads {
            let asked = index * plan.num_kv_heads + kv_head;
            let of_head = plan.page_range(layer, block.span, kv_head);
            let cut = |part: usize| of_head.start + of_head.len() * part / block.parts;
            items.extend(
                (0..block.parts).map(|part| Item { asked, pages: cut(part)..cut(part + 1) }),
            );
        }
    }
}

/// To at least `len`: what the next layer asks for again is not freed.
fn grow<T: Default>(values: &mut Vec<T>, len: usize) {
    if values.len() < len {
        values.resize_with(len, T::default);
    }
}

/// How a step is cut, and what its parts ask and find, in memory that a thread keeps from its last step of
/// few rows: a long sequence has hundreds of parts in each layer.
#[derive(Default)]
struct Buffers {
    blocks: Vec<Block>,
    items: Vec<Item>,
    /// The block of each row.
    owners: Vec<Option<usize>>,
    /// By (block, KV head), and more.
    asked: Vec<Asked>,
    /// By item, and more.
    partials: Vec<Partial>,
}

thread_local!(static BUFFERS: Cell<Buffers> = Cell::default());

impl Buffers {
    fn cut(&mut self, layer: usize, heads: &Heads, plan: &AttentionPlan) {
        let Self { blocks, items, owners, asked, partials } = self;
        cut_rows(layer, heads, plan, blocks);
        cut_pages(layer, blocks, plan, items);
        owners.clear();
        owners.resize(heads.num_rows, None);
        for (index, block) in blocks.iter().enumerate() {
            owners[block.rows.clone()].fill(Some(index));
        }
        grow(asked, blocks.len() * plan.num_kv_heads);
        grow(partials, items.len());
    }
}

/// What a thread works in: made once, for the last head size.
struct Scratch {
    head_dim: usize,
    tile: Tile,
    /// (D, TOKENS): the tile's values.
    turned: Vec<f32>,
    direct: Direct,
    coded: Coded,
}

impl Scratch {
    fn new(head_dim: usize) -> Self {
        let tile = Tile::new(head_dim);
        let turned = vec![0.0; tile.stride * TOKENS];
        Self { head_dim, tile, turned, direct: Direct::new(), coded: Coded::new(head_dim) }
    }
}

fn with_scratch<R>(head_dim: usize, work: impl FnOnce(&mut Scratch) -> R) -> R {
    thread_local!(static SCRATCH: RefCell<Option<Scratch>> = const { RefCell::new(None) });
    SCRATCH.with_borrow_mut(|scratch| {
        if scratch.as_ref().is_none_or(|scratch| scratch.head_dim != head_dim) {
            *scratch = Some(Scratch::new(head_dim));
        }
        work(scratch.as_mut().expect("made above"))
    })
}

/// What all items of a step share.
struct Step<'a, S> {
    simd: S,
    arena: &'a Arena,
    plan: &'a AttentionPlan,
    heads: &'a Heads,
}

impl<S: Simd> Step<'_, S> {
    /// The queries of each (block, KV head); q (T, H * D).
    fn ask(&self, q: &[f32], blocks: &[Block], asked: &mut [Asked]) {
        let kv_heads = self.plan.num_kv_heads;
        let head_dim = self.arena.layout().head_dim;
        let wide = self.simd.wide().filter(|_| Coded::serves(head_dim));
        let asked = &mut asked[..blocks.len() * kv_heads];
        asked.par_iter_mut().enumerate().with_min_len(MIN_ASKED).for_each(|(i, asked)| {
            let queries = &mut asked.queries;
            self.fill(queries, q, &blocks[i / kv_heads], i % kv_heads);
            let is_direct = Direct::serves::<S>(queries.visible.len(), head_dim);
            let wide = wide.filter(|wide| is_direct || serves_many(*wide));
            asked.is_coded = wide.is_some();
            if let Some(wide) = wide {
                asked.codes.fill(wide, &queries.data, head_dim, !is_direct);
            }
        });
    }

    fn attend(&self, asked: &Asked, pages: Pages, scratch: &mut Scratch, partial: &mut Partial) {
        let Scratch { tile, direct, coded, .. } = scratch;
        let Asked { queries, codes, is_coded } = asked;
        partial.restart(queries.visible.len(), tile.stride);
        let is_direct = Direct::serves::<S>(queries.visible.len(), tile.head_dim);
        if let Some(wide) = self.simd.wide().filter(|_| *is_coded) {
            for (is_float, pages) in pages.runs() {
                if is_direct && is_float {
                    direct.attend(self.simd, self.arena, pages, queries, partial);
                } else {
                    coded.attend(wide, self.arena, pages, (queries, codes), partial);
                }
            }
            return;
        }
        if is_direct {
            return direct.attend(self.simd, self.arena, pages, queries, partial);
        }
        let starts = queries.visible.iter().map(|visible| visible.start);
        let ends = queries.visible.iter().map(|visible| visible.end);
        let wanted = starts.min().unwrap_or(0)..ends.max().unwrap_or(0);
        tile.each(self.simd, self.arena, pages, wanted, |tile| {
            partial.add(self.simd, queries, tile);
        });
    }

    /// The queries that rows of q (T, H * D) put to a KV head.
    fn fill(&self, queries: &mut Queries, q: &[f32], block: &Block, kv_head: usize) {
        let Heads { num_heads, group, .. } = *self.heads;
        let head_dim = self.arena.layout().head_dim;
        let scale = std::f32::consts::LOG2_E / (head_dim as f32).sqrt();
        queries.data.clear();
        queries.visible.clear();
        let Block { rows, span, .. } = block;
        // Nothing is cached behind the last row.
        let is_last = rows.len() == 1 && rows.end == self.plan.spans[*span].rows.end;
        queries.sees_all = is_last && self.plan.window.is_none();
        for row in rows.clone() {
            let start = (row * num_heads + kv_head * group) * head_dim;
            queries.data.extend(q[start..start + group * head_dim].iter().map(|q| q * scale));
            let visible = self.plan.visible(self.plan.positions[row]);
            queries.visible.extend(std::iter::repeat_n(visible, group));
        }
    }

    /// Joins the parts of a row's queries to one KV head: out (group * D), lse (group). A row of no block
    /// sees nothing.
    fn merge(
        &self,
        block: Option<&Block>,
        (row, kv_head): (usize, usize),
        partials: &[Partial],
        [out, lse]: [&mut [f32]; 2],
    ) {
        out.fill(0.0);
        lse.fill(0.0);
        let Some(block) = block else { return };
        let first = block.first_item + kv_head * block.parts;
        let parts = &partials[first..first + block.parts];
        let outs = out.chunks_exact_mut(self.arena.layout().head_dim);
        for (query, (out, lse)) in
            ((row - block.rows.start) * self.heads.group..).zip(outs.zip(lse))
        {
            *lse = self.simd.vectorize(Merge { parts, query, out });
        }
    }
}

/// Writes the output of a query and returns its log-sum-exp.
struct Merge<'a> {
    parts: &'a [Partial],
    query: usize,
    out: &'a mut [f32],
}

impl<S: Simd> Op<S> for Merge<'_> {
    type Out = f32;

    #[inline(always)]
    fn run(self, simd: S) -> f32 {
        let Self { parts, query, out } = self;
        let largest = parts.iter().fold(f32::NEG_INFINITY, |m, part| m.max(part.largest[query]));
        if largest == f32::NEG_INFINITY {
            return largest;
        }
        let mut sum = 0.0;
        for part in parts {
            sum += exp2(part.largest[query] - largest) * part.sums[query];
        }
        for part in parts {
            let factor = exp2(part.largest[query] - largest) / sum;
            for (out, o) in out.iter_mut().zip(part.row(query)) {
                *out += factor * o;
            }
        }
        rotate_back(simd, out);
        (largest + sum.log2()) * std::f32::consts::LN_2
    }
}
