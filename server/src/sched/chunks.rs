//! Where the compress events of a prefill come.

/// A prefill of `total` tokens, cut into chunks of at most `chunk_len`; each ends with an event.
///
/// Chunks end at multiples of `chunk_len`, so that prompts that begin alike have events in common. But
/// the last one has half the length at least, as long as there is another: what the question at the
/// prompt's end asks for is still exact there, however the prompt's length falls.
#[derive(Clone, Copy, Debug)]
pub struct Chunks {
    pub chunk_len: usize,
    pub total: usize,
}

impl Chunks {
    /// The start of the chunk that `position` is in.
    pub fn start(self, position: usize) -> usize {
        let start = position / self.chunk_len * self.chunk_len;
        self.cut().filter(|cut| *cut <= position).unwrap_or(start)
    }

    /// The end of the chunk that `position` is in.
    pub fn end(self, position: usize) -> usize {
        let end = self.start(position).saturating_add(self.chunk_len).min(self.total);
        self.cut().filter(|cut| *cut > position).map_or(end, |cut| cut.min(end))
    }

    pub fn is_start(self, position: usize) -> bool {
        self.start(position) == position
    }

    /// Starts of chunks, from the last that is no later than `position` back to the first.
    pub fn starts_back_from(self, position: usize) -> impl Iterator<Item = usize> {
        let before = move |start: &usize| start.checked_sub(1).map(|last| self.start(last));
        std::iter::successors(Some(self.start(position)), before)
    }

    /// Where the last full chunk is cut in two, because what comes after it is short.
    fn cut(self) -> Option<usize> {
        let half = self.chunk_len / 2;
        let rest = self.total % self.chunk_len;
        let is_cut = self.total > self.chunk_len && (1..half).contains(&rest);
        is_cut.then(|| self.total - rest - (self.chunk_len - half))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ends(chunk_len: usize, total: usize) -> Vec<usize> {
        let chunks = Chunks { chunk_len, total };
        let next = |end: &usize| (*end < total).then(|| chunks.end(*end));
        std::iter::successors(Some(chunks.end(0)), next).collect()
    }

    #[test]
    fn chunks_end_at_multiples_but_for_the_last_two() {
        assert_eq!(ends(512, 512), [512]);
        assert_eq!(ends(512, 1024), [512, 1024]);
        assert_eq!(ends(512, 1050), [512, 768, 1050]);
        assert_eq!(ends(512, 1279), [512, 768, 1279]);
        assert_eq!(ends(512, 1280), [512, 1024, 1280]);
        assert_eq!(ends(512, 600), [256, 600]);
        assert_eq!(ends(usize::MAX, 7), [7]);
    }

    #[test]
    fn a_last_chunk_that_is_not_the_only_one_has_half_the_length_at_least() {
        for (chunk_len, total) in (1..40).flat_map(|len| (len + 1..200).map(move |n| (len, n))) {
            let ends = ends(chunk_len, total);
            let lens: Vec<_> = std::iter::once(ends[0])
                .chain(ends.windows(2).map(|pair| pair[1] - pair[0]))
                .collect();
            assert!(lens.iter().all(|len| (1..=chunk_len).contains(len)), "{lens:?}");
            assert!(lens[lens.len() - 1] >= chunk_len / 2, "{lens:?}");
            assert!(lens.iter().rev().skip(2).all(|len| *len == chunk_len), "{lens:?}");
        }
    }

    #[test]
    fn every_position_is_between_the_start_and_the_end_of_its_chunk() {
        for (chunk_len, total) in (1..20).flat_map(|len| (1..90).map(move |n| (len, n))) {
            let chunks = Chunks { chunk_len, total };
            for position in 0..total {
                let (start, end) = (chunks.start(position), chunks.end(position));
                assert!(start <= position && position < end, "{position} of {chunks:?}");
                assert!(chunks.is_start(start) && chunks.end(start) == end);
                assert!(end == total || chunks.is_start(end));
            }
        }
    }

    #[test]
    fn starts_are_found_from_the_last_to_the_first() {
        let chunks = Chunks { chunk_len: 512, total: 1050 };
        assert_eq!(chunks.starts_back_from(1000).collect::<Vec<_>>(), [768, 512, 0]);
    }
}
