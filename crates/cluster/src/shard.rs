//! The experts that a process holds, and their work on pairs.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lingqu_backend::{Backend, BackendError, Buffer, ExpertWeights, HostRouting, Routing};
use thiserror::Error;

use crate::LoadExperts;
use crate::message::Pair;

/// Pairs computed together: bounds the buffers. Pairs come expert by expert, so that a weight is read about once.
const PAIRS_AT_ONCE: usize = 512;

#[derive(Debug, Error)]
pub(crate) enum ShardError {
    #[error("expert {expert} of layer {layer} is not held here")]
    NotHeld { layer: usize, expert: u32 },
    #[error("cannot load experts of layer {layer}: {problem}")]
    Load { layer: usize, problem: String },
    #[error(transparent)]
    Backend(#[from] BackendError),
}

/// Some of the routed experts of a model, on one backend.
pub struct Shard {
    backend: Arc<dyn Backend>,
    hidden: usize,
    load: Box<LoadExperts>,
    held: Mutex<BTreeMap<usize, Layer>>,
    bench: Mutex<Bench>,
    /// Held while experts are loaded: what is under way need not be loaded again.
    loading: Mutex<()>,
}

#[derive(Default)]
struct Layer {
    /// Experts that were loaded together; a number is not used again.
    groups: BTreeMap<usize, Arc<ExpertWeights>>,
    /// Group and place in it, by expert.
    places: BTreeMap<u32, (usize, u32)>,
    next_group: usize,
}

/// Buffers of one piece of work.
struct Bench {
    x: Buffer,
    y: Buffer,
    routing: Routing,
    host: HostRouting,
    values: Vec<f32>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is behind these locks is whole at every moment in which a thread could panic.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shard {
    /// Holds nothing yet. `hidden` is the width of a row.
    pub fn new(backend: Arc<dyn Backend>, hidden: usize, load: Box<LoadExperts>) -> Result<Self, BackendError> {
        let bench = Bench {
            x: backend.alloc(PAIRS_AT_ONCE, hidden)?,
            y: backend.alloc(PAIRS_AT_ONCE, hidden)?,
            routing: backend.alloc_routing(PAIRS_AT_ONCE, 1)?,
            host: HostRouting { top_k: 1, ..HostRouting::default() },
            values: Vec::new(),
        };
        let (held, bench) = (Mutex::default(), Mutex::new(bench));
        Ok(Self { backend, hidden, load, held, bench, loading: Mutex::new(()) })
    }

    pub(crate) fn hidden(&self) -> usize {
        self.hidden
    }

    /// Experts held, of all layers.
    pub fn experts(&self) -> usize {
        lock(&self.held).values().map(|layer| layer.places.len()).sum()
    }

    /// Bytes of weights on the backend, also of experts that were given up but share their memory with others.
    pub fn bytes(&self) -> usize {
        lock(&self.held).values().flat_map(|layer| layer.groups.values()).map(|group| group.bytes).sum()
    }

    /// Holds `experts` of `layer` from now on. Those that are held already cost nothing; work on others goes on.
    pub(crate) fn load(&self, layer: usize, experts: &[usize]) -> Result<(), ShardError> {
        let _alone = lock(&self.loading);
        let is_held = |expert: &usize| lock(&self.held).get(&layer).is_some_and(|l| l.has(*expert));
        let mut missing: Vec<usize> = experts.iter().copied().filter(|expert| !is_held(expert)).collect();
        missing.sort_unstable();
        missing.dedup();
        if missing.is_empty() {
            return Ok(());
        }
        let weights = (self.load)(layer, &missing).map_err(|problem| ShardError::Load { layer, problem })?;
        let mut held = lock(&self.held);
        held.entry(layer).or_default().add(weights, &missing);
        Ok(())
    }

    /// Forgets the experts of `layer` that are not in `wanted`; work on others goes on. Nothing is loaded between the
    /// question what is wanted and the forgetting.
    ///
    /// Experts that were loaded together share their memory: what is left of such a group is loaded once more, and the
    /// old group freed when nobody computes with it any more. So a layer's part of this process is here twice for that
    /// moment, and is read again. Where that cannot be done the memory stays until the rest of the group goes too.
    pub(crate) fn keep(&self, layer: usize, wanted: impl FnOnce() -> BTreeSet<usize>) -> Result<(), ShardError> {
        let _alone = lock(&self.loading);
        let wanted = wanted();
        let rest = match lock(&self.held).get_mut(&layer) {
            Some(held) => held.forget(&wanted),
            None => return Ok(()),
        };
        if rest.is_empty() {
            return Ok(());
        }
        let weights = (self.load)(layer, &rest).map_err(|problem| ShardError::Load { layer, problem })?;
        lock(&self.held).entry(layer).or_default().add(weights, &rest);
        Ok(())
    }

    /// What experts make of rows: `y[i] = ffn_pairs[i].expert(x[pairs[i].row])`, exactly as the backend computes it.
    /// x `[rows, hidden]`, y `[pairs, hidden]`
    pub(crate) fn compute(&self, layer: usize, pairs: &[Pair], x: &[f32], y: &mut [f32]) -> Result<(), ShardError> {
        for (weights, work) in self.by_group(layer, pairs)? {
            for work in work.chunks(PAIRS_AT_ONCE) {
                lock(&self.bench).run(&*self.backend, &weights, &Work { pairs, work, hidden: self.hidden }, x, y)?;
            }
        }
        Ok(())
    }

    /// Pairs by the group that holds their expert, expert by expert.
    fn by_group(&self, layer: usize, pairs: &[Pair]) -> Result<Vec<GroupWork>, ShardError> {
        let held = lock(&self.held);
        let missing = |pair: &Pair| ShardError::NotHeld { layer, expert: pair.expert };
        let mut groups: BTreeMap<usize, Vec<Placed>> = BTreeMap::new();
        for (number, pair) in pairs.iter().enumerate() {
            let place = held.get(&layer).and_then(|l| l.places.get(&pair.expert));
            let &(group, local) = place.ok_or_else(|| missing(pair))?;
            groups.entry(group).or_default().push(Placed { local, number });
        }
        let weights = |group: usize| Arc::clone(&held[&layer].groups[&group]);
        let sorted = |mut work: Vec<Placed>| {
            work.sort_unstable();
            work
        };
        Ok(groups.into_iter().map(|(group, work)| (weights(group), sorted(work))).collect())
    }
}

/// Experts that were loaded together, and pairs for them.
type GroupWork = (Arc<ExpertWeights>, Vec<Placed>);

/// A pair whose expert was found.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Placed {
    /// Place of the expert in its group.
    local: u32,
    /// Of the pair.
    number: usize,
}

impl Layer {
    fn has(&self, expert: usize) -> bool {
        u32::try_from(expert).is_ok_and(|expert| self.places.contains_key(&expert))
    }

    /// `weights` are those of `experts`, from now on. What they were in before is freed if nothing else is in it.
    fn add(&mut self, weights: ExpertWeights, experts: &[usize]) {
        let group = self.next_group;
        self.next_group += 1;
        self.groups.insert(group, Arc::new(weights));
        self.places.extend(experts.iter().zip(0..).map(|(&expert, local)| (expert as u32, (group, local))));
        self.free_groups();
    }

    /// Returns what is still held in groups that lost others: it keeps their memory.
    fn forget(&mut self, wanted: &BTreeSet<usize>) -> Vec<usize> {
        let is_wanted = |expert: u32| wanted.contains(&(expert as usize));
        let gone = self.places.iter().filter(|(expert, _)| !is_wanted(**expert));
        let torn: BTreeSet<usize> = gone.map(|(_, &(group, _))| group).collect();
        self.places.retain(|&expert, _| is_wanted(expert));
        self.free_groups();
        let rest = self.places.iter().filter(|(_, (group, _))| torn.contains(group));
        rest.map(|(&expert, _)| expert as usize).collect()
    }

    fn free_groups(&mut self) {
        let used: BTreeSet<usize> = self.places.values().map(|&(group, _)| group).collect();
        self.groups.retain(|group, _| used.contains(group));
    }
}

/// Pairs that one group of experts gets at once.
struct Work<'a> {
    pairs: &'a [Pair],
    work: &'a [Placed],
    hidden: usize,
}

impl Bench {
    fn run(
        &mut self,
        backend: &dyn Backend,
        weights: &ExpertWeights,
        work: &Work<'_>,
        x: &[f32],
        y: &mut [f32],
    ) -> Result<(), BackendError> {
        let Work { pairs, work, hidden } = *work;
        let Self { x: rows, y: outputs, routing, host, values } = self;
        values.clear();
        for placed in work {
            values.extend_from_slice(&x[pairs[placed.number].row as usize * hidden..][..hidden]);
        }
        host.experts.clear();
        host.experts.extend(work.iter().map(|placed| placed.local));
        host.weights.clear();
        // Times 1, added to 0: the output itself, but that -0 becomes 0, which the sum of a row makes of it anyway.
        host.weights.resize(work.len(), 1.0);
        rows.set_rows(work.len());
        outputs.set_rows(work.len());
        backend.write(values, rows.view_mut())?;
        backend.write_routing(host, routing)?;
        backend.experts(rows.view(), routing, weights, outputs.view_mut())?;
        backend.read(outputs.view(), values)?;
        for (placed, output) in work.iter().zip(values.chunks_exact(hidden)) {
            y[placed.number * hidden..][..hidden].copy_from_slice(output);
        }
        Ok(())
    }
}
