//! Who repacks matrices: at once, or bit by bit while they are multiplied with already.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use lingqu_tensor::HostTensor;

use super::{Scheme, pack, panel_bytes, scheme};
use crate::Result;
use crate::region::{Region, Regions};
use crate::simd::PANEL_ROWS;
use crate::team::Team;

/// Matrices that are repacked together into one piece of memory, at once or bit by bit. What is not done can be
/// multiplied with all the same: its panels are repacked for the moment, into memory that is at hand: see
/// [`super::Panels::part`].
pub(crate) struct Pack {
    /// `None` when all is repacked: their bytes are not read any more.
    stacked: Mutex<Option<Arc<Vec<Stacked>>>>,
    /// Panels of all matrices, and the next one that nobody has taken.
    panels: usize,
    next: AtomicUsize,
    broken: AtomicBool,
    /// Nobody reads a panel before it is repacked.
    memory: Arc<Region>,
}

/// A matrix that is being repacked.
pub(super) struct Stacked {
    pub tensor: HostTensor,
    pub scheme: Scheme,
    /// Bytes of a panel, and panels.
    pub panel_bytes: usize,
    pub panels: usize,
    /// Where its panels start, and the number of the first one among those of all matrices.
    pub at: usize,
    pub first: usize,
    /// Panels that are not done, of each [`PART_PANELS`].
    left: Vec<AtomicUsize>,
}

/// Panels after which their stored bytes are given back: a large matrix is not held twice.
const PART_PANELS: usize = 64;

impl Stacked {
    /// Repacks a panel. Whether all its scales are numbers.
    pub fn pack(&self, number: usize, out: &mut [u8]) -> bool {
        let row_bytes = self.tensor.row_bytes();
        let count = (self.tensor.rows - number * PANEL_ROWS).min(PANEL_ROWS);
        let rows = &self.tensor.data.as_slice()[number * PANEL_ROWS * row_bytes..][..count * row_bytes];
        pack::panel(self, rows, out)
    }

    /// Says that a panel was repacked for good.
    fn count(&self, number: usize) {
        let part = number / PART_PANELS;
        if self.left[part].fetch_sub(1, Ordering::Relaxed) == 1 {
            let part_bytes = PART_PANELS * PANEL_ROWS * self.tensor.row_bytes();
            let (start, end) = (part * part_bytes, ((part + 1) * part_bytes).min(self.tensor.data.len()));
            self.tensor.data.slice(start..end).expect("a part of the tensor").release();
        }
    }
}

impl Pack {
    /// Matrices of whole blocks, of which nothing is repacked yet.
    ///
    /// # Errors
    /// [`BackendError::OutOfMemory`]
    ///
    /// [`BackendError::OutOfMemory`]: lingqu_backend::BackendError::OutOfMemory
    pub(super) fn new(regions: &Regions, tensors: &[&HostTensor]) -> Result<Arc<Self>> {
        let (mut bytes, mut panels) = (0, 0);
        let stacked = tensors.iter().map(|&tensor| {
            let scheme = scheme(tensor.format).expect("a block format");
            let of = Stacked {
                tensor: tensor.clone(),
                scheme,
                panel_bytes: panel_bytes(&scheme, tensor.cols),
                panels: tensor.rows.div_ceil(PANEL_ROWS),
                at: bytes,
                first: panels,
                left: parts_of(tensor.rows.div_ceil(PANEL_ROWS)),
            };
            bytes += of.panels * of.panel_bytes;
            panels += of.panels;
            of
        });
        let stacked: Vec<Stacked> = stacked.collect();
        let what = stacked.first().map_or(String::new(), |of| format!("the weights from '{}' on", of.tensor.name));
        Ok(Arc::new(Self {
            memory: Arc::new(regions.take(&what, bytes)?),
            stacked: Mutex::new(Some(Arc::new(stacked))),
            panels,
            next: AtomicUsize::new(0),
            broken: AtomicBool::new(false),
        }))
    }

    /// The matrices, unless all is repacked.
    pub(super) fn stacked(&self) -> Option<Arc<Vec<Stacked>>> {
        self.stacked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether all panels before the one with this number are repacked. To be asked where nobody repacks.
    pub(super) fn has(&self, panels: usize) -> bool {
        self.next.load(Ordering::Acquire) >= panels
    }

    pub(super) fn memory(&self) -> &Arc<Region> {
        &self.memory
    }

    /// Repacks, until a moment if there is one. Whether all is done. One caller at a time.
    ///
    /// # Errors
    /// [`BackendError::Tensor`] for a scale that is NaN or infinite.
    ///
    /// [`BackendError::Tensor`]: lingqu_backend::BackendError::Tensor
    pub fn run(&self, team: &Team, until: Option<Instant>) -> Result<bool> {
        let Some(stacked) = self.stacked() else { return Ok(true) };
        // SAFETY: nobody writes it but this call, nor reads panels that are not repacked.
        let shares = unsafe { self.memory.shares() };
        team.run_if_worth(self.memory.len(), |_, _| {
            let (mut first, mut of) = (0, stacked.iter());
            let Some(mut now) = of.next() else { return };
            while until.is_none_or(|until| Instant::now() < until) {
                let panel = self.next.fetch_add(1, Ordering::Relaxed);
                if panel >= self.panels {
                    return;
                }
                while panel >= first + now.panels {
                    first += now.panels;
                    now = of.next().expect("a matrix for each panel");
                }
                let number = panel - first;
                let at = now.at + number * now.panel_bytes;
                // SAFETY: each panel is taken once.
                let out = unsafe { shares.part(at..at + now.panel_bytes) };
                if !now.pack(number, out) {
                    self.broken.store(true, Ordering::Relaxed);
                }
                now.count(number);
            }
        });
        // Before anybody reads what was repacked now.
        if self.broken.load(Ordering::Relaxed) {
            stacked.iter().try_for_each(|of| of.tensor.check_finite_scales())?;
        }
        // Who took a panel has finished it.
        if self.next.load(Ordering::Relaxed) < self.panels {
            return Ok(false);
        }
        if until.is_some() {
            // Products may have read parts again that were given back.
            stacked.iter().for_each(|of| of.tensor.data.release());
        }
        *self.stacked.lock().unwrap_or_else(PoisonError::into_inner) = None;
        Ok(true)
    }
}

fn parts_of(panels: usize) -> Vec<AtomicUsize> {
    (0..panels).step_by(PART_PANELS).map(|first| AtomicUsize::new((panels - first).min(PART_PANELS))).collect()
}
