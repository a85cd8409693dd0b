//! Questions and answers over one link, under one epoch.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use lingqu_fabric::{FRAME_BYTES_MAX, FabricError, Link, Result, Tag};

use crate::machine::Machine;

/// Bytes of answers that a connection's buffers hold while nobody takes them. Were more on their way when the next
/// question is sent, each side might wait for the other to read.
const UNREAD_BYTES_MAX: usize = 64 << 10;
/// Answers that are kept for whoever asked.
const KEPT_MAX: usize = 2;

/// One connection to a worker. After an error it is to be dropped.
pub(crate) struct Session {
    machine: Arc<dyn Machine>,
    link: Box<dyn Link>,
    /// Of this connection: an answer under another one is none.
    epoch: u64,
    asked: u64,
    answered: u64,
    /// Of answers that are still to come.
    unread_bytes: usize,
    /// The last answers that came before they were waited for.
    kept: VecDeque<Kept>,
    /// When the worker last said something.
    pub heard: Instant,
    /// When it was last asked something.
    pub asked_at: Instant,
}

struct Kept {
    number: u64,
    kind: u16,
    message: Vec<u8>,
}

/// A question: its session's epoch, and its number in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Asked {
    epoch: u64,
    number: u64,
}

impl Session {
    pub fn new(machine: Arc<dyn Machine>, link: Box<dyn Link>, epoch: u64) -> Self {
        let now = machine.now();
        let (unread_bytes, kept) = (0, VecDeque::new());
        Self { machine, link, epoch, asked: 0, answered: 0, unread_bytes, kept, heard: now, asked_at: now }
    }

    /// Whether the answer to some question is still to come.
    pub fn is_waiting(&self) -> bool {
        self.asked != self.answered
    }

    /// Whether it was asked here, not of an earlier session.
    pub fn is_own(&self, asked: Asked) -> bool {
        self.epoch == asked.epoch
    }

    /// The last question so far.
    pub fn last(&self) -> Asked {
        Asked { epoch: self.epoch, number: self.asked }
    }

    /// Whether it and all before it are answered, or were asked of an earlier session.
    pub fn is_answered(&self, asked: Asked) -> bool {
        !self.is_own(asked) || self.answered >= asked.number
    }

    /// Whether nothing was asked after it, and it is not answered.
    pub fn is_last(&self, asked: Asked) -> bool {
        self.is_own(asked) && self.asked == asked.number && self.is_waiting()
    }

    /// `answer_bytes`: about how long the answer will be.
    pub fn ask(&mut self, kind: u16, parts: &[&[u8]], answer_bytes: usize, deadline: Instant) -> Result<Asked> {
        if self.unread_bytes > UNREAD_BYTES_MAX {
            self.catch_up(deadline)?;
        }
        self.asked += 1;
        self.asked_at = self.machine.now();
        self.unread_bytes += answer_bytes;
        self.link.send(Tag { kind, epoch: self.epoch, sequence: self.asked }, parts, deadline)?;
        Ok(Asked { epoch: self.epoch, number: self.asked })
    }

    /// Takes the answers to all that was asked, for whoever waits for them.
    pub fn catch_up(&mut self, deadline: Instant) -> Result<()> {
        while self.is_waiting() {
            let (tag, message) = Self::receive(&mut self.link, self.epoch, self.answered..self.asked, deadline)?;
            let kept = Kept { number: tag.sequence, kind: tag.kind, message: message.to_vec() };
            self.keep(kept);
        }
        Ok(())
    }

    /// The answer to a question; `read` sees its kind and bytes. Of answers to others that come before, the last few
    /// are kept: whoever asked may have given up.
    pub fn answer<R>(&mut self, to: Asked, deadline: Instant, read: impl FnOnce(u16, &[u8]) -> R) -> Result<R> {
        if let Some(at) = self.kept.iter().position(|kept| kept.number == to.number) {
            let Kept { kind, message, .. } = self.kept.remove(at).expect("just found");
            return Ok(read(kind, &message));
        }
        loop {
            let (tag, message) = Self::receive(&mut self.link, self.epoch, self.answered..self.asked, deadline)?;
            if tag.sequence == to.number {
                let result = read(tag.kind, message);
                self.heard_of(tag.sequence);
                return Ok(result);
            }
            let kept = Kept { number: tag.sequence, kind: tag.kind, message: message.to_vec() };
            self.keep(kept);
        }
    }

    /// The next answer, to one of the questions after the first of `open` up to its end.
    fn receive(
        link: &mut Box<dyn Link>,
        epoch: u64,
        open: std::ops::Range<u64>,
        deadline: Instant,
    ) -> Result<(Tag, &[u8])> {
        let (tag, message) = link.receive(FRAME_BYTES_MAX, deadline)?;
        if tag.epoch != epoch || tag.sequence > open.end || tag.sequence <= open.start {
            return Err(FabricError::Corrupt("an answer that nobody waits for"));
        }
        Ok((tag, message))
    }

    /// An answer came.
    fn heard_of(&mut self, number: u64) {
        self.heard = self.machine.now();
        self.answered = number;
        if !self.is_waiting() {
            self.unread_bytes = 0;
        }
    }

    /// An answer came for somebody else.
    fn keep(&mut self, kept: Kept) {
        self.heard_of(kept.number);
        if self.kept.len() == KEPT_MAX {
            self.kept.pop_front();
        }
        self.kept.push_back(kept);
    }
}
