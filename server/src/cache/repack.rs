//! New tiers for a head's tokens: which token goes to which slot, as plain data.
//!
//! The tokens of a tier stay dense: those that arrive fill the gaps of those that left, the last
//! ones fill what gaps remain, whole pages come back. Otherwise eviction would save nothing. All
//! others stay where they are: moving a long sequence's tokens up would cost more than the rest of
//! its event.

use std::mem::take;

use keepwell_kernels::{Move, PageLayout, PageRef, PerTier, Slot, Tier};

use super::{HeadPages, Ledger, PageTable};

/// Positions beyond this one may be out of reach of a page's base.
pub const REACH: usize = i16::MAX as usize;

/// What becomes of one token; `None` evicts it.
pub type Assignment = Option<Tier>;

/// One head's repacking, decided but not yet booked.
#[derive(Debug)]
pub struct Repack {
    head: usize,
    /// The tokens of each tier, in their new order.
    tokens: PerTier<Vec<Token>>,
    old: HeadPages,
    /// Pages needed less pages held.
    pub page_change: isize,
}

#[derive(Clone, Copy, Debug)]
struct Token {
    from: Slot,
    from_tier: Tier,
    position: u32,
    /// Its number among the slots of its old tier.
    place: u32,
}

impl Repack {
    /// `positions` and `assignments` go token by token through the head's pages.
    pub fn new(
        table: &PageTable,
        head: usize,
        positions: &[u32],
        assignments: &[Assignment],
        layout: &PageLayout,
    ) -> Self {
        let old = table.head(head).clone();
        let counts = counts(assignments);
        let mut staying = PerTier::new(|tier| Vec::with_capacity(counts[tier]));
        let mut arriving = PerTier::<Vec<Token>>::default();
        let mut next = PerTier::<u32>::default();
        let places = old.pages.iter().flat_map(|page| {
            let first = next[page.tier];
            next[page.tier] += layout.capacity(page.tier) as u32;
            (0..page.len).map(move |index| (page.tier, first, Slot { page: page.page, index }))
        });
        let chosen = positions.iter().zip(assignments);
        for ((from_tier, first, from), (&position, &to)) in places.zip(chosen) {
            let Some(to) = to else { continue };
            let place = first + u32::from(from.index);
            let list = if to == from_tier { &mut staying } else { &mut arriving };
            list[to].push(Token { from, from_tier, position, place });
        }
        // In order of position few pages have to end early.
        let in_order = table.len() > REACH;
        let tokens = PerTier::new(|tier| {
            let (stay, arrive) = (take(&mut staying[tier]), take(&mut arriving[tier]));
            if in_order { sorted(stay, arrive) } else { fill_gaps(stay, arrive) }
        });
        let mut repack = Self { head, tokens, old, page_change: 0 };
        let needed = repack.lay_out(layout).len();
        repack.page_change = needed as isize - repack.old.pages.len() as isize;
        repack
    }

    /// [`Repack::page_change`] alone, which is far less to hold.
    pub fn change(
        table: &PageTable,
        head: usize,
        positions: &[u32],
        assignments: &[Assignment],
        layout: &PageLayout,
    ) -> isize {
        if table.len() > REACH {
            return Self::new(table, head, positions, assignments, layout).page_change;
        }
        let counts = counts(assignments);
        let pages = |(tier, count): (Tier, &usize)| count.div_ceil(layout.capacity(tier)) as isize;
        counts.iter().map(pages).sum::<isize>() - table.head(head).pages.len() as isize
    }

    /// Books the new pages and returns the moves. Releases come first, so that a repacking that
    /// shrinks never needs a free page; the moves' reads must precede their writes.
    ///
    /// Returns `None`, and changes nothing, when pages do not suffice.
    pub fn book(self, table: &mut PageTable, ledger: &mut Ledger) -> Option<Vec<Move>> {
        let runs = self.lay_out(ledger.layout());
        let fresh = runs.iter().filter(|run| run.reused.is_none()).count();
        // The first ones of each tier are used again.
        let mut kept = PerTier::<usize>::default();
        runs.iter().filter_map(|run| run.reused).for_each(|page| kept[page.tier] += 1);
        let mut is_freed = |page: &&PageRef| {
            let is_kept = kept[page.tier] > 0;
            kept[page.tier] -= usize::from(is_kept);
            !is_kept
        };
        let freed: Vec<PageRef> = self.old.pages.iter().filter(&mut is_freed).copied().collect();
        if fresh > ledger.num_free() + freed.len() {
            return None;
        }
        for page in &freed {
            ledger.release(page.page, page.tier);
        }
        let (mut pages, mut moves) = (HeadPages::default(), Vec::new());
        for run in runs {
            let page = run.page(ledger);
            moves.extend(
                run.tokens.iter().enumerate().filter_map(|(i, t)| t.move_to(&page, i, &run)),
            );
            pages.pages.push(page);
        }
        table.replace_head(self.head, pages);
        Some(moves)
    }

    /// The new pages, tier by tier; the old pages of a tier are used again first.
    fn lay_out(&self, layout: &PageLayout) -> Vec<Run<'_>> {
        let mut runs = Vec::new();
        for (tier, tokens) in self.tokens.iter() {
            let mut reusable = self.old.pages.iter().filter(|p| p.tier == tier);
            let mut rest = &tokens[..];
            while let Some(first) = rest.first() {
                let reused = reusable.next().copied();
                let base = match reused {
                    Some(page) if page.reaches(first.position) => page.base,
                    _ => first.position,
                };
                let page = PageRef { base, ..reused.unwrap_or(self.old.pages[0]) };
                let len = rest
                    .iter()
                    .take(layout.capacity(tier))
                    .take_while(|t| page.reaches(t.position))
                    .count();
                let (tokens, after) = rest.split_at(len);
                runs.push(Run { tier, reused, base, tokens });
                rest = after;
            }
        }
        runs
    }
}

/// Tokens that remain, by their new tier.
fn counts(assignments: &[Assignment]) -> PerTier<usize> {
    let mut counts = PerTier::default();
    assignments.iter().flatten().for_each(|tier| counts[*tier] += 1);
    counts
}

/// The tokens of a tier in the order of their new places; `stay` is in the order of the old ones.
fn fill_gaps(mut stay: Vec<Token>, mut arrive: Vec<Token>) -> Vec<Token> {
    let len = stay.len() + arrive.len();
    let kept = stay.partition_point(|token| (token.place as usize) < len);
    arrive.extend(stay.drain(kept..));
    if arrive.is_empty() {
        return stay;
    }
    let (mut stay, mut arrive) = (stay.into_iter().peekable(), arrive.into_iter());
    let at = |place| stay.next_if(|token| token.place == place).or_else(|| arrive.next());
    let mut filled = Vec::with_capacity(len);
    filled.extend((0..len as u32).map_while(at));
    filled
}

fn sorted(mut stay: Vec<Token>, arrive: Vec<Token>) -> Vec<Token> {
    stay.extend(arrive);
    stay.sort_by_key(|token| token.position);
    stay
}

/// The tokens of one new page.
struct Run<'a> {
    tier: Tier,
    reused: Option<PageRef>,
    base: u32,
    tokens: &'a [Token],
}

impl Run<'_> {
    fn page(&self, ledger: &mut Ledger) -> PageRef {
        let page = match self.reused {
            Some(reused) => reused.page,
            None => ledger.allocate(self.tier).expect("counted by book"),
        };
        PageRef { page, base: self.base, len: self.tokens.len() as u16, tier: self.tier }
    }
}

impl Token {
    /// The move into slot `index` of `page`, unless the token is there already.
    fn move_to(&self, page: &PageRef, index: usize, run: &Run) -> Option<Move> {
        let to = Slot { page: page.page, index: index as u16 };
        let same_base = run.reused.is_some_and(|reused| reused.base == page.base);
        if self.from == to && same_base {
            return None;
        }
        Some(Move {
            from: self.from,
            from_tier: self.from_tier,
            to,
            to_tier: page.tier,
            offset: page.offset(self.position),
        })
    }
}

#[cfg(test)]
mod tests;
