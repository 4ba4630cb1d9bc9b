//! Spans of a prompt that its sender marked.

use std::{ops::Range, sync::Arc};

/// Positions that are never evicted: sorted spans, apart from each other.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Spans(Arc<[Range<usize>]>);

impl Spans {
    /// Of spans in any order, which may overlap; empty ones are none.
    pub fn new(mut spans: Vec<Range<usize>>) -> Self {
        spans.retain(|span| !span.is_empty());
        spans.sort_unstable_by_key(|span| span.start);
        spans.dedup_by(|next, span| {
            let touches = next.start <= span.end;
            if touches {
                span.end = span.end.max(next.end);
            }
            touches
        });
        Self(spans.into())
    }

    /// What of them is in a prompt of `len` tokens.
    pub fn within(&self, len: usize) -> Self {
        Self::new(self.iter().map(|span| span.start..span.end.min(len)).collect())
    }

    pub fn iter(&self) -> impl Iterator<Item = Range<usize>> {
        self.0.iter().cloned()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn num_tokens(&self) -> usize {
        self.0.iter().map(ExactSizeIterator::len).sum()
    }

    pub fn covers(&self, position: usize) -> bool {
        let next = self.0.partition_point(|span| span.end <= position);
        self.0.get(next).is_some_and(|span| span.contains(&position))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_in_any_order_that_overlap_cover_what_they_cover_together() {
        let asked = [20..30, 5..9, 7..12, 12..13, 40..40, 25..26, 50..usize::MAX];
        let spans = Spans::new(asked.to_vec());
        for position in 0..200 {
            let is_asked = asked.iter().any(|span| span.contains(&position));
            assert_eq!(spans.covers(position), is_asked, "{position}");
        }
        assert_eq!(spans.iter().count(), 3);
        assert_eq!(spans.within(60).num_tokens(), 8 + 10 + 10);
        assert!(spans.within(5).is_empty() && !Spans::default().covers(0));
    }
}
