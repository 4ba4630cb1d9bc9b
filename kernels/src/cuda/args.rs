//! What the kernels are told: the structs of `kernels/cuda/args.h`, where the fields are explained.

use crate::{
    PageLayout, TIERS,
    codec::{Format as Codec, LANE, LEVELS, lane_bits},
    page::TierInfo,
};

/// The largest head size: a thread owns 8 channels, a warp 256.
pub const MAX_DIM: usize = 256;
const MAX_LANES: usize = MAX_DIM / LANE;

/// Where something lies on the device.
pub type Address = u64;

/// What is copied to the device as it is.
///
/// # Safety
/// Any bytes are a value of the type, and it has no padding.
pub unsafe trait Plain: Copy {}

/// The bytes of some values.
pub fn bytes_of<T: Plain>(values: &[T]) -> &[u8] {
    // SAFETY: `Plain` has no padding, so every byte is initialized.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) }
}

/// The bytes of some values, to be overwritten.
pub fn bytes_of_mut<T: Plain>(values: &mut [T]) -> &mut [u8] {
    // SAFETY: `Plain` has no padding, and any bytes are a value.
    unsafe { std::slice::from_raw_parts_mut(values.as_mut_ptr().cast(), size_of_val(values)) }
}

macro_rules! plain {
    ($($number:ty)*) => { $(
        // SAFETY: a number.
        unsafe impl Plain for $number {}
    )* };
}
plain!(u8 i8 u16 u32 f32);

/// Declares structs that `args.h` has too, with the size they have there.
macro_rules! structs {
    ($($(#[$doc:meta])* $name:ident $size:literal { $($field:ident: $kind:ty,)* })*) => { $(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq)]
        #[repr(C)]
        pub struct $name {
            $(pub $field: $kind,)*
        }

        const _: () = assert!(size_of::<$name>() == $size && $size == 0 $(+ size_of::<$kind>())*);

        // SAFETY: numbers only, and the sum of their sizes is that of the struct.
        unsafe impl Plain for $name {}
    )* };
}

structs! {
    Format 72 { kind: u32, unit: f32, bits: [u8; MAX_LANES], offsets: [u8; MAX_LANES], }
    Tier 176 {
        keys: u32, values: u32, key_scales: u32, value_scales: u32, positions: u32,
        attributions: u32, key_bytes: u32, value_bytes: u32, key: Format, value: Format,
    }
    Cache 32 { arena: Address, tiers: Address, levels: Address, page_bytes: u32, head_dim: u32, }
    Page 12 { page: u32, base: u32, len: u16, tier: u8, unused: u8, }
    RmsNormArgs 32 { out: Address, x: Address, weight: Address, width: u32, eps: f32, }
    AddArgs 32 { out: Address, x: Address, y: Address, len: u64, }
    SiluMulArgs 32 { out: Address, gate_up: Address, rows: u64, half: u64, }
    WriteSlot 8 { page: u32, index: u16, offset: i16, }
    WriteKvArgs 112 {
        cache: Cache, q: Address, qkv: Address, cos: Address, sin: Address, writes: Address,
        means: Address, key_columns: Address, query_columns: Address, num_rows: u32,
        num_heads: u32, num_kv_heads: u32, unused: u32,
    }
    AttentionJob 32 {
        page_start: u32, page_end: u32, first_row: u32, kv_head: u32, query_start: u32,
        query_end: u32, part: u32, unused: u32,
    }
    AttentionArgs 104 {
        cache: Cache, q: Address, positions: Address, pages: Address, jobs: Address,
        part_out: Address, part_max: Address, part_sum: Address, num_heads: u32, group: u32,
        window: u32, fetches: u32,
    }
    Merge 12 { first: u32, stride: u32, count: u32, }
    MergeArgs 56 {
        out: Address, lse: Address, part_out: Address, part_max: Address, part_sum: Address,
        merges: Address, head_dim: u32, unused: u32,
    }
    AttributionJob 32 {
        page_start: u32, page_end: u32, first_row: u32, kv_head: u32, num_queries: u32,
        signal: u32, decay: f32, unused: u32,
    }
    AttributionArgs 96 {
        cache: Cache, q: Address, rotated_out: Address, lse: Address, positions: Address,
        pages: Address, jobs: Address, num_heads: u32, group: u32, window: u32, tile: u32,
    }
    RotateArgs 24 { out: Address, x: Address, head_dim: u32, unused: u32, }
    ReadTokensArgs 72 {
        cache: Cache, pages: Address, starts: Address, token_positions: Address,
        token_attributions: Address, num_pages: u32, unused: u32,
    }
    Range 8 { start: u32, end: u32, }
    PagePair 8 { from: u32, to: u32, }
    CopyPagesArgs 24 { arena: Address, pairs: Address, page_bytes: u64, }
    HistogramArgs 72 {
        cache: Cache, pages: Address, ends: Address, ranges: Address, counts: Address,
        num_ranges: u32, unused: u32,
    }
    MoveToken 16 {
        from_page: u32, to_page: u32, from_index: u16, to_index: u16, offset: i16, from_tier: u8,
        to_tier: u8,
    }
    CompactArgs 56 { cache: Cache, moves: Address, staging: Address, num_moves: u32, stride: u32, }
    QuantizeArgs 24 { out: Address, x: Address, num_blocks: u64, }
    LinearArgs 48 {
        y: Address, x: Address, codes: Address, scales: Address, num_x: u32, rows: u32,
        num_blocks: u32, unused: u32,
    }
    LinearRowsArgs 48 {
        out: Address, ids: Address, codes: Address, scales: Address, num_ids: u64,
        num_blocks: u32, bits: u32,
    }
}

/// Bytes of a block of coded activations.
pub const ACTIVATION_BYTES: usize = 72;

/// The table of [`TIERS`] at one head size, which is at most [`MAX_DIM`].
pub fn tiers(layout: &PageLayout) -> Vec<Tier> {
    TIERS.iter().map(|info| tier(layout, info)).collect()
}

/// [`LEVELS`], as the kernels have them.
pub fn levels() -> &'static [i8] {
    &LEVELS
}

fn tier(layout: &PageLayout, info: &TierInfo) -> Tier {
    let at = layout.arrays(info.tier);
    let [keys, values, key_scales, value_scales, positions, attributions, key_bytes, value_bytes] =
        [
            at.keys,
            at.values,
            at.key_scales,
            at.value_scales,
            at.positions,
            at.attributions,
            at.key_bytes,
            at.value_bytes,
        ]
        .map(|bytes| bytes as u32);
    Tier {
        keys,
        values,
        key_scales,
        value_scales,
        positions,
        attributions,
        key_bytes,
        value_bytes,
        key: format(info.key, layout.head_dim),
        value: format(info.value, layout.head_dim),
    }
}

fn format(codec: Codec, dim: usize) -> Format {
    let (kind, lanes) = match codec {
        Codec::F16 => (0, [16; 8]),
        Codec::Int8 => (1, [8; 8]),
        Codec::Levels(bits) => (2, bits),
    };
    let mut format =
        Format { kind, unit: codec.unit(), bits: [0; MAX_LANES], offsets: [0; MAX_LANES] };
    if kind == 2 {
        let mut offset = 0;
        for lane in 0..dim / LANE {
            format.bits[lane] = lane_bits(&lanes, dim, lane);
            format.offsets[lane] = offset;
            offset += format.bits[lane];
        }
    }
    format
}
