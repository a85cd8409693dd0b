//! The placement itself, what can be asked of it, and which copy takes which row.

use crate::{PlacementInput, WorkerId, shares};

/// The shares of an expert's copies add up to this.
pub const SHARE_WHOLE: u32 = 1 << 16;

/// Where every routed expert lives.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Placement {
    /// By the model's layer index. A dense layer's is empty.
    pub layers: Vec<LayerPlacement>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LayerPlacement {
    /// For each routed expert the workers that hold a copy, first the primary: at least one, each once. All copies of
    /// an expert have the same bytes and give the same bits: which one is asked is a matter of speed alone.
    pub copies: Vec<Vec<WorkerId>>,
    /// For each copy, in the order of `copies`, the part of the expert's rows that it should get; an expert's add up
    /// to [`SHARE_WHOLE`]. A copy with share 0 is there in case the others die.
    pub shares: Vec<Vec<u32>>,
}

/// One copy of one expert.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Spot {
    pub layer: usize,
    pub expert: usize,
    pub worker: WorkerId,
}

/// What makes a placement unfit for a model and its workers.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlacementFault {
    #[error("it has {found} layers, the model {expected}")]
    Layers { found: usize, expected: usize },
    #[error("layer {layer} has {found} experts instead of {expected}")]
    Experts { layer: usize, found: usize, expected: usize },
    #[error("expert {expert} of layer {layer} is nowhere")]
    Nowhere { layer: usize, expert: usize },
    #[error("expert {expert} of layer {layer} is twice on {worker}")]
    Twice { layer: usize, expert: usize, worker: WorkerId },
    #[error("expert {expert} of layer {layer} is on {worker}, which is none of the workers")]
    UnknownWorker { layer: usize, expert: usize, worker: WorkerId },
    #[error("the shares of expert {expert} of layer {layer} do not add up")]
    Shares { layer: usize, expert: usize },
    #[error("{worker} would hold {bytes} bytes and has memory for {memory_bytes}: {} too many", bytes - memory_bytes)]
    Memory { worker: WorkerId, bytes: u64, memory_bytes: u64 },
}

impl LayerPlacement {
    pub fn is_dense(&self) -> bool {
        self.copies.is_empty()
    }

    /// Experts of which `worker` holds a copy, ascending.
    pub fn experts_of(&self, worker: WorkerId) -> Vec<usize> {
        (0..self.copies.len()).filter(|&e| self.copies[e].contains(&worker)).collect()
    }

    /// The copy that takes the next row, or the next batch of rows, of `expert`; None when no live worker has one.
    ///
    /// `turn` counts whatever the caller spreads: 0, 1, 2, … for one expert. Over any run of turns copies get their
    /// shares, as near as whole turns allow (a Weyl sequence); the same turn and the same live workers give the same
    /// copy everywhere. When workers are missing, the others keep their shares of what is left.
    pub fn copy_for(&self, expert: usize, turn: u64, is_live: impl Fn(WorkerId) -> bool) -> Option<WorkerId> {
        /// 2^16 by the golden ratio, odd: consecutive turns fall far apart and meet every point once.
        const STRIDE: u64 = 40_503;
        let copies = self.copies.get(expert)?;
        let live = || copies.iter().zip(&self.shares[expert]).filter(|(worker, _)| is_live(**worker));
        let whole: u64 = live().map(|(_, &share)| u64::from(share)).sum();
        let point = turn.wrapping_mul(STRIDE) % u64::from(SHARE_WHOLE);
        if whole == 0 {
            let count = live().count() as u64;
            return live().nth((point * count / u64::from(SHARE_WHOLE)) as usize).map(|(&worker, _)| worker);
        }
        let mut left = point * whole / u64::from(SHARE_WHOLE);
        for (&worker, &share) in live() {
            match left.checked_sub(u64::from(share)) {
                Some(rest) => left = rest,
                None => return Some(worker),
            }
        }
        unreachable!("the point lies below the sum of the shares")
    }
}

impl Placement {
    /// Bytes of the experts on `worker`; `expert_bytes` by layer.
    pub fn bytes_of(&self, worker: WorkerId, expert_bytes: &[u64]) -> u64 {
        let layers = self.layers.iter().zip(expert_bytes);
        layers.map(|(layer, &bytes)| bytes * layer.experts_of(worker).len() as u64).sum()
    }

    /// All copies, by layer, then expert, then in their order.
    pub fn spots(&self) -> impl Iterator<Item = Spot> + '_ {
        self.layers.iter().enumerate().flat_map(|(layer, placed)| {
            let experts = placed.copies.iter().enumerate();
            experts.flat_map(move |(expert, on)| on.iter().map(move |&worker| Spot { layer, expert, worker }))
        })
    }

    /// Whether it is a placement of `input`'s experts on `input`'s workers: every expert somewhere, nowhere twice,
    /// within the memory.
    pub fn validate(&self, input: &PlacementInput) -> Result<(), PlacementFault> {
        let expected = input.expert_bytes.len();
        if self.layers.len() != expected {
            return Err(PlacementFault::Layers { found: self.layers.len(), expected });
        }
        let index = input.index();
        let mut used = vec![0_u64; input.workers.len()];
        for (layer, placed) in self.layers.iter().enumerate() {
            let bytes = input.expert_bytes[layer];
            let expected = if bytes == 0 { 0 } else { input.experts };
            let found = placed.copies.len();
            if found != expected {
                return Err(PlacementFault::Experts { layer, found, expected });
            }
            for (expert, on) in placed.copies.iter().enumerate() {
                placed.validate_expert(layer, expert)?;
                for &worker in on {
                    let Some(&at) = index.get(&worker) else {
                        return Err(PlacementFault::UnknownWorker { layer, expert, worker });
                    };
                    used[at] = used[at].saturating_add(bytes);
                }
            }
        }
        for (worker, &bytes) in input.workers.iter().zip(&used) {
            if bytes > worker.memory_bytes {
                let memory_bytes = worker.memory_bytes;
                return Err(PlacementFault::Memory { worker: worker.id, bytes, memory_bytes });
            }
        }
        Ok(())
    }

    /// Time of the busiest worker in `layer` over the time of a perfect division: 1.0 is perfect. 1.0 if dense.
    pub fn imbalance(&self, input: &PlacementInput, layer: usize) -> f64 {
        if self.layers[layer].is_dense() {
            return 1.0;
        }
        let loads = self.worker_loads(input, layer);
        shares::imbalance(&loads, &input.speeds())
    }

    /// Rows of `layer` that each worker gets when copies get their shares, in the order of `input.workers`.
    pub fn worker_loads(&self, input: &PlacementInput, layer: usize) -> Vec<f64> {
        let (placed, load, index) = (&self.layers[layer], input.load_of(layer), input.index());
        let mut loads = vec![0.0; input.workers.len()];
        for (expert, on) in placed.copies.iter().enumerate() {
            for (worker, &share) in on.iter().zip(&placed.shares[expert]) {
                loads[index[worker]] += load[expert] * f64::from(share) / f64::from(SHARE_WHOLE);
            }
        }
        loads
    }
}

impl LayerPlacement {
    fn validate_expert(&self, layer: usize, expert: usize) -> Result<(), PlacementFault> {
        let on = &self.copies[expert];
        if on.is_empty() {
            return Err(PlacementFault::Nowhere { layer, expert });
        }
        if let Some(at) = (1..on.len()).find(|&at| on[..at].contains(&on[at])) {
            return Err(PlacementFault::Twice { layer, expert, worker: on[at] });
        }
        let shares = self.shares.get(expert).map(|shares| shares.as_slice()).unwrap_or_default();
        let whole: u64 = shares.iter().map(|&s| u64::from(s)).sum();
        if shares.len() != on.len() || whole != u64::from(SHARE_WHOLE) {
            return Err(PlacementFault::Shares { layer, expert });
        }
        Ok(())
    }
}
