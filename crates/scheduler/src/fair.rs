//! Fair sharing between tenants: whoever has had least, by weight, comes first.
//!
//! A virtual counter for each tenant (VTC: Sheng et al. 2024, "Fairness in Serving Large Language Models") grows with
//! what is computed for it. One that comes back after a while starts where the least served now stands: what it did not
//! use is not saved up, and what it used too much of is not forgiven.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use lingqu_types::{Priority, RequestId};

/// Fractions of a cost that a counter can tell: weights divide costs.
const SCALE: u64 = 1024;

/// What a token costs. The relations are what counts: an output token takes a step of its own, and keeps its sequence's
/// blocks for that long; a token found in the cache takes neither.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Cost {
    Cached = 1,
    Prompt = 8,
    Output = 16,
}

#[derive(Debug)]
struct Tenant {
    weight: u64,
    served: u64,
    /// Sequences that wait or run.
    live: usize,
    /// Those that wait and are not paused, by [`Priority`]; ids ascend in order of arrival.
    queues: [BTreeSet<RequestId>; 2],
}

/// Priorities there are.
const CLASSES: [Priority; 2] = [Priority::Interactive, Priority::Batch];

/// See the module.
#[derive(Debug)]
pub(crate) struct Tenants {
    /// Unknown ones have weight 1.
    weights: BTreeMap<Arc<str>, u32>,
    active: BTreeMap<Arc<str>, Tenant>,
    /// Counters of tenants that have nothing here, at most `remembered_max`.
    idle: BTreeMap<Arc<str>, u64>,
    remembered_max: usize,
    /// Where newcomers start when nobody is here.
    last_served: u64,
    /// Sequences in all queues, by [`Priority`].
    queued: [usize; 2],
}

impl Tenants {
    pub fn new(weights: &BTreeMap<Arc<str>, u32>, remembered_max: usize) -> Self {
        let (active, idle) = (BTreeMap::new(), BTreeMap::new());
        Self { weights: weights.clone(), active, idle, remembered_max, last_served: 0, queued: [0; 2] }
    }

    /// A sequence of this tenant has come.
    pub fn arrive(&mut self, name: &Arc<str>) {
        if !self.active.contains_key(name) {
            let least = self.active.values().map(|tenant| tenant.served).min().unwrap_or(self.last_served);
            let served = self.idle.remove(name).unwrap_or(0).max(least);
            let weight = u64::from(self.weights.get(name).copied().unwrap_or(1).max(1));
            self.active.insert(name.clone(), Tenant { weight, served, live: 0, queues: Default::default() });
        }
        self.get_mut(name).live += 1;
    }

    /// A sequence has ended; it is in no queue.
    pub fn leave(&mut self, name: &Arc<str>) {
        let tenant = self.get_mut(name);
        tenant.live -= 1;
        if tenant.live > 0 {
            return;
        }
        assert!(tenant.queues.iter().all(BTreeSet::is_empty), "an ended sequence waits");
        let served = tenant.served;
        self.active.remove(name);
        self.last_served = served;
        self.idle.insert(name.clone(), served);
        if self.idle.len() > self.remembered_max {
            // Whoever was served least is lifted the most on return: its counter says the least.
            let least = self.idle.iter().min_by_key(|(_, served)| **served).map(|(name, _)| name.clone());
            self.idle.remove(&least.expect("not empty"));
        }
    }

    /// Puts a sequence into the queue of its tenant.
    pub fn enqueue(&mut self, name: &Arc<str>, class: Priority, id: RequestId) {
        let is_new = self.get_mut(name).queues[class as usize].insert(id);
        assert!(is_new, "it is queued already");
        self.queued[class as usize] += 1;
    }

    /// Takes it out; nothing happens if it is not there.
    pub fn dequeue(&mut self, name: &Arc<str>, id: RequestId) {
        for class in CLASSES {
            let was_there = self.get_mut(name).queues[class as usize].remove(&id);
            self.queued[class as usize] -= usize::from(was_there);
        }
    }

    /// Sequences in all queues of one class.
    pub fn queued(&self, class: Priority) -> usize {
        self.queued[class as usize]
    }

    pub fn charge(&mut self, name: &Arc<str>, tokens: usize, cost: Cost) {
        let tenant = self.get_mut(name);
        tenant.served += tokens as u64 * cost as u64 * SCALE / tenant.weight;
    }

    /// What a tenant that is here has had, by weight.
    pub fn served(&self, name: &Arc<str>) -> u64 {
        self.active[name].served
    }

    /// The queues of one class with what their tenants have had.
    pub fn queues(&self, class: Priority) -> impl Iterator<Item = (u64, &BTreeSet<RequestId>)> {
        let queues = self.active.values().map(move |tenant| (tenant.served, &tenant.queues[class as usize]));
        queues.filter(|(_, queue)| !queue.is_empty())
    }

    /// Tenants that have sequences here, and those remembered besides.
    pub fn known(&self) -> (usize, usize) {
        (self.active.len(), self.idle.len())
    }

    fn get_mut(&mut self, name: &Arc<str>) -> &mut Tenant {
        self.active.get_mut(name).expect("its sequence has come and not ended")
    }
}
