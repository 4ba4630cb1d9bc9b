//! What one step does, as index arrays: built on the host once per step, executed by any backend.

use std::{ops::Range, sync::Arc};

use crate::{
    basis::KeyBasis,
    page::{PageRef, Slot, Tier},
};

/// What [`crate::Backend::attribute`] accumulates for each cached token, summed over the scored
/// queries and over the query heads that share the KV head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// `(p/(1-p))^2 * |v - o|^2`: the exact squared change of the head's output if the token alone
    /// were deleted. Its root for one query is the score of CAOTE (arXiv 2504.14051).
    Deletion,
    /// `p`: attention mass (H2O, MiKV).
    AttentionMass,
    /// `1/|k|`: small keys draw attention (Knorm). Does not depend on queries.
    KeyNorm,
}

/// Update the attributions of a span's sequence from its last `rows` queries of this step:
/// `a = decay * a + sum(signal)`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scoring {
    pub rows: usize,
    pub signal: Signal,
    pub decay: f32,
}

/// The tokens of one sequence in this step: `rows` of the ragged batch.
#[derive(Clone, Debug, PartialEq)]
pub struct Span {
    pub rows: Range<usize>,
    pub scoring: Option<Scoring>,
}

/// The attention of one step, over all layers.
///
/// `pages` holds, for each (layer, span, KV head) in this order, the head's pages, the tokens of
/// this step included (`len` counts them already); no token is later than the span's last row. `writes`
/// holds, for each (layer, KV head, row), where the row's K and V go.
#[derive(Clone, Debug, Default)]
pub struct AttentionPlan {
    pub num_kv_heads: usize,
    /// Logical position of each row.
    pub positions: Vec<u32>,
    pub spans: Vec<Span>,
    pub pages: Vec<PageRef>,
    /// `pages` of (layer, span, head) number i are `page_starts[i]..page_starts[i + 1]`.
    pub page_starts: Vec<u32>,
    pub writes: Vec<Write>,
    /// A query at position t sees positions in `(t - window, t]`.
    pub window: Option<u32>,
    /// The basis of keys and queries; rotated without one. The same for as long as pages live.
    pub basis: Option<Arc<KeyBasis>>,
}

impl AttentionPlan {
    pub fn num_rows(&self) -> usize {
        self.positions.len()
    }

    /// Layers whose pages it holds.
    pub fn num_layers(&self) -> usize {
        let num_groups = self.page_starts.len().saturating_sub(1);
        num_groups.checked_div(self.spans.len() * self.num_kv_heads).unwrap_or(0)
    }

    pub fn pages(&self, layer: usize, span: usize, kv_head: usize) -> &[PageRef] {
        &self.pages[self.page_range(layer, span, kv_head)]
    }

    /// Where those are in `pages`.
    pub fn page_range(&self, layer: usize, span: usize, kv_head: usize) -> Range<usize> {
        let i = (layer * self.spans.len() + span) * self.num_kv_heads + kv_head;
        self.page_starts[i] as usize..self.page_starts[i + 1] as usize
    }

    /// Where all rows of one (layer, KV head) are written.
    pub fn writes(&self, layer: usize, kv_head: usize) -> &[Write] {
        let start = (layer * self.num_kv_heads + kv_head) * self.num_rows();
        &self.writes[start..start + self.num_rows()]
    }

    /// The positions a query at `position` sees, given the window.
    pub fn visible(&self, position: u32) -> Range<u32> {
        let first = self.window.map_or(0, |w| (position + 1).saturating_sub(w));
        first..position + 1
    }
}

/// A new token's place: an F16 slot, and its position counted from the page's base.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Write {
    pub slot: Slot,
    pub offset: i16,
}

/// One token changes place, and perhaps tier. `offset` is its position in the new page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Move {
    pub from: Slot,
    pub from_tier: Tier,
    pub to: Slot,
    pub to_tier: Tier,
    pub offset: i16,
}
