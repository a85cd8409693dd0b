//! Links between the ranks of a job.

use std::io::IoSlice;
use std::sync::mpsc::channel;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use lingqu_fabric::{Caller, Fabric, FabricError, Joined, Judge, Link, Listener, Pipe, Result, Secret, admit, join};

use crate::message::{CHUNK_BYTES, HEAD_BYTES, Kind, LinkId, encode};
use crate::progress::Progress;
use crate::state::{Over, Shared, failed};
use crate::sys::Mpi;

/// How an address begins; its rank follows.
const SCHEME: &str = "mpi:";
/// How long a process that leaves waits for the others; then it ends without MPI, and its launcher ends the others.
const LEAVE: Duration = Duration::from_secs(10);
const SECRET_BYTES: usize = 32;

/// The ranks that were started together, of which this process is one.
pub struct Job {
    shared: Arc<Shared>,
    rank: usize,
    size: usize,
    secret: Secret,
}

/// MPI is one for a process, whoever asks.
static JOB: OnceLock<std::result::Result<Job, String>> = OnceLock::new();

impl Job {
    /// The job of this process; MPI is begun where nobody asked before. Waits for all ranks to do the same.
    pub fn get() -> Result<&'static Self> {
        JOB.get_or_init(Self::begin).as_ref().map_err(|words| failed(words.clone()))
    }

    /// The job, if MPI was begun.
    pub fn begun() -> Option<&'static Self> {
        JOB.get()?.as_ref().ok()
    }

    fn begin() -> std::result::Result<Self, String> {
        let (told, begun) = channel();
        let run = move || {
            let begin = || -> crate::sys::Result<_> {
                let mpi = Mpi::begin()?;
                let mut secret = [0; SECRET_BYTES];
                getrandom::fill(&mut secret).map_err(|e| format!("cannot get random numbers: {e}"))?;
                mpi.share(&mut secret)?;
                // As text: a secret is without the white space around it.
                let secret: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
                let secret = Secret::new(secret.as_bytes()).map_err(|e| e.to_string())?;
                Ok((mpi, secret))
            };
            match begin() {
                Ok((mpi, secret)) => {
                    let shared = Arc::new(Shared::new(mpi.size));
                    let _ = told.send(Ok(Self { shared: Arc::clone(&shared), rank: mpi.rank, size: mpi.size, secret }));
                    Progress::new(mpi, &shared).run();
                }
                Err(words) => drop(told.send(Err(words))),
            }
        };
        std::thread::Builder::new().name("mpi".into()).spawn(run).map_err(|e| format!("cannot start a thread: {e}"))?;
        begun.recv().map_err(|_| "MPI did not begin".to_owned())?
    }

    /// Which of them this process is, from 0.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// How many they are.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Where a rank is called.
    pub fn address(rank: usize) -> String {
        format!("{SCHEME}{rank}")
    }

    /// A random secret that the ranks share and nobody else has.
    pub fn secret(&self) -> Secret {
        self.secret.clone()
    }

    /// Links whose ends prove `secret`.
    pub fn fabric(&'static self, secret: Secret) -> MpiFabric {
        MpiFabric { job: self, secret }
    }

    /// Ends the job for all ranks, and MPI for this process: nothing can be sent any more. Waits for the others, but
    /// not for ever.
    pub fn leave(&self) {
        let is_first = self.shared.lock().over.is_none();
        self.shared.end(Over::Ended);
        let mut state = self.shared.lock();
        if is_first {
            for peer in (0..self.size).filter(|rank| *rank != self.rank) {
                let end = encode(Kind::End, LinkId { peer, calls: true, number: 0 }, 0);
                state.outbox.push_back((peer, end));
            }
        }
        state.leaves = true;
        self.shared.wake.notify_one();
        let wait = self.shared.changed.wait_timeout_while(state, LEAVE, |state| !state.gone);
        drop(wait.expect("no holder panics"));
    }
}

/// Links between the ranks of a job: an address is `mpi:` and a rank.
#[derive(Clone)]
pub struct MpiFabric {
    job: &'static Job,
    secret: Secret,
}

impl MpiFabric {
    fn rank(&self, address: &str) -> Result<usize> {
        let bad = |problem: String| FabricError::Address { address: address.into(), problem };
        let rank = address.strip_prefix(SCHEME).and_then(|rank| rank.parse().ok());
        match rank.ok_or_else(|| bad(format!("write {SCHEME}RANK")))? {
            rank if rank < self.job.size => Ok(rank),
            rank => Err(bad(format!("rank {rank} is none of {}", self.job.size))),
        }
    }

    fn pipe(&self, link: LinkId) -> MpiPipe {
        MpiPipe { shared: Arc::clone(&self.job.shared), link, message: Vec::new(), at: 0 }
    }
}

impl Fabric for MpiFabric {
    fn connect(&self, address: &str, greeting: &[u8], deadline: Instant) -> Result<Joined> {
        let link = self.job.shared.call(self.rank(address)?, deadline)?;
        join(self.pipe(link), &self.secret, greeting, deadline)
    }

    /// There is one listener in a process, at its rank.
    fn listen(&self, address: &str) -> Result<Box<dyn Listener>> {
        let rank = self.rank(address)?;
        if rank != self.job.rank {
            let problem = format!("this is rank {}", self.job.rank);
            return Err(FabricError::Address { address: address.into(), problem });
        }
        self.job.shared.listen();
        Ok(Box::new(MpiCallee { fabric: self.clone() }))
    }
}

struct MpiCallee {
    fabric: MpiFabric,
}

impl Listener for MpiCallee {
    fn address(&self) -> String {
        Job::address(self.fabric.job.rank)
    }

    fn accept(&self) -> Result<Box<dyn Caller>> {
        let pipe = self.fabric.pipe(self.fabric.job.shared.accept()?);
        Ok(Box::new(MpiCaller { pipe, secret: self.fabric.secret.clone() }))
    }
}

struct MpiCaller {
    pipe: MpiPipe,
    secret: Secret,
}

impl Caller for MpiCaller {
    fn address(&self) -> String {
        Job::address(self.pipe.link.peer)
    }

    fn admit(self: Box<Self>, judge: Judge<'_>, deadline: Instant) -> Result<Box<dyn Link>> {
        admit(self.pipe, &self.secret, judge, deadline)
    }
}

/// One end of a link.
struct MpiPipe {
    shared: Arc<Shared>,
    link: LinkId,
    /// What is being read, with its head.
    message: Vec<u8>,
    /// So far.
    at: usize,
}

impl Pipe for MpiPipe {
    fn write(&mut self, mut parts: &mut [IoSlice<'_>], deadline: Instant) -> Result<()> {
        let mut left: usize = parts.iter().map(|part| part.len()).sum();
        while left > 0 {
            let bytes = left.min(CHUNK_BYTES);
            self.shared.reserve(self.link, bytes, deadline)?;
            let mut message = encode(Kind::Data, self.link, bytes);
            while message.len() < HEAD_BYTES + bytes {
                let part = &parts[0][..parts[0].len().min(HEAD_BYTES + bytes - message.len())];
                message.extend_from_slice(part);
                let count = part.len();
                IoSlice::advance_slices(&mut parts, count);
            }
            self.shared.send(self.link, message);
            left -= bytes;
        }
        Ok(())
    }

    fn read(&mut self, bytes: &mut [u8], deadline: Instant) -> Result<()> {
        let mut done = 0;
        while done < bytes.len() {
            if self.at >= self.message.len() {
                self.message = self.shared.next(self.link, deadline)?;
                self.at = HEAD_BYTES;
            }
            let count = (bytes.len() - done).min(self.message.len() - self.at);
            bytes[done..done + count].copy_from_slice(&self.message[self.at..self.at + count]);
            (done, self.at) = (done + count, self.at + count);
        }
        Ok(())
    }
}

impl Drop for MpiPipe {
    fn drop(&mut self) {
        self.shared.drop_link(self.link);
    }
}
