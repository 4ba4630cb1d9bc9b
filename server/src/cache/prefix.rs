//! Which computed prefixes are still in page memory, and which of them goes first.
//!
//! Two kinds of nodes. A *block* holds the K and V of as many tokens as an F16 page takes, one page
//! for each (layer, KV head). It hangs below what its tokens saw: the block before it, or nothing
//! where a sequence begins. Such K and V are a pure function of the tokens. A *snapshot* holds all
//! that a sequence held after a compress event, a pure function of the tokens and of the [`Recipe`];
//! blocks below it are what the tokens after it came to, looking back at what it kept.
//!
//! Tokens are compared, not hashes of them: no collision hands one tenant the cache of another.
//! Salts are apart from the root on: nothing tells whether another one has seen a prefix.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use keepwell_kernels::{PageId, Tier};
use sha2::{Digest, Sha256};

use super::HeadPages;
use crate::compress::Spans;

/// Who shares with whom: only sequences of equal salts do. A digest of whatever tells them apart,
/// of a length that clients have no say in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Salt(pub [u8; 32]);

impl Salt {
    /// That of sequences which have the same one, and the same spans of their prompts marked.
    pub fn marked(self, marked: &Spans) -> Self {
        if marked.is_empty() {
            return self;
        }
        let mut hash = Sha256::new_with_prefix(self.0);
        for end in marked.iter().flat_map(|span| [span.start, span.end]) {
            hash.update((end as u64).to_le_bytes());
        }
        Self(hash.finalize().into())
    }
}

/// Names a node for as long as somebody holds it, or nothing was reclaimed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(u32);

/// What decides, besides the tokens, what compress events leave of a prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Recipe {
    /// Which signals were accumulated.
    pub policy: &'static str,
    /// What each event brought the sequence down to; `None` while no event had anything to do.
    pub max_pages: Option<usize>,
}

#[derive(Debug)]
pub enum Contents {
    /// A full F16 page for each (layer, KV head).
    Block(Box<[PageId]>),
    /// All pages of each (layer, KV head).
    Snapshot(Box<[HeadPages]>),
}

impl Contents {
    pub fn pages(&self) -> impl Iterator<Item = (PageId, Tier)> {
        let (block, heads) = match self {
            Self::Block(pages) => (&pages[..], &[][..]),
            Self::Snapshot(heads) => (&[][..], &heads[..]),
        };
        let of_block = block.iter().map(|page| (*page, Tier::F16));
        of_block.chain(heads.iter().flat_map(|h| &h.pages).map(|page| (page.page, page.tier)))
    }
}

/// Where a node is found again.
#[derive(Clone, Debug)]
pub enum Place {
    /// Its own tokens, below its parent or at the beginning of sequences.
    Block { parent: Option<NodeId>, tokens: Arc<[u32]> },
    /// All tokens up to the event.
    Snapshot { recipe: Recipe, tokens: Arc<[u32]> },
}

#[derive(Debug)]
struct Node {
    salt: Salt,
    place: Place,
    contents: Contents,
    children: ByTokens,
    /// Sequences that have its pages in their tables.
    num_holders: usize,
    last_used: u64,
}

/// Everything under one salt.
#[derive(Debug, Default)]
struct Family {
    first_blocks: ByTokens,
    /// By their length.
    snapshots: HashMap<Recipe, BTreeMap<usize, ByTokens>>,
}

impl Family {
    fn is_empty(&self) -> bool {
        self.first_blocks.is_empty() && self.snapshots.is_empty()
    }
}

type ByTokens = HashMap<Arc<[u32]>, NodeId>;

/// All nodes. Those that nobody holds and nothing hangs below may be reclaimed, the least recently
/// used first.
#[derive(Debug, Default)]
pub struct PrefixIndex {
    nodes: Vec<Option<Node>>,
    vacant: Vec<NodeId>,
    families: HashMap<Salt, Family>,
    reclaimable: BTreeSet<(u64, NodeId)>,
    clock: u64,
}

impl PrefixIndex {
    pub fn num_nodes(&self) -> usize {
        self.nodes.len() - self.vacant.len()
    }

    pub fn contents(&self, id: NodeId) -> &Contents {
        &self.node(id).contents
    }

    pub fn is_held(&self, id: NodeId) -> bool {
        self.node(id).num_holders > 0
    }

    fn node(&self, id: NodeId) -> &Node {
        self.nodes[id.0 as usize].as_ref().expect("an id is used only while its node is there")
    }

    fn node_mut(&mut self, id: NodeId) -> &mut Node {
        self.nodes[id.0 as usize].as_mut().expect("an id is used only while its node is there")
    }

    /// The block of these tokens below `parent`, or at the beginning of sequences.
    pub fn block(&self, salt: Salt, parent: Option<NodeId>, tokens: &[u32]) -> Option<NodeId> {
        match parent {
            Some(parent) => self.node(parent).children.get(tokens).copied(),
            None => self.families.get(&salt)?.first_blocks.get(tokens).copied(),
        }
    }

    /// The longest way through blocks of `block_len` tokens.
    pub fn blocks(
        &self,
        salt: Salt,
        parent: Option<NodeId>,
        tokens: &[u32],
        block_len: usize,
    ) -> Vec<NodeId> {
        let mut parent = parent;
        let step = |tokens| {
            parent = Some(self.block(salt, parent, tokens)?);
            parent
        };
        tokens.chunks_exact(block_len).map_while(step).collect()
    }

    /// The longest snapshot of a prefix of `tokens` whose length and contents `accepts` wants; its
    /// length.
    pub fn longest_snapshot(
        &self,
        salt: Salt,
        recipe: &Recipe,
        tokens: &[u32],
        accepts: impl Fn(usize, &Contents) -> bool,
    ) -> Option<(NodeId, usize)> {
        let by_len = self.families.get(&salt)?.snapshots.get(recipe)?;
        let of_len = |(len, snapshots): (&usize, &ByTokens)| {
            let id = *snapshots.get(&tokens[..*len])?;
            accepts(*len, self.contents(id)).then_some((id, *len))
        };
        by_len.range(..=tokens.len()).rev().find_map(of_len)
    }

    /// The snapshot of exactly these tokens.
    pub fn snapshot(&self, salt: Salt, recipe: &Recipe, tokens: &[u32]) -> Option<NodeId> {
        let by_len = self.families.get(&salt)?.snapshots.get(recipe)?;
        by_len.get(&tokens.len())?.get(tokens).copied()
    }

    /// Adds a node with so many holders. There must be none at its place.
    pub fn insert(
        &mut self,
        salt: Salt,
        place: Place,
        contents: Contents,
        num_holders: usize,
    ) -> NodeId {
        let id = self.vacant.pop().unwrap_or_else(|| {
            self.nodes.push(None);
            NodeId(self.nodes.len() as u32 - 1)
        });
        let taken = self.siblings(salt, &place).insert(tokens_of(&place).clone(), id);
        assert!(taken.is_none(), "{place:?} was taken");
        if let Place::Block { parent: Some(parent), .. } = place {
            self.not_reclaimable(parent);
        }
        let children = HashMap::new();
        let node = Node { salt, place, contents, children, num_holders, last_used: 0 };
        self.nodes[id.0 as usize] = Some(node);
        self.touch(id);
        id
    }

    /// The map that finds nodes at such places.
    fn siblings(&mut self, salt: Salt, place: &Place) -> &mut ByTokens {
        match place {
            Place::Block { parent: Some(parent), .. } => &mut self.node_mut(*parent).children,
            Place::Block { parent: None, .. } => {
                &mut self.families.entry(salt).or_default().first_blocks
            }
            Place::Snapshot { recipe, tokens } => {
                let family = self.families.entry(salt).or_default();
                let by_len = family.snapshots.entry(*recipe).or_default();
                by_len.entry(tokens.len()).or_default()
            }
        }
    }

    /// One more sequence has its pages. Tells whether it is the only one.
    pub fn hold(&mut self, id: NodeId) -> bool {
        self.not_reclaimable(id);
        let node = self.node_mut(id);
        node.num_holders += 1;
        node.num_holders == 1
    }

    /// The node and all above it, which stay as long as it does.
    pub fn lineage(&self, id: NodeId) -> Vec<NodeId> {
        let parent = |id: &NodeId| match self.node(*id).place {
            Place::Block { parent, .. } => parent,
            Place::Snapshot { .. } => None,
        };
        std::iter::successors(Some(id), parent).collect()
    }

    /// One sequence less. Tells whether it was the last one.
    pub fn let_go(&mut self, id: NodeId) -> bool {
        let node = self.node_mut(id);
        node.num_holders = node.num_holders.checked_sub(1).expect("somebody held it");
        let was_last = node.num_holders == 0;
        self.touch(id);
        was_last
    }

    /// It was used just now.
    pub fn touch(&mut self, id: NodeId) {
        self.not_reclaimable(id);
        self.clock += 1;
        let now = self.clock;
        self.node_mut(id).last_used = now;
        self.reclaimable_if_idle(id);
    }

    fn not_reclaimable(&mut self, id: NodeId) {
        let last_used = self.node(id).last_used;
        self.reclaimable.remove(&(last_used, id));
    }

    fn reclaimable_if_idle(&mut self, id: NodeId) {
        let node = self.node(id);
        if node.num_holders == 0 && node.children.is_empty() {
            self.reclaimable.insert((node.last_used, id));
        }
    }

    /// Forgets the node that was not used for longest, and returns what it held.
    pub fn reclaim(&mut self) -> Option<Contents> {
        let (_, id) = self.reclaimable.pop_first()?;
        let node = self.nodes[id.0 as usize].take().expect("reclaimable nodes are there");
        self.vacant.push(id);
        self.siblings(node.salt, &node.place).remove(tokens_of(&node.place));
        match node.place {
            Place::Block { parent: Some(parent), .. } => self.reclaimable_if_idle(parent),
            place => self.prune(node.salt, &place),
        }
        Some(node.contents)
    }

    /// Drops maps that became empty: salts are as many as clients care to make up.
    fn prune(&mut self, salt: Salt, place: &Place) {
        let Some(family) = self.families.get_mut(&salt) else { return };
        if let Place::Snapshot { recipe, tokens } = place
            && let Some(by_len) = family.snapshots.get_mut(recipe)
        {
            if by_len.get(&tokens.len()).is_some_and(HashMap::is_empty) {
                by_len.remove(&tokens.len());
            }
            if by_len.is_empty() {
                family.snapshots.remove(recipe);
            }
        }
        if family.is_empty() {
            self.families.remove(&salt);
        }
    }

    /// All nodes with the number of their holders.
    pub fn nodes(&self) -> impl Iterator<Item = (NodeId, &Contents, usize)> {
        self.nodes.iter().enumerate().filter_map(|(index, node)| {
            let node = node.as_ref()?;
            Some((NodeId(index as u32), &node.contents, node.num_holders))
        })
    }

    /// Every node is found at its place, is held no more often than what it hangs below, and may be
    /// reclaimed if and only if nobody holds it and nothing hangs below it.
    pub fn check(&self) {
        let mut num_found = 0;
        for (index, node) in self.nodes.iter().enumerate() {
            let id = NodeId(index as u32);
            let Some(node) = node else {
                assert!(self.vacant.contains(&id), "{id:?} is lost");
                continue;
            };
            num_found += 1;
            let found = match &node.place {
                Place::Block { parent, tokens } => self.block(node.salt, *parent, tokens),
                Place::Snapshot { recipe, tokens } => self.snapshot(node.salt, recipe, tokens),
            };
            assert_eq!(found, Some(id), "{:?} is not at its place", node.place);
            let held_below = node.children.values().map(|child| self.node(*child).num_holders);
            if matches!(node.contents, Contents::Block(_)) {
                assert!(held_below.sum::<usize>() <= node.num_holders);
            }
            let is_idle = node.num_holders == 0 && node.children.is_empty();
            assert_eq!(self.reclaimable.contains(&(node.last_used, id)), is_idle, "{id:?}");
        }
        assert_eq!(num_found, self.num_nodes());
        assert!(self.families.values().all(|family| !family.is_empty()));
    }
}

fn tokens_of(place: &Place) -> &Arc<[u32]> {
    match place {
        Place::Block { tokens, .. } | Place::Snapshot { tokens, .. } => tokens,
    }
}

#[cfg(test)]
mod tests;
