//! The prefix tree: blocks full of computed tokens, found again by whoever begins with the same tokens.
//!
//! A node is a block. Its key is its parent and its own tokens, so a node stands for all tokens from the beginning of
//! the sequence. A hash only finds a node; its tokens are then compared.

use std::collections::{BTreeSet, HashMap};
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

use lingqu_types::{BlockId, TokenId};

use crate::KvBug;
use crate::pool::BlockPool;

/// What a full block holds.
#[derive(Clone, Copy, Debug)]
pub struct BlockKey<'a> {
    /// Only sequences of one namespace share. It is compared at the first block; the others follow from their parents.
    pub namespace: &'a Arc<str>,
    /// `[block_tokens]`
    pub tokens: &'a [TokenId],
}

#[derive(Debug)]
struct Node {
    /// The block before this one; the first of a sequence has a namespace instead.
    parent: Option<BlockId>,
    namespace: Option<Arc<str>>,
    hash: u64,
    children: u32,
    /// When a table last gave it back.
    used_at: u64,
}

/// All nodes. The tree is one owner of each of its blocks; a node that has no other is idle.
///
/// A table that holds a node holds all nodes above it. So below an idle node all are idle, and taking idle leaves,
/// the longest unused first, gets at every idle block.
#[derive(Debug)]
pub(crate) struct PrefixTree {
    block_tokens: usize,
    /// By block. `[blocks]`
    nodes: Vec<Option<Node>>,
    /// Of each node. `[blocks, block_tokens]`
    tokens: Vec<TokenId>,
    /// By hash of the key. Of two keys with one hash the later is left out.
    index: HashMap<u64, BlockId>,
    /// Keys are chosen by clients; the hash is seeded, so that they cannot make them collide.
    hasher: RandomState,
    idle: usize,
    idle_leaves: BTreeSet<(u64, BlockId)>,
    /// Counts returns.
    now: u64,
}

impl PrefixTree {
    pub fn new(blocks: usize, block_tokens: usize) -> Self {
        Self {
            block_tokens,
            nodes: std::iter::repeat_with(|| None).take(blocks).collect(),
            tokens: vec![0; blocks * block_tokens],
            index: HashMap::new(),
            hasher: RandomState::new(),
            idle: 0,
            idle_leaves: BTreeSet::new(),
            now: 0,
        }
    }

    /// Nodes that no table holds.
    pub fn idle(&self) -> usize {
        self.idle
    }

    pub fn contains(&self, block: BlockId) -> bool {
        self.nodes[block.0 as usize].is_some()
    }

    /// The block after `parent`, or the first of all, that holds these tokens.
    pub fn find(&self, parent: Option<BlockId>, key: BlockKey<'_>) -> Option<BlockId> {
        let block = *self.index.get(&self.hash(parent, key))?;
        let node = self.nodes[block.0 as usize].as_ref().expect("the index knows nodes only");
        let same = node.parent == parent && self.tokens_of(block) == key.tokens;
        let same = same && node.namespace.as_ref().is_none_or(|namespace| namespace == key.namespace);
        same.then_some(block)
    }

    /// Makes a block of one table a node below `parent`, which that table holds too. False if the hash is taken.
    pub fn insert(&mut self, pool: &mut BlockPool, parent: Option<BlockId>, key: BlockKey<'_>, block: BlockId) -> bool {
        let hash = self.hash(parent, key);
        if self.index.contains_key(&hash) {
            return false;
        }
        let namespace = parent.is_none().then(|| key.namespace.clone());
        if let Some(parent) = parent {
            self.node_mut(parent).children += 1;
        }
        self.index.insert(hash, block);
        let at = block.0 as usize;
        self.nodes[at] = Some(Node { parent, namespace, hash, children: 0, used_at: 0 });
        self.tokens[at * self.block_tokens..][..self.block_tokens].copy_from_slice(key.tokens);
        pool.share(block);
        true
    }

    /// One more table holds the node.
    pub fn share(&mut self, pool: &mut BlockPool, block: BlockId) {
        let node = self.nodes[block.0 as usize].as_ref().expect("a node");
        if pool.owners(block) == 1 {
            self.idle -= 1;
            self.idle_leaves.remove(&(node.used_at, block));
        }
        pool.share(block);
    }

    /// A table gives a block back: a node stays, any other loses an owner.
    pub fn give_back(&mut self, pool: &mut BlockPool, block: BlockId) {
        pool.release(block);
        self.let_go(pool, block);
    }

    /// What [`PrefixTree::give_back`] does after the pool was told.
    pub fn let_go(&mut self, pool: &BlockPool, block: BlockId) {
        self.now += 1;
        let Some(node) = self.nodes[block.0 as usize].as_mut() else { return };
        if pool.owners(block) == 1 {
            node.used_at = self.now;
            self.idle += 1;
            if node.children == 0 {
                self.idle_leaves.insert((node.used_at, block));
            }
        }
    }

    /// Frees the idle leaf that was used longest ago; false if there is none.
    pub fn evict(&mut self, pool: &mut BlockPool) -> bool {
        let Some((_, block)) = self.idle_leaves.pop_first() else { return false };
        let node = self.nodes[block.0 as usize].take().expect("a leaf is a node");
        self.index.remove(&node.hash);
        self.idle -= 1;
        pool.release(block);
        if let Some(parent) = node.parent {
            let above = self.node_mut(parent);
            above.children -= 1;
            if above.children == 0 && pool.owners(parent) == 1 {
                let used_at = above.used_at;
                self.idle_leaves.insert((used_at, parent));
            }
        }
        true
    }

    /// Checks the tree's own promises, and that `tables` hold nodes with all that is above them.
    pub fn check<'a>(&self, pool: &BlockPool, tables: impl Iterator<Item = &'a [BlockId]>) -> Result<(), KvBug> {
        let mut children = vec![0; self.nodes.len()];
        let (mut nodes, mut idle, mut leaves) = (0, 0, 0);
        for parent in self.nodes.iter().flatten().filter_map(|node| node.parent) {
            children[parent.0 as usize] += 1;
        }
        for (i, node) in self.nodes.iter().enumerate() {
            let block = BlockId(i as u32);
            let Some(node) = node else { continue };
            let is_idle = pool.owners(block) == 1;
            let is_leaf = self.idle_leaves.contains(&(node.used_at, block));
            let is_sound = node.children == children[i]
                && self.index.get(&node.hash) == Some(&block)
                && node.parent.is_none() == node.namespace.is_some()
                && node.parent.is_none_or(|parent| self.contains(parent))
                && (is_idle || node.parent.is_none_or(|parent| pool.owners(parent) > 1))
                && is_leaf == (is_idle && node.children == 0);
            if !is_sound {
                return Err(KvBug::Tree(block));
            }
            nodes += 1;
            idle += usize::from(is_idle);
            leaves += usize::from(is_leaf);
        }
        for table in tables {
            for (slot, &block) in table.iter().enumerate() {
                let Some(node) = &self.nodes[block.0 as usize] else { continue };
                if node.parent != slot.checked_sub(1).map(|before| table[before]) {
                    return Err(KvBug::Tree(block));
                }
            }
        }
        let counted = (self.index.len(), self.idle, self.idle_leaves.len());
        if counted == (nodes, idle, leaves) { Ok(()) } else { Err(KvBug::TreeCounts) }
    }

    /// Blocks that are nodes.
    pub fn blocks(&self) -> impl Iterator<Item = BlockId> {
        let nodes = self.nodes.iter().enumerate();
        nodes.filter(|(_, node)| node.is_some()).map(|(i, _)| BlockId(i as u32))
    }

    fn hash(&self, parent: Option<BlockId>, key: BlockKey<'_>) -> u64 {
        match parent {
            Some(parent) => self.hasher.hash_one((parent, key.tokens)),
            None => self.hasher.hash_one((key.namespace, key.tokens)),
        }
    }

    fn tokens_of(&self, block: BlockId) -> &[TokenId] {
        &self.tokens[block.0 as usize * self.block_tokens..][..self.block_tokens]
    }

    fn node_mut(&mut self, block: BlockId) -> &mut Node {
        self.nodes[block.0 as usize].as_mut().expect("a table holds nodes with all that is above them")
    }
}
