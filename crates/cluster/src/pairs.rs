//! The experts of this process, asked as a worker is asked: pair by pair, with what crossing does to the numbers. One
//! process with it has the bits of a cluster whose wire is narrower than its numbers.

use std::sync::{Arc, Mutex, PoisonError};

use lingqu_backend::{Backend, BackendError, Buffer, Exchange, PendingExperts, Result, Routing, View, ViewMut};

use crate::message::Pair;
use crate::{ClusterError, Model, Shard, WireFormat};

/// A cluster of one, without a network.
pub struct PairExchange {
    device: Arc<dyn Backend>,
    shard: Shard,
    wire: WireFormat,
    /// `[rows_max * top_k, hidden]`
    outputs: Mutex<Buffer>,
}

impl PairExchange {
    /// Loads all experts of `model` into `shard`.
    pub fn new(device: Arc<dyn Backend>, shard: Shard, wire: WireFormat, model: &Model) -> Result<Self, ClusterError> {
        let outputs = Mutex::new(device.alloc(model.rows_max * model.top_k, shard.hidden())?);
        let all: Vec<usize> = (0..model.experts).collect();
        for layer in model.expert_layers() {
            let problem = |e: crate::shard::ShardError| BackendError::Exchange { layer, problem: e.to_string() };
            shard.load(layer, &all).map_err(problem)?;
        }
        Ok(Self { device, shard, wire, outputs })
    }
}

impl Exchange for PairExchange {
    fn begin(&self, layer: usize, _: View<'_>, _: &Routing) -> Result<PendingExperts> {
        Ok(PendingExperts(Box::new(layer)))
    }

    fn finish(&self, pending: PendingExperts, x: View<'_>, routing: &Routing, out: ViewMut<'_>) -> Result<()> {
        let layer: usize = *pending.0.downcast().expect("a pending of another exchange");
        let (rows, hidden, top_k) = (x.rows(), x.width(), routing.top_k());
        let mut values = vec![0.0; rows * hidden];
        self.device.read(x, &mut values)?;
        self.wire.round(hidden, &mut values);
        let experts = self.device.read_routing(routing)?.experts;
        let pairs = experts.iter().zip(0..).map(|(&expert, slot)| Pair { row: slot / top_k as u32, expert });
        let mut y = vec![0.0; rows * top_k * hidden];
        let problem = |e: crate::shard::ShardError| BackendError::Exchange { layer, problem: e.to_string() };
        self.shard.compute(layer, &pairs.collect::<Vec<_>>(), &values, &mut y).map_err(problem)?;
        self.wire.back().round(hidden, &mut y);
        let mut outputs = self.outputs.lock().unwrap_or_else(PoisonError::into_inner);
        outputs.set_rows(rows * top_k);
        self.device.write(&y, outputs.view_mut())?;
        self.device.combine(outputs.view(), routing, out)
    }
}
