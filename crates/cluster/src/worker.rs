//! A process that holds experts and works for whoever proves the cluster's secret and serves the same checkpoint.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use lingqu_fabric::{Caller, FRAME_BYTES_MAX, FabricError, Link, Listener, Tag};

use crate::message::{self, COMPUTE, Compute, FAILED, Greeting, LOAD, LOADED, OUTPUTS, PING, PONG, WireFormat};
use crate::{Shard, WorkerId};

/// Links, and callers on their way to become one, at once: one more is hung up on.
const CALLERS_MAX: usize = 16;
/// A link that is silent for so long is dropped; the other side sends heartbeats.
const SILENCE: Duration = Duration::from_secs(60);
/// For the other side to take a message.
const SEND: Duration = Duration::from_secs(30);
/// For the handshake.
const ADMIT: Duration = Duration::from_secs(10);

/// What a caller must agree with.
#[derive(Clone, Debug)]
pub struct Identity {
    pub id: WorkerId,
    /// Of the checkpoint.
    pub fingerprint: [u8; 32],
    /// How the numbers of an expert come about: workers that differ here do not belong into one cluster.
    pub arithmetic: String,
}

/// Serves links, each on a thread of its own.
pub struct Worker {
    shard: Shard,
    identity: Identity,
    callers: AtomicUsize,
}

/// Counts a caller as long as it lives.
struct Place(Arc<Worker>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.callers.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Worker {
    pub fn new(shard: Shard, identity: Identity) -> Arc<Self> {
        Arc::new(Self { shard, identity, callers: AtomicUsize::new(0) })
    }

    /// Experts held, of all layers.
    pub fn experts(&self) -> usize {
        self.shard.experts()
    }

    /// Takes calls until the process ends, or until no call can be taken any more.
    pub fn serve(self: &Arc<Self>, listener: &dyn Listener) -> FabricError {
        loop {
            let caller = match listener.accept() {
                Ok(caller) => caller,
                // The caller was gone before it was taken.
                Err(FabricError::Closed) => continue,
                Err(error) => return error,
            };
            let from = caller.address();
            let place = Place(Arc::clone(self));
            if self.callers.fetch_add(1, Ordering::SeqCst) >= CALLERS_MAX {
                tracing::warn!(from, "hung up on a caller: {CALLERS_MAX} are there already");
                continue;
            }
            let run = move || {
                let worker = &place.0;
                let Err(error) = worker.admit(caller).and_then(|(mut link, wire)| worker.answer(&mut *link, wire));
                match error {
                    FabricError::Closed => tracing::info!(from, "the link was closed"),
                    error => tracing::warn!(from, "the link ends: {error}"),
                }
            };
            if let Err(error) = std::thread::Builder::new().name("link".into()).spawn(run) {
                tracing::warn!("hung up on a caller: cannot start a thread: {error}");
            }
        }
    }

    fn admit(&self, caller: Box<dyn Caller>) -> Result<(Box<dyn Link>, WireFormat), FabricError> {
        let mut wire = WireFormat::F32;
        let mut judge = |greeting: &[u8]| {
            let greeting = Greeting::decode(greeting)?;
            let ours = &self.identity;
            if greeting.worker != ours.id.0 {
                return Err(format!("this is {}, not worker {}", ours.id, greeting.worker));
            }
            if greeting.fingerprint != ours.fingerprint {
                let [theirs, ours] = [&greeting.fingerprint, &ours.fingerprint].map(|f| hex(&f[..8]));
                return Err(format!("another checkpoint: {ours}… here, {theirs}… there"));
            }
            wire = greeting.wire;
            Ok(ours.arithmetic.as_bytes().to_vec())
        };
        let link = caller.admit(&mut judge, Instant::now() + ADMIT)?;
        Ok((link, wire))
    }

    /// Answers messages, one after the other, until the link fails.
    fn answer(&self, link: &mut dyn Link, wire: WireFormat) -> Result<Infallible, FabricError> {
        let mut work = Buffers::default();
        loop {
            let (tag, message) = link.receive(FRAME_BYTES_MAX, Instant::now() + SILENCE)?;
            let kind = match self.respond(tag.kind, message, wire, &mut work) {
                Ok(kind) => kind,
                Err(problem) => {
                    tracing::warn!("a message could not be served: {problem}");
                    work.reply.clear();
                    work.reply.extend(problem.as_bytes());
                    FAILED
                }
            };
            link.send(Tag { kind, ..tag }, &[&work.reply], Instant::now() + SEND)?;
        }
    }

    /// Writes the reply and gives its kind; the error is for the other side's log.
    fn respond(&self, kind: u16, message: &[u8], wire: WireFormat, work: &mut Buffers) -> Result<u16, String> {
        work.reply.clear();
        let malformed = || format!("a message of kind {kind} with {} bytes of another form", message.len());
        match kind {
            PING => Ok(PONG),
            LOAD => {
                let (layer, experts) = message::decode_load(message).ok_or_else(malformed)?;
                self.shard.load(layer, &experts).map_err(|e| e.to_string())?;
                Ok(LOADED)
            }
            COMPUTE => {
                let hidden = self.shard.hidden();
                let asked = message::decode_compute(message, hidden, wire).ok_or_else(malformed)?;
                let Compute { layer, pairs, values } = asked;
                work.x.resize(values.len() / wire.value_bytes(), 0.0);
                work.y.resize(pairs.len() * hidden, 0.0);
                wire.decode(values, &mut work.x);
                self.shard.compute(layer, &pairs, &work.x, &mut work.y).map_err(|e| e.to_string())?;
                wire.encode(&work.y, &mut work.reply);
                Ok(OUTPUTS)
            }
            kind => Err(format!("messages of kind {kind} are not known")),
        }
    }
}

/// Memory of a link, to be used again.
#[derive(Default)]
struct Buffers {
    x: Vec<f32>,
    y: Vec<f32>,
    reply: Vec<u8>,
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
