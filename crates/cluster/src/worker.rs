//! A process that holds experts and works for whoever proves the cluster's secret and serves the same checkpoint.

use std::convert::Infallible;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lingqu_fabric::{Caller, FRAME_BYTES_MAX, FabricError, Link, Listener, Tag};

use crate::claims::Claims;
use crate::machine::{Machine, System};
use crate::message::{self, COMPUTE, Compute, FAILED, Greeting, KEEP, KEPT, LOAD, LOADED, OUTPUTS, Order, PING, PONG};
use crate::{Shard, WireFormat, WorkerId};

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
    machine: Arc<dyn Machine>,
    shard: Shard,
    identity: Identity,
    callers: AtomicUsize,
    /// Links on which work was asked for, or a sign of life.
    at_work: AtomicUsize,
    claims: Mutex<Claims>,
    standing: Mutex<Standing>,
}

/// As what a worker answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Standing {
    /// Callers must mean this one; none is answered without.
    incarnation: Option<u64>,
    /// A link that was admitted before the last one is answered no more.
    fences: u64,
}

/// Counts a caller as long as it lives.
struct Place(Arc<Worker>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.callers.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Counts a link as one at work as long as it lives.
struct AtWork<'a>(&'a AtomicUsize);

impl<'a> AtWork<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::SeqCst);
        Self(count)
    }
}

impl Drop for AtWork<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Worker {
    pub fn new(shard: Shard, identity: Identity) -> Arc<Self> {
        Self::on_machine(Arc::new(System), shard, identity)
    }

    pub(crate) fn on_machine(machine: Arc<dyn Machine>, shard: Shard, identity: Identity) -> Arc<Self> {
        let standing = Mutex::new(Standing { incarnation: Some(0), fences: 0 });
        let [callers, at_work] = [0, 0].map(AtomicUsize::new);
        Arc::new(Self { machine, shard, identity, callers, at_work, claims: Mutex::default(), standing })
    }

    /// Answers nobody from now on, on no link, until [`Worker::admit_as`]: others take it for gone. Each link ends
    /// with the next message on it.
    pub fn fence(&self) {
        let mut standing = self.standing();
        (standing.incarnation, standing.fences) = (None, standing.fences + 1);
    }

    /// Answers those who mean the worker that registered as `incarnation`. Unless told otherwise that is 0.
    pub fn admit_as(&self, incarnation: u64) {
        self.standing().incarnation = Some(incarnation);
    }

    fn standing(&self) -> MutexGuard<'_, Standing> {
        self.standing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a server has had it load its part, and asks it for more than that, on a link that lives.
    pub fn is_at_work(&self) -> bool {
        self.at_work.load(Ordering::SeqCst) > 0
    }

    /// Experts held, of all layers.
    pub fn experts(&self) -> usize {
        self.shard.experts()
    }

    /// Bytes of their weights.
    pub fn bytes(&self) -> usize {
        self.shard.bytes()
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
                let Err(error) = worker.admit(caller).and_then(|admitted| worker.answer(admitted));
                match error {
                    FabricError::Closed => tracing::info!(from, "the link was closed"),
                    error => tracing::warn!(from, "the link ends: {error}"),
                }
            };
            if let Err(error) = self.machine.spawn("link".into(), Box::new(run)) {
                tracing::warn!("hung up on a caller: cannot start a thread: {error}");
            }
        }
    }

    fn claims(&self) -> MutexGuard<'_, Claims> {
        self.claims.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn admit(&self, caller: Box<dyn Caller>) -> Result<Admitted, FabricError> {
        let (mut wire, mut server) = (WireFormat::F32, 0);
        let standing = *self.standing();
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
            match standing.incarnation {
                Some(own) if own == greeting.incarnation => {}
                Some(own) => {
                    return Err(format!("this is {} as incarnation {own}, not {}", ours.id, greeting.incarnation));
                }
                None => return Err(format!("{} is not registered at the moment", ours.id)),
            }
            (wire, server) = (greeting.wire, greeting.server);
            Ok(ours.arithmetic.as_bytes().to_vec())
        };
        let link = caller.admit(&mut judge, self.machine.now() + ADMIT)?;
        Ok(Admitted { link, wire, server, standing })
    }

    /// Answers messages, one after the other, until the link fails.
    fn answer(&self, Admitted { mut link, wire, server, standing }: Admitted) -> Result<Infallible, FabricError> {
        let mut work = Buffers::default();
        let _visit = Visit::new(self, server);
        let mut at_work = None;
        loop {
            let (tag, message) = link.receive(FRAME_BYTES_MAX, self.machine.now() + SILENCE)?;
            self.must_be(standing)?;
            let kind = match self.respond(tag.kind, message, (server, wire), &mut work) {
                Ok(kind) => kind,
                Err(problem) => {
                    tracing::warn!("a message could not be served: {problem}");
                    work.reply.clear();
                    work.reply.extend(problem.as_bytes());
                    FAILED
                }
            };
            self.must_be(standing)?;
            if matches!(kind, PONG | OUTPUTS) {
                at_work.get_or_insert_with(|| AtWork::new(&self.at_work));
            }
            link.send(Tag { kind, ..tag }, &[&work.reply], self.machine.now() + SEND)?;
        }
    }

    /// Ends a link that was admitted before the worker was fenced.
    fn must_be(&self, standing: Standing) -> Result<(), FabricError> {
        if *self.standing() == standing { Ok(()) } else { Err(FabricError::Closed) }
    }

    /// Writes the reply and gives its kind; the error is for the other side's log.
    fn respond(
        &self,
        kind: u16,
        message: &[u8],
        (server, wire): (u64, WireFormat),
        work: &mut Buffers,
    ) -> Result<u16, String> {
        work.reply.clear();
        let malformed = || format!("a message of kind {kind} with {} bytes of another form", message.len());
        match kind {
            PING => Ok(PONG),
            LOAD => {
                let order = Order::decode(message).ok_or_else(malformed)?;
                self.claims().add(server, &order); // before they are there: nobody is to forget them then
                self.shard.load(order.layer, &order.experts).map_err(|e| e.to_string())?;
                Ok(LOADED)
            }
            KEEP => {
                let order = Order::decode(message).ok_or_else(malformed)?;
                let wanted = || self.claims().set(server, &order);
                self.shard.keep(order.layer, wanted).map_err(|e| e.to_string())?;
                Ok(KEPT)
            }
            COMPUTE => {
                let hidden = self.shard.hidden();
                let asked = message::decode_compute(message, hidden, wire).ok_or_else(malformed)?;
                let Compute { layer, pairs, values } = asked;
                work.x.resize(values.len() / wire.row_bytes(hidden) * hidden, 0.0);
                work.y.resize(pairs.len() * hidden, 0.0);
                wire.decode(hidden, values, &mut work.x);
                self.shard.compute(layer, &pairs, &work.x, &mut work.y).map_err(|e| e.to_string())?;
                wire.back().encode(hidden, &work.y, &mut work.reply);
                Ok(OUTPUTS)
            }
            kind => Err(format!("messages of kind {kind} are not known")),
        }
    }
}

/// A caller who belongs here.
struct Admitted {
    link: Box<dyn Link>,
    wire: WireFormat,
    server: u64,
    standing: Standing,
}

/// Counts a server's link as long as it lives.
struct Visit<'a>(&'a Worker, u64);

impl<'a> Visit<'a> {
    fn new(worker: &'a Worker, server: u64) -> Self {
        worker.claims().enter(server);
        Self(worker, server)
    }
}

impl Drop for Visit<'_> {
    fn drop(&mut self) {
        self.0.claims().exit(self.1);
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
