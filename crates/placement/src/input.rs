//! What a placement is made from, and its checks.

use std::collections::BTreeMap;

/// A process that holds experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WorkerId(pub u32);

impl std::fmt::Display for WorkerId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "worker {}", self.0)
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct Worker {
    pub id: WorkerId,
    /// What it has for experts.
    pub memory_bytes: u64,
    /// Rows in a given time, relative to the others. Finite and above 0.
    pub speed: f64,
}

/// Sizes, devices and load. Layers are numbered as the model numbers them.
#[derive(Clone, Debug, PartialEq)]
pub struct PlacementInput {
    /// Routed experts of a layer that has any.
    pub experts: usize,
    /// Bytes of one expert by layer; 0 where the layer is dense.
    pub expert_bytes: Vec<u64>,
    pub workers: Vec<Worker>,
    /// Rows that each expert got, `[layers][experts]`, as measured; a dense layer's may be empty. None, or a layer of
    /// zeros: all experts count the same.
    pub load: Option<Vec<Vec<u64>>>,
    /// Copies beyond the first, as a share of the experts of a layer: 0.10 of 256 experts are 25 more copies.
    pub redundancy: f64,
}

/// What is wrong with a [`PlacementInput`].
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum InputError {
    #[error("experts: there are none")]
    NoExperts,
    #[error("workers: there are none")]
    NoWorkers,
    #[error("workers: {0} is named twice")]
    TwoWorkers(WorkerId),
    #[error("workers: the speed of {worker} is {speed}, not a number above 0")]
    Speed { worker: WorkerId, speed: f64 },
    #[error("load: {found} layers, the model has {expected}")]
    LoadLayers { found: usize, expected: usize },
    #[error("load: layer {layer} has {found} experts instead of {expected}")]
    LoadExperts { layer: usize, found: usize, expected: usize },
    #[error("redundancy: {0} is not a share from 0 on")]
    Redundancy(f64),
    #[error("expert_bytes: all experts together have more bytes than can be counted")]
    TooManyBytes,
    #[error("lost: {0} is none of the workers")]
    UnknownWorker(WorkerId),
    #[error("lost: no worker is left")]
    NobodyLeft,
}

impl PlacementInput {
    /// # Errors
    /// Name the field that is wrong.
    pub fn validate(&self) -> Result<(), InputError> {
        if self.experts == 0 {
            return Err(InputError::NoExperts);
        }
        if self.workers.is_empty() {
            return Err(InputError::NoWorkers);
        }
        let mut seen = std::collections::BTreeSet::new();
        for worker in &self.workers {
            if !seen.insert(worker.id) {
                return Err(InputError::TwoWorkers(worker.id));
            }
            if !(worker.speed.is_finite() && worker.speed > 0.0) {
                return Err(InputError::Speed { worker: worker.id, speed: worker.speed });
            }
        }
        if !(self.redundancy.is_finite() && self.redundancy >= 0.0) {
            return Err(InputError::Redundancy(self.redundancy));
        }
        let copies = self.copies_max() as u64;
        let whole = self.expert_bytes.iter().try_fold(0_u64, |sum, b| sum.checked_add(b.checked_mul(copies)?));
        whole.ok_or(InputError::TooManyBytes)?;
        self.validate_load()
    }

    fn validate_load(&self) -> Result<(), InputError> {
        let Some(load) = &self.load else { return Ok(()) };
        if load.len() != self.expert_bytes.len() {
            return Err(InputError::LoadLayers { found: load.len(), expected: self.expert_bytes.len() });
        }
        for (layer, rows) in load.iter().enumerate() {
            let is_dense = self.expert_bytes[layer] == 0;
            if rows.len() != self.experts && !(is_dense && rows.is_empty()) {
                return Err(InputError::LoadExperts { layer, found: rows.len(), expected: self.experts });
            }
        }
        Ok(())
    }

    /// Copies beyond the first in a layer: no more than one copy of each expert on each worker.
    pub fn spare_copies(&self) -> usize {
        let most = self.experts.saturating_mul(self.workers.len() - 1);
        ((self.experts as f64 * self.redundancy) as usize).min(most)
    }

    fn copies_max(&self) -> usize {
        self.experts.saturating_add(self.spare_copies())
    }

    /// What a layer's experts weigh against each other, `[experts]`; all of them above 0 together.
    pub(crate) fn load_of(&self, layer: usize) -> Vec<f64> {
        let measured = self.load.as_ref().map(|load| &load[layer]).filter(|rows| rows.iter().any(|&r| r > 0));
        match measured {
            Some(rows) => rows.iter().map(|&r| r as f64).collect(),
            None => vec![1.0; self.experts],
        }
    }

    /// Places in `workers` by id.
    pub(crate) fn index(&self) -> BTreeMap<WorkerId, usize> {
        self.workers.iter().enumerate().map(|(at, w)| (w.id, at)).collect()
    }

    pub(crate) fn speeds(&self) -> Vec<f64> {
        self.workers.iter().map(|w| w.speed).collect()
    }
}
