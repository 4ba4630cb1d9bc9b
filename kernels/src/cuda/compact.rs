//! Launches of `compact.cu`.

use std::collections::HashSet;

use super::{
    Cuda,
    args::{CompactArgs, CopyPagesArgs, MoveToken, PagePair},
    gpu::{Gpu, Launch},
    memory::check_slot,
};
use crate::{Arena, Error, Move, PageId, Result};

const OP: &str = "compact";
/// Moves of a block, one to a warp.
const WARPS: usize = 4;
/// Scales and attribution, beside the codes of a staged token.
const REST_BYTES: usize = 4;

/// See [`crate::Backend::compact`].
pub fn compact<G: Gpu>(cuda: &Cuda<G>, arena: &mut Arena, moves: &[Move]) -> Result<()> {
    if moves.is_empty() {
        return Ok(());
    }
    let cache = cuda.resident.cache(OP, arena)?;
    let layout = *arena.layout();
    let staged = |m: &Move| {
        let at = layout.arrays(m.to_tier);
        at.key_bytes + at.value_bytes + REST_BYTES
    };
    let stride = moves.iter().map(staged).max().unwrap_or(0).next_multiple_of(16);
    let entries = moves.iter().map(|m| entry(arena, m)).collect::<Result<Vec<_>>>()?;
    let gpu = &*cuda.gpu;
    let uploaded = gpu.upload(&entries)?;
    let staging = gpu.alloc(moves.len() * stride)?;
    let args = CompactArgs {
        cache,
        moves: gpu.address(&uploaded),
        staging: gpu.address(&staging),
        num_moves: moves.len() as u32,
        stride: stride as u32,
    };
    let launch = |kernel, shared_bytes| Launch {
        kernel,
        grid: [moves.len().div_ceil(WARPS), 1],
        threads: WARPS * 32,
        shared_bytes,
    };
    // SAFETY: all slots were checked, and staging has `stride` bytes for each move.
    unsafe {
        gpu.launch(launch("compact_lift", 128 + WARPS * layout.head_dim * 4), &args)?;
        gpu.launch(launch("compact_set_down", 0), &args)
    }
}

/// See [`crate::Backend::copy_pages`].
pub fn copy_pages<G: Gpu>(
    cuda: &Cuda<G>,
    arena: &mut Arena,
    pages: &[(PageId, PageId)],
) -> Result<()> {
    const OP: &str = "copy_pages";
    const THREADS: usize = 128;
    if pages.is_empty() {
        return Ok(());
    }
    let cache = cuda.resident.cache(OP, arena)?;
    let is_there = |page: &PageId| (page.0 as usize) < arena.num_pages();
    if let Some((from, to)) = pages.iter().find(|(from, to)| !is_there(from) || !is_there(to)) {
        return Err(Error::shape(OP, format!("{from:?} or {to:?} has no place")));
    }
    let sources: HashSet<PageId> = pages.iter().map(|(from, _)| *from).collect();
    let mut written = HashSet::with_capacity(pages.len());
    if let Some((_, to)) = pages.iter().find(|(_, to)| sources.contains(to) || !written.insert(*to))
    {
        return Err(Error::shape(OP, format!("{to:?} is read or written besides")));
    }
    let pairs: Vec<_> =
        pages.iter().map(|(from, to)| PagePair { from: from.0, to: to.0 }).collect();
    let gpu = &*cuda.gpu;
    let uploaded = gpu.upload(&pairs)?;
    let args = CopyPagesArgs {
        arena: cache.arena,
        pairs: gpu.address(&uploaded),
        page_bytes: u64::from(cache.page_bytes),
    };
    let grid = [pages.len(), 1];
    let launch = Launch { kernel: "copy_pages", grid, threads: THREADS, shared_bytes: 0 };
    // SAFETY: all pages were seen to be there, and are whole lines.
    unsafe { gpu.launch(launch, &args) }
}

fn entry(arena: &Arena, m: &Move) -> Result<MoveToken> {
    check_slot(OP, arena, m.from, m.from_tier)?;
    check_slot(OP, arena, m.to, m.to_tier)?;
    Ok(MoveToken {
        from_page: m.from.page.0,
        to_page: m.to.page.0,
        from_index: m.from.index,
        to_index: m.to.index,
        offset: m.offset,
        from_tier: m.from_tier as u8,
        to_tier: m.to_tier as u8,
    })
}
