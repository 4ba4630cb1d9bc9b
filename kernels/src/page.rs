//! Pages, tiers and the only byte arithmetic of the project.
//!
//! A page is a fixed number of bytes. It belongs to one (sequence, layer, KV head) and one tier and
//! holds as many tokens as fit. Its arrays, one after the other, each with `capacity(tier)` slots:
//! K codes, V codes, K scales (a byte), V scales (a byte), positions (i16, relative to the page's
//! base), attributions (bf16). F16 pages have no scales.

use crate::codec::Format;

/// Index of a page in the arena.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PageId(pub u32);

/// Names a tier, its K and its V format for every line.
macro_rules! tiers {
    ($($tier:ident $name:literal $key:expr, $value:expr;)*) => {
        /// The format in which a token's K and V are kept.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum Tier {
            $($tier,)*
        }

        /// One line per tier, in the order of [`Tier`].
        pub const TIERS: [TierInfo; [$(Tier::$tier),*].len()] =
            [$(TierInfo { tier: Tier::$tier, name: $name, key: $key, value: $value }),*];
    };
}

/// What a line of [`TIERS`] says.
#[derive(Debug)]
pub struct TierInfo {
    pub tier: Tier,
    pub name: &'static str,
    pub key: Format,
    pub value: Format,
}

// Keys stand in a basis in which their channels are sorted by how much they matter to queries (see
// [`crate::KeyBasis`]): more bits for the first eighths leave the least error for their number.
const K5: Format = Format::Levels([6, 6, 6, 5, 5, 4, 4, 4]);
const K4: Format = Format::Levels([6, 5, 4, 4, 4, 3, 3, 3]);
const K3: Format = Format::Levels([6, 4, 3, 3, 2, 2, 2, 2]);
const K2: Format = Format::Levels([5, 3, 3, 2, 1, 1, 1, 0]);
const K1: Format = Format::Levels([4, 2, 1, 1, 0, 0, 0, 0]);

const V5: Format = Format::uniform(5);
const V4: Format = Format::uniform(4);
const V3: Format = Format::uniform(3);
const V2: Format = Format::uniform(2);
const V1: Format = Format::uniform(1);

// How far a head's keys matter more than its values differs by orders of magnitude, so that every
// pair has heads it suits.
tiers! {
    F16 "f16" Format::F16, Format::F16;
    K8V8 "k8v8" Format::Int8, Format::Int8;
    K8V5 "k8v5" Format::Int8, V5;
    K8V4 "k8v4" Format::Int8, V4;
    K8V3 "k8v3" Format::Int8, V3;
    K8V2 "k8v2" Format::Int8, V2;
    K8V1 "k8v1" Format::Int8, V1;
    K5V8 "k5v8" K5, Format::Int8;
    K5V5 "k5v5" K5, V5;
    K5V4 "k5v4" K5, V4;
    K5V3 "k5v3" K5, V3;
    K5V2 "k5v2" K5, V2;
    K5V1 "k5v1" K5, V1;
    K4V8 "k4v8" K4, Format::Int8;
    K4V5 "k4v5" K4, V5;
    K4V4 "k4v4" K4, V4;
    K4V3 "k4v3" K4, V3;
    K4V2 "k4v2" K4, V2;
    K4V1 "k4v1" K4, V1;
    K3V8 "k3v8" K3, Format::Int8;
    K3V5 "k3v5" K3, V5;
    K3V4 "k3v4" K3, V4;
    K3V3 "k3v3" K3, V3;
    K3V2 "k3v2" K3, V2;
    K3V1 "k3v1" K3, V1;
    K2V8 "k2v8" K2, Format::Int8;
    K2V5 "k2v5" K2, V5;
    K2V4 "k2v4" K2, V4;
    K2V3 "k2v3" K2, V3;
    K2V2 "k2v2" K2, V2;
    K2V1 "k2v1" K2, V1;
    K1V8 "k1v8" K1, Format::Int8;
    K1V5 "k1v5" K1, V5;
    K1V4 "k1v4" K1, V4;
    K1V3 "k1v3" K1, V3;
    K1V2 "k1v2" K1, V2;
    K1V1 "k1v1" K1, V1;
}

impl Tier {
    pub fn info(self) -> &'static TierInfo {
        &TIERS[self as usize]
    }

    pub fn name(self) -> &'static str {
        self.info().name
    }
}

/// One value for each tier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PerTier<T>([T; TIERS.len()]);

impl<T> PerTier<T> {
    pub fn new(mut of: impl FnMut(Tier) -> T) -> Self {
        Self(std::array::from_fn(|i| of(TIERS[i].tier)))
    }

    /// In the order of [`TIERS`].
    pub fn iter(&self) -> impl Iterator<Item = (Tier, &T)> {
        TIERS.iter().map(|info| info.tier).zip(&self.0)
    }

    pub fn values(&self) -> std::slice::Iter<'_, T> {
        self.0.iter()
    }

    pub fn values_mut(&mut self) -> std::slice::IterMut<'_, T> {
        self.0.iter_mut()
    }
}

impl<T: Default> Default for PerTier<T> {
    fn default() -> Self {
        Self::new(|_| T::default())
    }
}

impl<T> std::ops::Index<Tier> for PerTier<T> {
    type Output = T;

    fn index(&self, tier: Tier) -> &T {
        &self.0[tier as usize]
    }
}

impl<T> std::ops::IndexMut<Tier> for PerTier<T> {
    fn index_mut(&mut self, tier: Tier) -> &mut T {
        &mut self.0[tier as usize]
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
    /// Asked for in the innermost loops.
    arrays: PerTier<PageArrays>,
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
        let f16_token = token_bytes(head_dim, Tier::F16);
        let page_bytes = (F16_TOKENS_PER_PAGE * f16_token).next_multiple_of(PAGE_ALIGNMENT);
        let arrays = PerTier::new(|tier| PageArrays::new(head_dim, page_bytes, tier));
        Self { head_dim, page_bytes, arrays }
    }

    /// Bytes one token takes in a page of this tier, metadata included.
    pub fn token_bytes(&self, tier: Tier) -> usize {
        token_bytes(self.head_dim, tier)
    }

    /// Tokens a page of this tier holds.
    pub fn capacity(&self, tier: Tier) -> usize {
        self.arrays(tier).capacity
    }

    /// Bytes of one token's K and V in plain F16, without metadata: the unit budgets are shares of.
    pub fn f16_token_bytes(&self) -> usize {
        2 * Format::F16.vector_bytes(self.head_dim)
    }

    pub fn arrays(&self, tier: Tier) -> &PageArrays {
        &self.arrays[tier]
    }
}

fn token_bytes(head_dim: usize, tier: Tier) -> usize {
    let TierInfo { key, value, .. } = tier.info();
    key.vector_bytes(head_dim)
        + key.scale_bytes()
        + value.vector_bytes(head_dim)
        + value.scale_bytes()
        + TOKEN_METADATA_BYTES
}

impl PageArrays {
    fn new(head_dim: usize, page_bytes: usize, tier: Tier) -> Self {
        let TierInfo { key, value, .. } = tier.info();
        let capacity = page_bytes / token_bytes(head_dim, tier);
        let key_bytes = key.vector_bytes(head_dim);
        let value_bytes = value.vector_bytes(head_dim);
        let values = capacity * key_bytes;
        let key_scales = values + capacity * value_bytes;
        let value_scales = key_scales + capacity * key.scale_bytes();
        let positions = value_scales + capacity * value.scale_bytes();
        let attributions = positions + capacity * 2;
        Self {
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
    fn a_page_of_head_size_64_holds_8_to_96_tokens() {
        let layout = PageLayout::new(64);
        assert_eq!(layout.page_bytes, 2112);
        let tiers = [Tier::F16, Tier::K8V8, Tier::K8V4, Tier::K4V4, Tier::K3V3, Tier::K1V1];
        assert_eq!(tiers.map(|tier| layout.capacity(tier)), [8, 15, 20, 30, 39, 96]);
    }

    #[test]
    fn a_page_reaches_positions_within_16_bits_of_its_base() {
        let page = PageRef { page: PageId(0), base: 40_000, len: 0, tier: Tier::F16 };
        assert!(page.reaches(40_000 + 32_767) && !page.reaches(40_000 + 32_768));
        assert!(page.reaches(40_000 - 32_768) && !page.reaches(40_000 - 32_769));
        assert_eq!(page.offset(39_990), -10);
    }
}
