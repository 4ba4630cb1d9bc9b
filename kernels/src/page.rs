//! Pages, tiers and the only byte arithmetic of the project.
//!
//! A page is a fixed number of bytes. It belongs to one (sequence, layer, KV head) and one tier and
//! holds as many tokens as fit. Its arrays, one after the other, each with `capacity(tier)` slots:
//! K codes, V codes, K scales (f16), V scales (f16), positions (i16, relative to the page's base),
//! attributions (bf16). F16 pages have no scales.

use crate::codec::Format;

/// Index of a page in the arena.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PageId(pub u32);

/// The format in which a token's K and V are kept. Ordered from exact to coarse.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Tier {
    F16,
    K8V8,
    K8V4,
    K4V4,
}

/// One line per tier, in the order of [`Tier`].
pub struct TierInfo {
    pub tier: Tier,
    pub name: &'static str,
    pub key: Format,
    pub value: Format,
}

pub const TIERS: [TierInfo; 4] = [
    TierInfo { tier: Tier::F16, name: "f16", key: Format::F16, value: Format::F16 },
    TierInfo { tier: Tier::K8V8, name: "k8v8", key: Format::Int8, value: Format::Int8 },
    TierInfo { tier: Tier::K8V4, name: "k8v4", key: Format::Int8, value: Format::Normal4 },
    TierInfo { tier: Tier::K4V4, name: "k4v4", key: Format::Normal4, value: Format::Normal4 },
];

impl Tier {
    pub fn info(self) -> &'static TierInfo {
        &TIERS[self as usize]
    }

    pub fn name(self) -> &'static str {
        self.info().name
    }
}

/// Bytes of a token's position and attribution, the same in every tier.
const TOKEN_METADATA_BYTES: usize = 2 + 2;
/// Tokens of an F16 page: few, so that short contexts waste little, yet enough for wide reads.
const F16_TOKENS_PER_PAGE: usize = 8;
const PAGE_ALIGNMENT: usize = 64;

/// Byte arithmetic for one head size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageLayout {
    pub head_dim: usize,
    pub page_bytes: usize,
}

/// Where the arrays of a page of one tier start, in bytes, and how many tokens it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageArrays {
    pub capacity: usize,
    pub keys: usize,
    pub values: usize,
    pub key_scales: usize,
    pub value_scales: usize,
    pub positions: usize,
    pub attributions: usize,
    pub key_bytes: usize,
    pub value_bytes: usize,
}

impl PageLayout {
    pub fn new(head_dim: usize) -> Self {
        let f16_token = Self::token_bytes_for(head_dim, Tier::F16);
        let page_bytes = (F16_TOKENS_PER_PAGE * f16_token).next_multiple_of(PAGE_ALIGNMENT);
        Self { head_dim, page_bytes }
    }

    fn token_bytes_for(head_dim: usize, tier: Tier) -> usize {
        let TierInfo { key, value, .. } = tier.info();
        key.vector_bytes(head_dim)
            + key.scale_bytes()
            + value.vector_bytes(head_dim)
            + value.scale_bytes()
            + TOKEN_METADATA_BYTES
    }

    /// Bytes one token takes in a page of this tier, metadata included.
    pub fn token_bytes(&self, tier: Tier) -> usize {
        Self::token_bytes_for(self.head_dim, tier)
    }

    /// Tokens a page of this tier holds.
    pub fn capacity(&self, tier: Tier) -> usize {
        self.page_bytes / self.token_bytes(tier)
    }

    /// Bytes of one token's K and V in plain F16, without metadata: the unit budgets are shares of.
    pub fn f16_token_bytes(&self) -> usize {
        2 * Format::F16.vector_bytes(self.head_dim)
    }

    pub fn arrays(&self, tier: Tier) -> PageArrays {
        let TierInfo { key, value, .. } = tier.info();
        let capacity = self.capacity(tier);
        let key_bytes = key.vector_bytes(self.head_dim);
        let value_bytes = value.vector_bytes(self.head_dim);
        let values = capacity * key_bytes;
        let key_scales = values + capacity * value_bytes;
        let value_scales = key_scales + capacity * key.scale_bytes();
        let positions = value_scales + capacity * value.scale_bytes();
        let attributions = positions + capacity * 2;
        PageArrays {
            capacity,
            keys: 0,
            values,
            key_scales,
            value_scales,
            positions,
            attributions,
            key_bytes,
            value_bytes,
        }
    }
}

/// One token's place in the arena.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Slot {
    pub page: PageId,
    pub index: u16,
}

/// One page of a (sequence, layer, KV head): `len` tokens in `tier`, positions counted from `base`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageRef {
    pub page: PageId,
    pub base: u32,
    pub len: u16,
    pub tier: Tier,
}

impl PageRef {
    /// Whether a token at `position` can be told by this page's 16-bit offsets.
    pub fn reaches(&self, position: u32) -> bool {
        i16::try_from(i64::from(position) - i64::from(self.base)).is_ok()
    }

    /// The offset that is stored for `position`. Check [`PageRef::reaches`] first.
    pub fn offset(&self, position: u32) -> i16 {
        (i64::from(position) - i64::from(self.base)) as i16
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiers_stand_in_the_table_at_their_own_index() {
        for (index, info) in TIERS.iter().enumerate() {
            assert_eq!(info.tier as usize, index);
        }
    }

    #[test]
    fn the_arrays_of_every_tier_fit_its_page() {
        for head_dim in [16, 32, 64, 80, 96, 128, 256] {
            let layout = PageLayout::new(head_dim);
            for info in &TIERS {
                let arrays = layout.arrays(info.tier);
                assert!(arrays.attributions + 2 * arrays.capacity <= layout.page_bytes);
                assert_eq!(arrays.capacity, layout.capacity(info.tier));
            }
        }
    }

    #[test]
    fn a_page_of_head_size_64_holds_8_15_20_and_29_tokens() {
        let layout = PageLayout::new(64);
        assert_eq!(layout.page_bytes, 2112);
        let capacities: Vec<_> = TIERS.iter().map(|t| layout.capacity(t.tier)).collect();
        assert_eq!(capacities, [8, 15, 20, 29]);
    }

    #[test]
    fn a_page_reaches_positions_within_16_bits_of_its_base() {
        let page = PageRef { page: PageId(0), base: 40_000, len: 0, tier: Tier::F16 };
        assert!(page.reaches(40_000 + 32_767) && !page.reaches(40_000 + 32_768));
        assert!(page.reaches(40_000 - 32_768) && !page.reaches(40_000 - 32_769));
        assert_eq!(page.offset(39_990), -10);
    }
}
