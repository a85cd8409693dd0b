//! What the threads of a process share with the one that speaks MPI: queues, and the links that they belong to.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Instant;

use lingqu_fabric::{FabricError, Result};

use crate::message::{HEAD_BYTES, Kind, LinkId, WINDOW_BYTES, cost, decode, encode};

/// Calls that nobody has accepted yet: one more is refused.
const CALLS_MAX: usize = 64;
/// Calls that a rank has not answered: until it does, no more are made.
const UNANSWERED_MAX: usize = 8;

pub(crate) struct Shared {
    state: Mutex<State>,
    /// There is something to send, or this process leaves.
    pub wake: Condvar,
    /// A call came, or all is over.
    pub changed: Condvar,
}

pub(crate) struct State {
    /// Messages to be sent, each with its rank. Credits bound them.
    pub outbox: VecDeque<(usize, Vec<u8>)>,
    links: HashMap<LinkId, LinkState>,
    /// Links that others called and nobody has accepted.
    calls: VecDeque<LinkId>,
    listens: bool,
    /// Of the last link that was called from here.
    number: u32,
    /// For each rank, calls that it has not answered.
    unanswered: Vec<usize>,
    /// Why no link can be used any more.
    pub over: Option<Over>,
    /// MPI is to be ended once all is sent.
    pub leaves: bool,
    /// It was.
    pub gone: bool,
}

#[derive(Clone, Debug)]
pub(crate) enum Over {
    /// Some rank ended the job.
    Ended,
    /// In MPI's words.
    Failed(String),
}

struct LinkState {
    /// Messages with their heads, in order.
    inbox: VecDeque<Vec<u8>>,
    /// What the peer may have sent and we not told it that we read.
    unread: usize,
    /// Of `unread`, what was read.
    unreported: usize,
    /// What may be sent.
    credit: usize,
    /// Why nothing comes any more; what came before can be read.
    closed: Option<Over>,
    /// The peer said something.
    answered: bool,
    /// This end was dropped before the peer said anything; forgotten once it does.
    dropped: bool,
    changed: Arc<Condvar>,
}

impl LinkState {
    fn new(answered: bool) -> Self {
        Self {
            inbox: VecDeque::new(),
            unread: 0,
            unreported: 0,
            credit: WINDOW_BYTES,
            closed: None,
            answered,
            dropped: false,
            changed: Arc::default(),
        }
    }

    fn close(&mut self, why: Over) {
        self.closed.get_or_insert(why);
        self.changed.notify_all();
    }
}

impl Over {
    fn error(&self) -> FabricError {
        match self {
            Self::Ended => FabricError::Closed,
            Self::Failed(words) => failed(words.clone()),
        }
    }
}

pub(crate) fn failed(words: String) -> FabricError {
    FabricError::Io { what: "speak MPI", source: std::io::Error::other(words) }
}

/// None if the deadline has passed.
fn wait<'a>(condvar: &Condvar, state: MutexGuard<'a, State>, deadline: Instant) -> Option<MutexGuard<'a, State>> {
    let left = deadline.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())?;
    Some(condvar.wait_timeout(state, left).expect("no holder panics").0)
}

impl Shared {
    pub fn new(ranks: usize) -> Self {
        let state = State {
            outbox: VecDeque::new(),
            links: HashMap::new(),
            calls: VecDeque::new(),
            listens: false,
            number: 0,
            unanswered: vec![0; ranks],
            over: None,
            leaves: false,
            gone: false,
        };
        Self { state: Mutex::new(state), wake: Condvar::new(), changed: Condvar::new() }
    }

    pub fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder panics")
    }

    fn post(&self, state: &mut State, rank: usize, message: Vec<u8>) {
        state.outbox.push_back((rank, message));
        self.wake.notify_one();
    }

    /// A link to `peer`, once it has taken the call.
    pub fn call(&self, peer: usize, deadline: Instant) -> Result<LinkId> {
        let mut state = self.lock();
        if let Some(over) = &state.over {
            return Err(over.error());
        }
        if state.unanswered[peer] >= UNANSWERED_MAX {
            return Err(FabricError::TimedOut);
        }
        state.number = state.number.wrapping_add(1);
        let id = LinkId { peer, calls: true, number: state.number };
        let link = LinkState::new(false);
        let changed = Arc::clone(&link.changed);
        state.unanswered[peer] += 1;
        state.links.insert(id, link);
        self.post(&mut state, peer, encode(Kind::Call, id, 0));
        let error = loop {
            let link = &state.links[&id];
            match &link.closed {
                Some(Over::Ended) => {
                    let source = std::io::Error::new(std::io::ErrorKind::ConnectionRefused, "it takes no calls");
                    break FabricError::Io { what: "connect", source };
                }
                Some(over) => break over.error(),
                None if link.answered => return Ok(id),
                None => {}
            }
            state = match wait(&changed, state, deadline) {
                Some(state) => state,
                None => {
                    state = self.lock();
                    break FabricError::TimedOut;
                }
            };
        };
        drop(state);
        self.drop_link(id);
        Err(error)
    }

    pub fn listen(&self) {
        self.lock().listens = true;
    }

    /// Waits for a call.
    pub fn accept(&self) -> Result<LinkId> {
        let mut state = self.lock();
        loop {
            match &state.over {
                Some(Over::Ended) => return Err(FabricError::Ended),
                Some(over) => return Err(over.error()),
                None => {}
            }
            if let Some(id) = state.calls.pop_front() {
                return Ok(id);
            }
            state = self.changed.wait(state).expect("no holder panics");
        }
    }

    /// Waits until `bytes` more may be sent.
    pub fn reserve(&self, id: LinkId, bytes: usize, deadline: Instant) -> Result<()> {
        let mut state = self.lock();
        loop {
            let link = state.links.get_mut(&id).expect("it is there until it is dropped");
            if let Some(over) = &link.closed {
                return Err(over.error());
            }
            if link.credit >= cost(bytes) {
                link.credit -= cost(bytes);
                return Ok(());
            }
            let changed = Arc::clone(&link.changed);
            state = wait(&changed, state, deadline).ok_or(FabricError::TimedOut)?;
        }
    }

    /// Sends a message for which there is room.
    pub fn send(&self, id: LinkId, message: Vec<u8>) {
        self.post(&mut self.lock(), id.peer, message);
    }

    /// The next message of the link's stream, with its head.
    pub fn next(&self, id: LinkId, deadline: Instant) -> Result<Vec<u8>> {
        let mut state = self.lock();
        loop {
            let link = state.links.get_mut(&id).expect("it is there until it is dropped");
            if let Some(message) = link.inbox.pop_front() {
                link.unreported += cost(message.len() - HEAD_BYTES);
                if link.unreported >= WINDOW_BYTES / 2 {
                    let credit = std::mem::take(&mut link.unreported);
                    link.unread -= credit;
                    self.post(&mut state, id.peer, encode(Kind::Credit(credit as u32), id, 0));
                }
                return Ok(message);
            }
            if let Some(over) = &link.closed {
                return Err(over.error());
            }
            let changed = Arc::clone(&link.changed);
            state = wait(&changed, state, deadline).ok_or(FabricError::TimedOut)?;
        }
    }

    pub fn drop_link(&self, id: LinkId) {
        let mut state = self.lock();
        let Some(link) = state.links.get_mut(&id) else { return };
        let is_open = link.closed.is_none();
        if link.answered {
            state.links.remove(&id);
        } else {
            (link.dropped, link.inbox) = (true, VecDeque::new());
        }
        if is_open {
            self.post(&mut state, id.peer, encode(Kind::Close, id, 0));
        }
    }

    /// Nothing more comes; whoever waits is told why.
    pub fn end(&self, why: Over) {
        let mut state = self.lock();
        state.links.values_mut().for_each(|link| link.close(why.clone()));
        state.over.get_or_insert(why);
        self.changed.notify_all();
    }

    /// Nothing more goes to a rank or comes from it.
    pub fn lose(&self, rank: usize, words: &str) {
        let mut state = self.lock();
        let its = state.links.iter_mut().filter(|(id, _)| id.peer == rank);
        its.for_each(|(_, link)| link.close(Over::Failed(words.to_owned())));
    }

    /// Puts a message from `peer` where it belongs. What belongs nowhere is for a link that was just dropped.
    pub fn deliver(&self, peer: usize, message: Vec<u8>) {
        let Some((kind, id)) = decode(&message, peer) else {
            return self.lose(peer, &format!("rank {peer} sent a message of another form"));
        };
        match kind {
            Kind::Call => return self.take_call(id),
            Kind::End => return self.end(Over::Ended),
            Kind::Data | Kind::Credit(_) | Kind::Close => {}
        }
        let mut state = self.lock();
        let Some(link) = state.links.get_mut(&id) else { return };
        let (is_first, dropped) = (!link.answered, link.dropped);
        link.answered = true;
        match kind {
            Kind::Data => {
                link.unread += cost(message.len() - HEAD_BYTES);
                link.inbox.push_back(message);
                if link.unread > WINDOW_BYTES {
                    link.inbox.clear();
                    link.close(Over::Failed(format!("rank {peer} sends more than it may")));
                }
            }
            Kind::Credit(credit) => link.credit = (link.credit + credit as usize).min(WINDOW_BYTES),
            _ => link.close(Over::Ended),
        }
        link.changed.notify_all();
        if dropped {
            state.links.remove(&id);
        }
        if is_first {
            state.unanswered[peer] -= 1;
        }
    }

    /// Every call is answered at once: with credit for nothing, or by hanging up.
    fn take_call(&self, id: LinkId) {
        let mut state = self.lock();
        if state.links.contains_key(&id) {
            return;
        }
        let takes = state.listens && state.over.is_none() && state.calls.len() < CALLS_MAX;
        if takes {
            state.links.insert(id, LinkState::new(true));
            state.calls.push_back(id);
            self.changed.notify_all();
        }
        let answer = if takes { Kind::Credit(0) } else { Kind::Close };
        self.post(&mut state, id.peer, encode(answer, id, 0));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    /// Both ends in one process: carries messages from one to the other as MPI would.
    fn carry(from: &Shared, rank: usize, to: &Shared) {
        let messages: Vec<_> = from.lock().outbox.drain(..).collect();
        messages.into_iter().for_each(|(_, message)| to.deliver(rank, message));
    }

    /// A link of rank 0 to rank 1, taken by it.
    fn joined() -> (Shared, Shared, LinkId, LinkId) {
        let (a, b) = (Shared::new(2), Shared::new(2));
        b.listen();
        let ours = std::thread::scope(|scope| {
            let calls = scope.spawn(|| a.call(1, soon()));
            while !calls.is_finished() {
                carry(&a, 0, &b);
                carry(&b, 1, &a);
                std::thread::yield_now();
            }
            calls.join().expect("no panic").expect("taken")
        });
        let theirs = b.accept().expect("a call");
        (a, b, ours, theirs)
    }

    fn data(id: LinkId, bytes: usize) -> Vec<u8> {
        let mut message = encode(Kind::Data, id, bytes);
        message.resize(HEAD_BYTES + bytes, 7);
        message
    }

    #[test]
    fn who_reads_nothing_gets_no_more_than_the_window() {
        let (a, b, ours, theirs) = joined();
        let (chunk, now) = (1 << 20, Instant::now());
        for _ in 0..WINDOW_BYTES / chunk {
            a.reserve(ours, chunk, now).expect("room");
            a.send(ours, data(ours, chunk));
        }
        assert!(matches!(a.reserve(ours, 1, now), Err(FabricError::TimedOut)));
        carry(&a, 0, &b);
        for _ in 0..WINDOW_BYTES / chunk / 2 {
            assert_eq!(b.next(theirs, now).expect("there").len(), HEAD_BYTES + chunk);
        }
        carry(&b, 1, &a);
        a.reserve(ours, chunk, now).expect("room again");
        // A peer that does not keep to it loses the link, and nothing else.
        (0..=WINDOW_BYTES / chunk).for_each(|_| a.send(ours, data(ours, chunk)));
        carry(&a, 0, &b);
        let error = b.next(theirs, now).expect_err("too much");
        assert!(error.to_string().contains("more than it may"), "{error}");
        assert!(b.lock().over.is_none());
    }

    #[test]
    fn a_rank_that_does_not_answer_is_not_called_for_ever() {
        let (a, b) = (Shared::new(2), Shared::new(2));
        b.listen();
        let call = || a.call(1, Instant::now() + Duration::from_millis(1));
        for _ in 0..100 {
            assert!(matches!(call(), Err(FabricError::TimedOut)));
        }
        assert_eq!(a.lock().outbox.len(), 2 * UNANSWERED_MAX); // each call, and that it is over
        assert_eq!(a.lock().links.len(), UNANSWERED_MAX);
        // It goes on: the old calls are over for both, and new ones are made.
        carry(&a, 0, &b);
        carry(&b, 1, &a);
        assert_eq!(a.lock().links.len(), 0);
        assert_eq!(a.lock().unanswered, [0, 0]);
        assert!(matches!(call(), Err(FabricError::TimedOut)));
        assert_eq!(a.lock().outbox.len(), 2);
        // Who accepts an old one finds it closed.
        let old = b.accept().expect("the first call");
        assert!(matches!(b.next(old, soon()), Err(FabricError::Closed)));
    }

    #[test]
    fn ends_are_told_to_everybody() {
        let (a, b, ours, theirs) = joined();
        a.send(ours, data(ours, 5));
        a.drop_link(ours);
        carry(&a, 0, &b);
        assert_eq!(b.next(theirs, soon()).expect("sent before the end").len(), HEAD_BYTES + 5);
        assert!(matches!(b.next(theirs, soon()), Err(FabricError::Closed)));
        assert!(matches!(b.reserve(theirs, 1, soon()), Err(FabricError::Closed)));

        let (a, b, ours, theirs) = joined();
        b.deliver(0, b"nothing of ours".to_vec());
        assert!(b.next(theirs, soon()).expect_err("garbage").to_string().contains("another form"));
        a.end(Over::Ended);
        assert!(matches!(a.accept(), Err(FabricError::Ended)));
        assert!(matches!(a.next(ours, soon()), Err(FabricError::Closed)));
        assert!(matches!(a.call(1, soon()), Err(FabricError::Closed)));
        // Nobody listens there.
        let c = Shared::new(2);
        let call = encode(Kind::Call, LinkId { peer: 1, calls: true, number: 5 }, 0);
        c.deliver(0, call);
        let (_, answer) = c.lock().outbox.pop_front().expect("an answer");
        assert_eq!(decode(&answer, 1), Some((Kind::Close, LinkId { peer: 1, calls: true, number: 5 })));
    }
}
