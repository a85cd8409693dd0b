//! Questions and answers over one link, under one epoch.

use std::time::Instant;

use lingqu_fabric::{FRAME_BYTES_MAX, FabricError, Link, Result, Tag};

/// One connection to a worker. After an error it is to be dropped.
pub(crate) struct Session {
    link: Box<dyn Link>,
    /// Of this connection: an answer under another one is none.
    epoch: u64,
    asked: u64,
    answered: u64,
    /// When the worker last said something.
    pub heard: Instant,
}

/// A question: its session's epoch, and its number in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Asked {
    epoch: u64,
    number: u64,
}

impl Session {
    pub fn new(link: Box<dyn Link>, epoch: u64) -> Self {
        Self { link, epoch, asked: 0, answered: 0, heard: Instant::now() }
    }

    /// Whether the answer to some question is still to come.
    pub fn is_waiting(&self) -> bool {
        self.asked != self.answered
    }

    /// Whether it was asked here, not of an earlier session.
    pub fn is_own(&self, asked: Asked) -> bool {
        self.epoch == asked.epoch
    }

    /// Whether nothing was asked after it, and it is not answered.
    pub fn is_last(&self, asked: Asked) -> bool {
        self.is_own(asked) && self.asked == asked.number && self.is_waiting()
    }

    pub fn ask(&mut self, kind: u16, parts: &[&[u8]], deadline: Instant) -> Result<Asked> {
        self.asked += 1;
        self.link.send(Tag { kind, epoch: self.epoch, sequence: self.asked }, parts, deadline)?;
        Ok(Asked { epoch: self.epoch, number: self.asked })
    }

    /// The answer to a question; `read` sees its kind and bytes. Answers to earlier questions, which nobody waited for
    /// in the end, are passed over.
    pub fn answer<R>(&mut self, to: Asked, deadline: Instant, read: impl FnOnce(u16, &[u8]) -> R) -> Result<R> {
        loop {
            let (tag, message) = self.link.receive(FRAME_BYTES_MAX, deadline)?;
            self.heard = Instant::now();
            if tag.epoch != self.epoch || tag.sequence > self.asked || tag.sequence <= self.answered {
                return Err(FabricError::Corrupt("an answer that nobody waits for"));
            }
            self.answered = tag.sequence;
            if tag.sequence == to.number {
                return Ok(read(tag.kind, message));
            }
        }
    }
}
