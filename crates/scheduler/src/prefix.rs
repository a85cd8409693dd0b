//! Shared beginnings: what is found in the cache is not computed, and what one sequence computes others wait for.

use std::sync::Arc;

use lingqu_kv::BlockKey;
use lingqu_types::{RequestId, TokenId};

use crate::sequence::{Awaited, Sequence};
use crate::{Scheduler, TokensOf};

/// The key of a block of the first `tokens`; `None` if it is not shared, or not full.
fn key<'a>(
    namespace: &'a Option<Arc<str>>,
    tokens: &'a [TokenId],
    slot: usize,
    block_tokens: usize,
) -> Option<BlockKey<'a>> {
    let tokens = tokens.get(slot * block_tokens..(slot + 1) * block_tokens)?;
    namespace.as_ref().map(|namespace| BlockKey { namespace, tokens })
}

impl Scheduler {
    /// Fills a waiting sequence's empty table with what the cache has of its beginning. The last block may hold more
    /// than [`Sequence::tokens_to_find`].
    pub(crate) fn find_beginning(&mut self, id: RequestId, tokens: &TokensOf<'_>) {
        let block_tokens = self.limits.block_tokens;
        let sequence = self.waiting.get_mut(&id).expect("it waits");
        assert!(sequence.table.blocks().is_empty(), "blocks while waiting");
        let blocks_max = sequence.tokens_to_find().div_ceil(block_tokens);
        let known = &tokens(id)[..sequence.tokens];
        while sequence.kept_blocks < blocks_max {
            let key = key(&sequence.namespace, known, sequence.kept_blocks, block_tokens);
            if !key.is_some_and(|key| self.cache.share(&mut sequence.table, sequence.kept_blocks, key)) {
                break;
            }
            sequence.kept_blocks += 1;
        }
    }

    /// Takes blocks of a running sequence from the cache that others have computed meanwhile.
    pub(crate) fn find_more(&mut self, id: RequestId, tokens: &TokensOf<'_>) {
        let block_tokens = self.limits.block_tokens;
        let sequence = self.running.get_mut(&id).expect("it runs");
        if sequence.computed != sequence.kept_blocks * block_tokens {
            return;
        }
        let known = &tokens(id)[..sequence.tokens];
        while (sequence.kept_blocks + 1) * block_tokens <= sequence.tokens_to_find() {
            let key = key(&sequence.namespace, known, sequence.kept_blocks, block_tokens);
            if !key.is_some_and(|key| self.cache.share(&mut sequence.table, sequence.kept_blocks, key)) {
                return;
            }
            sequence.kept_blocks += 1;
            sequence.computed += block_tokens;
        }
    }

    /// Enters what a sequence has computed in full blocks into the prefix tree.
    pub(crate) fn keep_computed(&mut self, id: RequestId, tokens: &TokensOf<'_>) {
        let block_tokens = self.limits.block_tokens;
        let sequence = self.running.get_mut(&id).expect("it runs");
        if sequence.namespace.is_none() {
            return;
        }
        let known = &tokens(id)[..sequence.computed];
        while (sequence.kept_blocks + 1) * block_tokens <= sequence.computed {
            let key = key(&sequence.namespace, known, sequence.kept_blocks, block_tokens);
            if !key.is_some_and(|key| self.cache.keep(&mut sequence.table, sequence.kept_blocks, key)) {
                sequence.namespace = None; // What follows could not be found without this block.
                return;
            }
            sequence.kept_blocks += 1;
        }
    }

    /// Who computes a sequence's next block, among those that had a slice in step `since` or later.
    pub(crate) fn computing(&self, id: RequestId, since: u64, tokens: &TokensOf<'_>) -> Option<Awaited> {
        let block_tokens = self.limits.block_tokens;
        let sequence = self.running.get(&id).or_else(|| self.waiting.get(&id)).expect("it lives");
        let slot = sequence.kept_blocks;
        let is_whole = (slot + 1) * block_tokens <= sequence.tokens && slot * block_tokens < sequence.tokens_to_find();
        let namespace = sequence.namespace.as_ref().filter(|_| is_whole)?;
        let before = |s: &Sequence| slot.checked_sub(1).map(|slot| s.table.blocks()[slot]);
        let mine = tokens(id);
        let block = slot * block_tokens..(slot + 1) * block_tokens;
        // Equal blocks before this one are one block: so many tokens are equal already.
        let same = |other: &RequestId, s: &Sequence| {
            *other != id
                && s.kept_blocks == slot
                && s.prefills()
                && s.planned_at >= since
                && s.tokens >= block.end
                && s.namespace.as_ref() == Some(namespace)
                && before(s) == before(sequence)
                && tokens(*other)[block.clone()] == mine[block.clone()]
        };
        let (&other, running) = self.running.iter().find(|(other, s)| same(other, s))?;
        let both = mine[..sequence.tokens].iter().zip(&tokens(other)[..running.tokens]);
        let equal = both.take_while(|(a, b)| a == b).count();
        Some(Awaited { id: other, tokens: equal / block_tokens * block_tokens })
    }

    /// Whether a waiting sequence still does well to wait for another's blocks.
    pub(crate) fn still_awaits(&self, awaited: Awaited) -> bool {
        let other = self.running.get(&awaited.id).filter(|other| other.prefills());
        other.is_some_and(|other| other.planned_at + 1 >= self.step && other.computed < awaited.tokens)
    }
}
