//! The signals of tokens for a few queries straight from the codes: [`super::signals`] without tiles.

use super::{
    direct::{Direct, STRIP, Side},
    pieces::{Ahead, Pages, Piece, TOKENS, each_group},
    product::SquaredDistance,
    signals::{Queries, Weigh},
};
use crate::{
    Arena, Signal,
    simd::{Op, Simd},
};

impl Direct {
    /// Writes the signal of each token of `pages`; not [`Signal::KeyNorm`], which asks no query.
    pub fn signals<S: Simd>(
        &mut self,
        simd: S,
        arena: &Arena,
        pages: Pages,
        (queries, signal): (&Queries, Signal),
        out: &mut [f32],
    ) {
        let mut next = 0;
        each_group(simd, arena, pages, |pieces| {
            let mut totals = [0f32; TOKENS];
            simd.vectorize(Group {
                direct: self,
                arena,
                pieces,
                ahead: Ahead::new(pieces),
                queries,
                signal,
                totals: &mut totals,
            });
            out[next..next + self.len].copy_from_slice(&totals[..self.len]);
            next += self.len;
        });
    }
}

/// Some tokens, for all queries.
struct Group<'a> {
    direct: &'a mut Direct,
    arena: &'a Arena,
    pieces: &'a [Piece<'a>],
    ahead: Ahead<'a>,
    queries: &'a Queries,
    signal: Signal,
    totals: &'a mut [f32; TOKENS],
}

impl<S: Simd> Op<S> for Group<'_> {
    type Out = ();

    #[inline(always)]
    fn run(mut self, simd: S) {
        let tokens = (self.arena, self.pieces);
        let visible = (&self.queries.visible[..], false);
        if self.direct.begin(tokens, visible).is_none() {
            return self.ahead.ask_rest(simd);
        }
        let num_queries = self.queries.lse.len();
        let mut start = 0;
        while start < num_queries {
            start += match num_queries - start {
                1 => self.strip::<S, 1>(simd, start),
                2 => self.strip::<S, 2>(simd, start),
                3 => self.strip::<S, 3>(simd, start),
                _ => self.strip::<S, STRIP>(simd, start),
            };
        }
        self.ahead.ask_rest(simd);
    }
}

impl Group<'_> {
    /// Queries `start..start + R`; returns R.
    #[inline(always)]
    fn strip<S: Simd, const R: usize>(&mut self, simd: S, start: usize) -> usize {
        let Self { direct, arena, pieces, ahead, queries, signal, totals } = self;
        let of_strip = start * queries.head_dim..(start + R) * queries.head_dim;
        let (tokens, is_deletion) = ((*arena, *pieces), *signal == Signal::Deletion);
        let scores: [_; R] = direct.scores(simd, tokens, &queries.data[of_strip.clone()], ahead);
        let mut distances = [[0f32; TOKENS]; R];
        if is_deletion {
            let what = (SquaredDistance, Side::Values);
            direct.add_up::<S, _, R>(simd, what, tokens, &queries.out[of_strip], ahead);
            distances = direct.totals(simd, ahead);
        }
        for (r, (scores, distances)) in scores.iter().zip(&distances).enumerate() {
            let weigh = Weigh {
                scores,
                distances: is_deletion.then_some(distances),
                positions: &direct.positions,
                visible: &queries.visible[start + r],
                lse: queries.lse[start + r],
                totals,
            };
            Op::<S>::run(weigh, simd);
        }
        R
    }
}
