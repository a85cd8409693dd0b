//! What a scheduler is given, and what it tells of itself.

use std::collections::BTreeMap;
use std::sync::Arc;

use lingqu_types::Limits;

/// What a scheduler is given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SchedulerConfig {
    pub limits: Limits,
    /// Shares of tenants: one of weight 2 is served twice as much as one of weight 1, where both have enough to do.
    /// Tenants that are not named have weight 1.
    pub tenant_weights: BTreeMap<Arc<str>, u32>,
}

impl SchedulerConfig {
    /// All tenants alike.
    pub fn new(limits: Limits) -> Self {
        Self { limits, tenant_weights: BTreeMap::new() }
    }
}

/// What is running and what waits; and, from `preemptions` on, what has been done since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SchedulerLoad {
    /// Sequences that hold blocks, the paused ones among them.
    pub running: usize,
    /// Sequences that hold none, the preempted ones among them.
    pub waiting: usize,
    /// Of those that wait, the ones that go with [`lingqu_types::Priority::Interactive`] and are not paused.
    pub waiting_interactive: usize,
    /// Of those that wait, the ones that go with [`lingqu_types::Priority::Batch`] and are not paused.
    pub waiting_batch: usize,
    /// Sequences whose reader is slow, running or waiting.
    pub paused: usize,
    /// Tenants with sequences that run or wait.
    pub tenants: usize,
    /// Blocks that running sequences hold.
    pub kv_blocks_used: usize,
    /// Blocks that are kept for whoever begins with the same tokens; they are free for the asking.
    pub kv_blocks_kept: usize,
    pub kv_blocks_total: usize,
    /// Sequences sent back to waiting.
    pub preemptions: u64,
    /// Kept blocks given to others.
    pub kv_evictions: u64,
    /// Prompt tokens of all sequences that came.
    pub prompt_tokens: u64,
    /// Tokens that did not need computing, since their blocks were found in the cache.
    pub cached_tokens: u64,
    /// Tokens computed, each counted once however often its sequence was preempted.
    pub computed_tokens: u64,
    /// Drafts that were checked, those of a sequence's last step aside.
    pub drafted: u64,
    /// How many of them turned out right.
    pub accepted: u64,
    pub steps: u64,
}
