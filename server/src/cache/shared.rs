//! How page tables share what the prefix index knows.
//!
//! A sequence whose tokens are never scored nor moved shares pages: its full blocks belong to the
//! index, and the table holds them. One that is compressed writes into all of its pages, so it takes
//! copies of what is there, and leaves copies.

use keepwell_kernels::{Move, PageId, PageRef, Slot, Tier, Write};

use super::{
    Ledger, PageTable,
    prefix::{Contents, NodeId, Place, Recipe, Salt},
};

/// Copies to be made, in this order; within one of them all reads come before all writes.
#[derive(Debug)]
pub enum Copies {
    /// Whole pages: from, to.
    Pages(Vec<(PageId, PageId)>),
    Tokens(Vec<Move>),
}

/// What is known of a sequence's beginning.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hit {
    /// What an event left of the first tokens, and how many they were.
    pub snapshot: Option<(NodeId, usize)>,
    /// What came after these, or the beginning.
    pub blocks: Vec<NodeId>,
}

impl PageTable {
    /// Begins with blocks that others may hold too.
    pub fn share(&mut self, blocks: Vec<NodeId>, ledger: &mut Ledger) {
        assert!(self.is_empty(), "only the beginning is shared");
        let capacity = ledger.layout().capacity(Tier::F16);
        for id in &blocks {
            ledger.hold(*id);
            let Contents::Block(pages) = ledger.prefixes().contents(*id) else {
                panic!("{id:?} is no block")
            };
            let base = self.len as u32;
            for (head, page) in self.heads.iter_mut().zip(pages) {
                let page = PageRef { page: *page, base, len: capacity as u16, tier: Tier::F16 };
                head.pages.push(page);
            }
            self.len += capacity;
        }
        self.shared = blocks;
        self.note_peak();
    }

    /// Gives the full blocks of exact K and V to the index. Where another sequence was first, its
    /// pages take the place of this one's. `tokens` are the sequence's.
    pub fn publish(&mut self, tokens: &[u32], salt: Salt, ledger: &mut Ledger) {
        let capacity = ledger.layout().capacity(Tier::F16);
        for nth in self.shared.len()..self.len / capacity {
            let tokens = &tokens[nth * capacity..(nth + 1) * capacity];
            let parent = self.shared.last().copied();
            let known = ledger.prefixes().block(salt, parent, tokens);
            let id = match known {
                Some(known) => {
                    self.replace_block(nth, known, ledger);
                    known
                }
                None => {
                    let pages = self.heads.iter().map(|head| head.pages[nth].page).collect();
                    let place = Place::Block { parent, tokens: tokens.into() };
                    ledger.give(salt, place, Contents::Block(pages))
                }
            };
            self.shared.push(id);
        }
    }

    fn replace_block(&mut self, nth: usize, known: NodeId, ledger: &mut Ledger) {
        ledger.hold(known);
        for (index, head) in self.heads.iter_mut().enumerate() {
            let Contents::Block(pages) = ledger.prefixes().contents(known) else {
                panic!("{known:?} is no block")
            };
            let own = std::mem::replace(&mut head.pages[nth].page, pages[index]);
            ledger.release(own, Tier::F16);
        }
    }

    /// Begins with copies of what is known; `None`, and nothing changed, when pages do not suffice.
    pub fn copy_in(&mut self, hit: &Hit, ledger: &mut Ledger) -> Option<Vec<Copies>> {
        assert!(self.is_empty(), "only the beginning is known");
        // What is copied must not be reclaimed for its own copies.
        let sources = hit.snapshot.iter().map(|(id, _)| id).chain(&hit.blocks);
        sources.clone().for_each(|id| ledger.hold(*id));
        let copies = self.copy_held(hit, ledger);
        sources.for_each(|id| ledger.let_go(*id));
        copies
    }

    fn copy_held(&mut self, hit: &Hit, ledger: &mut Ledger) -> Option<Vec<Copies>> {
        let mut copies = Vec::new();
        if let Some((id, len)) = hit.snapshot {
            copies.push(Copies::Pages(self.copy_snapshot(id, ledger)?));
            self.len = len;
        }
        let num_tokens = hit.blocks.len() * ledger.layout().capacity(Tier::F16);
        if self.pages_to_append(num_tokens, ledger.layout()) > ledger.num_free() {
            self.release(ledger);
            return None;
        }
        copies.push(Copies::Tokens(self.copy_blocks(&hit.blocks, ledger)));
        Some(copies)
    }

    fn copy_snapshot(&mut self, id: NodeId, ledger: &mut Ledger) -> Option<Vec<(PageId, PageId)>> {
        let num_pages = ledger.prefixes().contents(id).pages().count();
        if num_pages > ledger.num_free() {
            return None;
        }
        let mut copies = Vec::with_capacity(num_pages);
        for (index, head) in self.heads.iter_mut().enumerate() {
            let Contents::Snapshot(heads) = ledger.prefixes().contents(id) else {
                panic!("{id:?} is no snapshot")
            };
            *head = heads[index].clone();
            for page in &mut head.pages {
                let own = ledger.allocate(page.tier).expect("counted above");
                copies.push((page.page, own));
                page.page = own;
            }
        }
        Some(copies)
    }

    fn copy_blocks(&mut self, blocks: &[NodeId], ledger: &mut Ledger) -> Vec<Move> {
        let capacity = ledger.layout().capacity(Tier::F16);
        let writes = self.append(blocks.len() * capacity, ledger);
        let mut moves = Vec::with_capacity(blocks.len() * capacity * self.heads.len());
        for (nth, id) in blocks.iter().enumerate() {
            let Contents::Block(pages) = ledger.prefixes().contents(*id) else {
                panic!("{id:?} is no block")
            };
            for (page, writes) in pages.iter().zip(&writes) {
                let writes = &writes[nth * capacity..(nth + 1) * capacity];
                let slots = (0..).map(|index| Slot { page: *page, index });
                moves.extend(slots.zip(writes).map(|(from, to)| exact_move(from, to)));
            }
        }
        moves
    }

    /// Leaves a copy of what the table holds after an event at the end of `tokens`: from, to. `None`
    /// when it is known, or pages do not suffice.
    pub fn leave_snapshot(
        &self,
        salt: Salt,
        recipe: Recipe,
        tokens: &[u32],
        ledger: &mut Ledger,
    ) -> Option<Vec<(PageId, PageId)>> {
        if ledger.prefixes().snapshot(salt, &recipe, tokens).is_some() {
            return None;
        }
        let (heads, copies) = self.copy_heads(ledger)?;
        let place = Place::Snapshot { recipe, tokens: tokens.into() };
        ledger.cache(salt, place, Contents::Snapshot(heads.into()));
        Some(copies)
    }
}

impl Ledger {
    /// Leaves a copy of one block below `parent`: `writes` tells, for each (layer, KV head), where
    /// its tokens were just written. Returns the node and the moves that fill its pages. `None` when
    /// pages do not suffice. Attributions come along and are not wanted.
    pub fn leave_block<'a>(
        &mut self,
        salt: Salt,
        parent: Option<NodeId>,
        tokens: &[u32],
        writes: impl ExactSizeIterator<Item = &'a [Write]>,
    ) -> Option<(NodeId, Vec<Move>)> {
        // None of them can make way for the block, nor counts as if it could.
        let held = parent.map(|parent| self.prefixes().lineage(parent)).unwrap_or_default();
        held.iter().for_each(|id| self.hold(*id));
        let left = self.leave_below(salt, parent, tokens, writes);
        held.iter().rev().for_each(|id| self.let_go(*id));
        left
    }

    fn leave_below<'a>(
        &mut self,
        salt: Salt,
        parent: Option<NodeId>,
        tokens: &[u32],
        writes: impl ExactSizeIterator<Item = &'a [Write]>,
    ) -> Option<(NodeId, Vec<Move>)> {
        if writes.len() > self.num_free() {
            return None;
        }
        let mut moves = Vec::with_capacity(writes.len() * tokens.len());
        let mut copy = |writes: &[Write]| {
            let page = self.allocate(Tier::F16).expect("counted above");
            // Positions are counted from the first token wherever a block is looked at.
            let to = (0..).map(|index| Write { slot: Slot { page, index }, offset: index as i16 });
            moves.extend(writes.iter().zip(to).map(|(from, to)| exact_move(from.slot, &to)));
            page
        };
        let pages: Box<[PageId]> = writes.map(&mut copy).collect();
        let place = Place::Block { parent, tokens: tokens.into() };
        Some((self.cache(salt, place, Contents::Block(pages)), moves))
    }
}

fn exact_move(from: Slot, to: &Write) -> Move {
    let tier = Tier::F16;
    Move { from, from_tier: tier, to: to.slot, to_tier: tier, offset: to.offset }
}
