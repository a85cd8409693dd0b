//! Routed experts on a second backend of this process: a model too large for its accelerator keeps attention there and
//! its experts in host memory.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use super::{Exchange, PendingExperts};
use crate::buffer::{Buffer, Routing, View, ViewMut};
use crate::ops::HostRouting;
use crate::weights::ExpertWeights;
use crate::{Backend, BackendError, Result};

/// Works on the experts in a thread of its own, so that the device's shared experts run meanwhile. The result has the
/// bits of the backend that holds the experts.
pub struct OffloadExchange {
    device: Arc<dyn Backend>,
    shared: Mutex<Shared>,
    worker: Option<JoinHandle<()>>,
}

/// What `begin` and `finish` share. One piece of work is on its way at a time: layers follow one another.
struct Shared {
    /// `None` only while dropping: a closed channel ends the worker.
    jobs: Option<SyncSender<Job>>,
    results: Receiver<(u64, Vec<f32>, Result<()>)>,
    last_number: u64,
    /// Memory of the last job, to be used again.
    spare: Vec<f32>,
}

struct Job {
    number: u64,
    layer: usize,
    /// `[rows, hidden]`; the result comes back in it.
    values: Vec<f32>,
    routing: HostRouting,
}

struct Worker {
    host: Arc<dyn Backend>,
    layers: Vec<Option<ExpertWeights>>,
    x: Buffer,
    y: Buffer,
    routing: Routing,
}

struct Pending {
    number: u64,
    layer: usize,
}

/// Shapes of an [`OffloadExchange`].
#[derive(Clone, Copy, Debug)]
pub struct OffloadSizes {
    pub rows_max: usize,
    pub hidden: usize,
    pub top_k: usize,
}

impl OffloadExchange {
    /// Experts `layers` that were uploaded to `host`, for a model whose other parts run on `device`.
    pub fn new(
        device: Arc<dyn Backend>,
        host: Arc<dyn Backend>,
        layers: Vec<Option<ExpertWeights>>,
        sizes: OffloadSizes,
    ) -> Result<Self> {
        let x = host.alloc(sizes.rows_max, sizes.hidden)?;
        let y = host.alloc(sizes.rows_max, sizes.hidden)?;
        let routing = host.alloc_routing(sizes.rows_max, sizes.top_k)?;
        let name = host.capabilities().name.clone();
        // One job and one result fit: a result that nobody fetched (its step failed) does not stop the worker.
        let (jobs, todo) = sync_channel(1);
        let (done, results) = sync_channel(2);
        let mut worker = Worker { host, layers, x, y, routing };
        let run = move || {
            while let Ok(Job { number, layer, mut values, routing }) = todo.recv() {
                let outcome = worker.run(layer, &mut values, &routing);
                if done.send((number, values, outcome)).is_err() {
                    return;
                }
            }
        };
        let worker = std::thread::Builder::new().name("experts".into()).spawn(run).map_err(|e| {
            BackendError::Device { backend: name, problem: format!("cannot start the thread of the experts: {e}") }
        })?;
        let shared = Shared { jobs: Some(jobs), results, last_number: 0, spare: Vec::new() };
        Ok(Self { device, shared: Mutex::new(shared), worker: Some(worker) })
    }

    fn shared(&self) -> std::sync::MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Worker {
    /// values `[rows, hidden]`: rows in, weighted sums of their experts out.
    fn run(&mut self, layer: usize, values: &mut [f32], routing: &HostRouting) -> Result<()> {
        let weights = self.layers[layer].as_ref().expect("a layer without routed experts");
        let rows = routing.experts.len() / routing.top_k;
        self.x.set_rows(rows);
        self.y.set_rows(rows);
        self.host.write(values, self.x.view_mut())?;
        self.host.write_routing(routing, &mut self.routing)?;
        self.host.experts(self.x.view(), &self.routing, weights, self.y.view_mut())?;
        self.host.read(self.y.view(), values)
    }
}

/// The worker is gone only if it panicked.
fn ended(layer: usize) -> BackendError {
    BackendError::Exchange { layer, problem: "the thread of the experts ended".into() }
}

impl Exchange for OffloadExchange {
    fn begin(&self, layer: usize, x: View<'_>, routing: &Routing) -> Result<PendingExperts> {
        let mut shared = self.shared();
        let mut values = std::mem::take(&mut shared.spare);
        values.resize(x.rows() * x.width(), 0.0);
        self.device.read(x, &mut values)?;
        let routing = self.device.read_routing(routing)?;
        shared.last_number += 1;
        let number = shared.last_number;
        // What an earlier step left behind, because it failed before it asked.
        while shared.results.try_recv().is_ok() {}
        let jobs = shared.jobs.as_ref().expect("open until dropped");
        jobs.send(Job { number, layer, values, routing }).map_err(|_| ended(layer))?;
        Ok(PendingExperts(Box::new(Pending { number, layer })))
    }

    fn finish(&self, pending: PendingExperts, _: View<'_>, _: &Routing, out: ViewMut<'_>) -> Result<()> {
        let Pending { number, layer } = *pending.0.downcast().expect("a pending of another exchange");
        let mut shared = self.shared();
        loop {
            let (found, values, outcome) = shared.results.recv().map_err(|_| ended(layer))?;
            if found == number {
                outcome?;
                self.device.write(&values, out)?;
                shared.spare = values;
                return Ok(());
            }
        }
    }
}

impl Drop for OffloadExchange {
    fn drop(&mut self) {
        self.shared().jobs = None;
        if let Some(worker) = self.worker.take() {
            // A panic there was reported as an error already.
            let _ = worker.join();
        }
    }
}
