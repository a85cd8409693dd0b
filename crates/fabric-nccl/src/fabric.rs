//! Links: a link of another fabric, and a communicator beside it.

use std::sync::Arc;
use std::time::Instant;

use lingqu_fabric::{Caller, FRAME_BYTES_MAX, Fabric, FabricError, Joined, Judge, Link, Listener, Result, Tag};

use crate::communicator::{Communicator, Piece};
use crate::library::{Library, UNIQUE_ID_BYTES, UniqueId, failed};
use crate::staging::Staging;

/// Up to here a message goes over the first link whole.
pub const SHORT_BYTES_MAX: usize = 32 << 10;

/// Length, checksum.
const HEAD_BYTES: usize = 8;
/// The message with the communicator's id is the first one.
const ID: Tag = Tag { kind: 1, epoch: 0, sequence: 0 };

/// Makes the device's side of a new link; the error is the driver's words.
pub type MakeStaging = dyn Fn() -> Result<Box<dyn Staging>, String> + Send + Sync;

/// Links over another fabric whose long messages go between devices.
#[derive(Clone)]
pub struct NcclFabric {
    library: Arc<Library>,
    first: Arc<dyn Fabric>,
    stagings: Arc<MakeStaging>,
}

impl NcclFabric {
    /// `first` finds peers, has them prove the secret and carries what is short.
    pub fn new(library: Arc<Library>, first: Arc<dyn Fabric>, stagings: Arc<MakeStaging>) -> Self {
        Self { library, first, stagings }
    }

    fn link(&self, first: Box<dyn Link>, id: UniqueId, rank: i32, deadline: Instant) -> Result<Box<dyn Link>> {
        let staging = (self.stagings)().map_err(failed)?;
        let communicator = Communicator::join(Arc::clone(&self.library), id, rank, deadline)?;
        // The communicator is dropped first: what it still does with the memory ends there.
        Ok(Box::new(NcclLink { communicator, staging, first, message: Vec::new() }))
    }
}

impl Fabric for NcclFabric {
    fn connect(&self, address: &str, greeting: &[u8], deadline: Instant) -> Result<Joined> {
        let Joined { mut link, answer } = self.first.connect(address, greeting, deadline)?;
        let id = self.library.unique_id()?;
        link.send(ID, &[&id.0], deadline)?;
        Ok(Joined { link: self.link(link, id, 0, deadline)?, answer })
    }

    fn listen(&self, address: &str) -> Result<Box<dyn Listener>> {
        Ok(Box::new(NcclCallee { first: self.first.listen(address)?, fabric: self.clone() }))
    }
}

struct NcclCallee {
    first: Box<dyn Listener>,
    fabric: NcclFabric,
}

impl Listener for NcclCallee {
    fn address(&self) -> String {
        self.first.address()
    }

    fn accept(&self) -> Result<Box<dyn Caller>> {
        Ok(Box::new(NcclCaller { first: self.first.accept()?, fabric: self.fabric.clone() }))
    }
}

struct NcclCaller {
    first: Box<dyn Caller>,
    fabric: NcclFabric,
}

impl Caller for NcclCaller {
    fn address(&self) -> String {
        self.first.address()
    }

    fn admit(self: Box<Self>, judge: Judge<'_>, deadline: Instant) -> Result<Box<dyn Link>> {
        let mut link = self.first.admit(judge, deadline)?;
        let (tag, id) = link.receive(UNIQUE_ID_BYTES, deadline)?;
        let id = <[u8; UNIQUE_ID_BYTES]>::try_from(id).ok().filter(|_| tag == ID);
        let id = UniqueId(id.ok_or(FabricError::Corrupt("no id of a communicator"))?);
        self.fabric.link(link, id, 1, deadline)
    }
}

struct NcclLink {
    communicator: Communicator,
    staging: Box<dyn Staging>,
    first: Box<dyn Link>,
    /// The last long message.
    message: Vec<u8>,
}

impl Link for NcclLink {
    fn send(&mut self, tag: Tag, parts: &[&[u8]], deadline: Instant) -> Result<()> {
        let bytes = parts.iter().map(|part| part.len()).sum();
        if bytes > FRAME_BYTES_MAX {
            return Err(FabricError::TooLong { bytes, bytes_max: FRAME_BYTES_MAX });
        }
        let is_short = bytes <= SHORT_BYTES_MAX;
        let mut head = [0; HEAD_BYTES];
        head[..4].copy_from_slice(&(bytes as u32).to_le_bytes());
        if is_short {
            let all: Vec<&[u8]> = [&head[..]].into_iter().chain(parts.iter().copied()).collect();
            return self.first.send(tag, &all, deadline);
        }
        let mut checksum = crc32fast::Hasher::new();
        parts.iter().for_each(|part| checksum.update(part));
        head[4..].copy_from_slice(&checksum.finalize().to_le_bytes());
        self.first.send(tag, &[&head], deadline)?;
        let at = self.staging.reserve(bytes).map_err(failed)?;
        self.staging.upload(parts).map_err(failed)?;
        self.communicator.send(&mut *self.staging, Piece { at, bytes }, deadline)
    }

    fn receive(&mut self, bytes_max: usize, deadline: Instant) -> Result<(Tag, &[u8])> {
        let (tag, bytes, checksum) = {
            let (tag, message) = self.first.receive(HEAD_BYTES + SHORT_BYTES_MAX, deadline)?;
            let (bytes, checksum, rest) = split(message)?;
            if bytes > bytes_max.min(FRAME_BYTES_MAX) {
                return Err(FabricError::TooLong { bytes, bytes_max });
            }
            if bytes <= SHORT_BYTES_MAX {
                if rest.len() != bytes {
                    return Err(FabricError::Corrupt("a short message of another length"));
                }
                // Copied so that the borrow of the first link ends on every path.
                self.message.clear();
                self.message.extend_from_slice(rest);
                return Ok((tag, &self.message));
            }
            (tag, bytes, checksum)
        };
        let at = self.staging.reserve(bytes).map_err(failed)?;
        self.communicator.receive(&mut *self.staging, Piece { at, bytes }, deadline)?;
        self.message.resize(bytes, 0);
        self.staging.download(&mut self.message).map_err(failed)?;
        match crc32fast::hash(&self.message) == checksum {
            true => Ok((tag, &self.message)),
            false => Err(FabricError::Corrupt("its message has another checksum")),
        }
    }
}

/// Length of a message, its checksum, and what came of it.
fn split(message: &[u8]) -> Result<(usize, u32, &[u8])> {
    let (head, rest) = message.split_first_chunk::<HEAD_BYTES>().ok_or(FabricError::Corrupt("no length"))?;
    let u32_at = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
    Ok((u32_at(0) as usize, u32_at(4), rest))
}
