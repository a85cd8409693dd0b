//! The way to routed experts, wherever they live: here, on the CPU beside an accelerator, or in other processes.

use std::any::Any;
use std::sync::Arc;

use crate::buffer::{Routing, View, ViewMut};
use crate::weights::ExpertWeights;
use crate::{Backend, Result};

mod offload;

pub use offload::{OffloadExchange, OffloadSizes};

/// What an [`Exchange`] keeps between begin and finish.
pub struct PendingExperts(pub Box<dyn Any + Send>);

/// Sends rows to their experts and brings the weighted sums back.
///
/// The result has the bits of [`Backend::experts`] over all experts of the layer, however they are spread.
pub trait Exchange: Send + Sync {
    /// Starts the work; what does not need its result (the shared expert) may run until [`Exchange::finish`].
    /// x `[rows, hidden]`
    fn begin(&self, layer: usize, x: View<'_>, routing: &Routing) -> Result<PendingExperts>;

    /// Waits, bounded by the exchange's own deadline, and writes out `[rows, hidden]`. `x` and `routing` are those
    /// of `begin`, unchanged.
    fn finish(&self, pending: PendingExperts, x: View<'_>, routing: &Routing, out: ViewMut<'_>) -> Result<()>;

    /// Whether steps of so many rows are sooner done in two halves, each computed while the other's experts are away.
    /// The exchange then has two works pending at a time, which are finished in the order in which they began. May
    /// change from step to step; who answers no for the most rows answers no for good.
    fn halves(&self, rows: usize) -> bool {
        let _ = rows;
        false
    }
}

/// All experts live on the model's own device.
pub struct LocalExchange {
    backend: Arc<dyn Backend>,
    /// By layer; `None` where a layer has no routed experts.
    layers: Vec<Option<ExpertWeights>>,
}

impl LocalExchange {
    pub fn new(backend: Arc<dyn Backend>, layers: Vec<Option<ExpertWeights>>) -> Self {
        Self { backend, layers }
    }
}

impl Exchange for LocalExchange {
    fn begin(&self, layer: usize, _: View<'_>, _: &Routing) -> Result<PendingExperts> {
        Ok(PendingExperts(Box::new(layer)))
    }

    fn finish(&self, pending: PendingExperts, x: View<'_>, routing: &Routing, out: ViewMut<'_>) -> Result<()> {
        let layer: usize = *pending.0.downcast().expect("a pending of another exchange");
        let weights = self.layers[layer].as_ref().expect("a layer without routed experts");
        self.backend.experts(x, routing, weights, out)
    }
}
