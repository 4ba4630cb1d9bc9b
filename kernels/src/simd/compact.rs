//! Moving tokens between slots and tiers: [`crate::portable::compact`] with vectors and threads.
//!
//! Every token is first coded for its new place into a record: what its page will hold of it, run
//! after run. Only then are records written to pages.

use rayon::prelude::*;

use super::{Op, Simd, attention::tile::Vectors};
use crate::{
    Arena, Move, PageLayout, TIERS,
    page::{PageArrays, TierInfo},
};

/// Moves that pay for handing work to another thread.
const MOVES_PER_CHUNK: usize = 256;
/// Runs of a token in its page: K and V codes, K and V scales, position, attribution.
const NUM_RUNS: usize = 6;
const METADATA_BYTES: usize = 4;

/// See [`crate::Backend::compact`].
pub fn compact<S: Simd>(simd: S, arena: &mut Arena, moves: &[Move]) {
    let layouts = TIERS.each_ref().map(|info| Runs::new(arena.layout(), info));
    let bytes = |moves: &[Move]| moves.iter().map(|m| layouts[m.to_tier as usize].bytes).sum();
    let mut records = vec![0u8; bytes(moves)];
    let mut chunks = Vec::with_capacity(moves.len().div_ceil(MOVES_PER_CHUNK));
    let mut rest = &mut records[..];
    for moves in moves.chunks(MOVES_PER_CHUNK) {
        let (records, after) = rest.split_at_mut(bytes(moves));
        chunks.push(Chunk { moves, records });
        rest = after;
    }
    let source = &*arena;
    chunks.par_iter_mut().for_each(|Chunk { moves, records }| {
        simd.vectorize(Record { arena: source, layouts: &layouts, moves, records });
    });
    for chunk in &chunks {
        chunk.set_down(arena, &layouts);
    }
}

/// Moves, and the records of their tokens.
struct Chunk<'a> {
    moves: &'a [Move],
    records: &'a mut [u8],
}

impl Chunk<'_> {
    fn set_down(&self, arena: &mut Arena, layouts: &[Runs; TIERS.len()]) {
        let mut records = &*self.records;
        for m in self.moves {
            let runs = &layouts[m.to_tier as usize];
            let (record, after) = records.split_at(runs.bytes);
            runs.write(arena.page_mut(m.to.page), usize::from(m.to.index), record);
            records = after;
        }
    }
}

/// Where a page of one tier holds the runs of a token.
struct Runs {
    info: &'static TierInfo,
    at: PageArrays,
    /// (start of the array in the page, bytes of one token)
    runs: [(usize, usize); NUM_RUNS],
    /// Bytes of a record.
    bytes: usize,
}

impl Runs {
    fn new(layout: &PageLayout, info: &'static TierInfo) -> Self {
        let at = *layout.arrays(info.tier);
        let runs = [
            (at.keys, at.key_bytes),
            (at.values, at.value_bytes),
            (at.key_scales, info.key.scale_bytes()),
            (at.value_scales, info.value.scale_bytes()),
            (at.positions, 2),
            (at.attributions, 2),
        ];
        Self { info, at, runs, bytes: runs.iter().map(|(_, bytes)| bytes).sum() }
    }

    #[inline(always)]
    fn read(&self, page: &[u8], index: usize, mut record: &mut [u8]) {
        for (start, bytes) in self.runs {
            let (run, rest) = record.split_at_mut(bytes);
            run.copy_from_slice(&page[start + index * bytes..][..bytes]);
            record = rest;
        }
    }

    fn write(&self, page: &mut [u8], index: usize, mut record: &[u8]) {
        for (start, bytes) in self.runs {
            let (run, rest) = record.split_at(bytes);
            page[start + index * bytes..][..bytes].copy_from_slice(run);
            record = rest;
        }
    }
}

/// Fills the records of some moves.
struct Record<'a> {
    arena: &'a Arena,
    layouts: &'a [Runs; TIERS.len()],
    moves: &'a [Move],
    records: &'a mut [u8],
}

impl<S: Simd> Op<S> for Record<'_> {
    type Out = ();

    #[inline(always)]
    fn run(self, simd: S) {
        let mut x = vec![0f32; self.arena.layout().head_dim];
        let mut unpacked = Vec::new();
        let mut records = self.records;
        for m in self.moves {
            let to = &self.layouts[m.to_tier as usize];
            let (record, rest) = records.split_at_mut(to.bytes);
            let page = self.arena.page(m.from.page);
            let from = &self.layouts[m.from_tier as usize];
            if m.from_tier == m.to_tier {
                from.read(page, usize::from(m.from.index), record);
            } else {
                recode(
                    simd,
                    (from, page, usize::from(m.from.index)),
                    to,
                    (&mut x, &mut unpacked),
                    record,
                );
            }
            let offset = to.bytes - METADATA_BYTES;
            record[offset..offset + 2].copy_from_slice(&m.offset.to_le_bytes());
            records = rest;
        }
    }
}

/// Fills a record with a token of another tier.
#[inline(always)]
fn recode<S: Simd>(
    simd: S,
    (from, page, index): (&Runs, &[u8], usize),
    to: &Runs,
    (x, unpacked): (&mut [f32], &mut Vec<u8>),
    record: &mut [u8],
) {
    let (codes, rest) = record.split_at_mut(to.at.key_bytes + to.at.value_bytes);
    let (keys, values) = codes.split_at_mut(to.at.key_bytes);
    let (key_scale, rest) = rest.split_at_mut(to.info.key.scale_bytes());
    let (value_scale, metadata) = rest.split_at_mut(to.info.value.scale_bytes());
    for (format, codes, scales, coded) in [
        (from.info.key, from.at.keys, from.at.key_scales, (to.info.key, keys, key_scale)),
        (
            from.info.value,
            from.at.values,
            from.at.value_scales,
            (to.info.value, values, value_scale),
        ),
    ] {
        let (to, coded, scale) = coded;
        if format == to {
            // A part that keeps its format loses nothing once more.
            coded.copy_from_slice(&page[codes + index * coded.len()..][..coded.len()]);
            scale.copy_from_slice(&page[scales + index * scale.len()..][..scale.len()]);
            continue;
        }
        let tokens = index..index + 1;
        Vectors { format, page, codes, scales, tokens }.decode(
            simd,
            (x.len(), x.len()),
            x,
            unpacked,
        );
        let byte = to.encode(x, coded);
        scale.fill(byte);
    }
    let attribution = from.at.attributions + 2 * index;
    metadata[2..].copy_from_slice(&page[attribution..attribution + 2]);
}
