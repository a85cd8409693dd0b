//! What clients leave for the step loop, and where it sleeps when there is nothing to do.
//!
//! Every list here is bounded: submissions by `queue_requests_max`, the others by the number of live streams.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use lingqu_scheduler::SchedulerLoad;
use lingqu_types::RequestId;

use crate::request::Submission;
use crate::{EngineError, SubmitError};

/// Shared by the loop, the handles and the streams.
pub(crate) struct Mailbox {
    queue_requests_max: usize,
    state: Mutex<State>,
    /// The loop waits here for mail.
    mail: Condvar,
    /// Whoever drains waits here for the loop.
    progress: Condvar,
}

#[derive(Default)]
struct State {
    mail: Mail,
    next_id: u64,
    /// As the loop last said.
    load: SchedulerLoad,
    draining: bool,
    stopping: bool,
    /// The loop has ended, for this reason.
    ended: Option<EngineError>,
}

/// What has come since the loop last looked.
#[derive(Default)]
pub(crate) struct Mail {
    pub submitted: VecDeque<Submission>,
    /// Streams that were dropped.
    pub aborted: Vec<RequestId>,
    /// Paused readers that have caught up.
    pub resumed: Vec<RequestId>,
}

impl Mail {
    fn is_empty(&self) -> bool {
        self.submitted.is_empty() && self.aborted.is_empty() && self.resumed.is_empty()
    }
}

impl State {
    /// Requests that have not ended.
    fn live(&self) -> usize {
        self.mail.submitted.len() + self.load.waiting + self.load.running
    }
}

impl Mailbox {
    pub fn new(queue_requests_max: usize) -> Self {
        Self { queue_requests_max, state: Mutex::default(), mail: Condvar::new(), progress: Condvar::new() }
    }

    /// No code that can panic runs under this lock, and its state is whole between any two statements.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    // ---- clients ----

    /// Puts one request into the queue. `make` is given its id; ids ascend in the order of the queue.
    pub fn submit<T>(&self, make: impl FnOnce(RequestId) -> (Submission, T)) -> Result<T, SubmitError> {
        let mut state = self.lock();
        if state.draining {
            return Err(SubmitError::Draining);
        }
        if let Some(error) = &state.ended {
            return Err(SubmitError::Ended(error.clone()));
        }
        if state.mail.submitted.len() + state.load.waiting >= self.queue_requests_max {
            return Err(SubmitError::QueueFull { queue_requests_max: self.queue_requests_max });
        }
        let id = RequestId(state.next_id);
        state.next_id += 1;
        let (submission, result) = make(id);
        state.mail.submitted.push_back(submission);
        self.mail.notify_one();
        Ok(result)
    }

    pub fn abort(&self, id: RequestId) {
        let mut state = self.lock();
        if state.ended.is_none() {
            state.mail.aborted.push(id);
            self.mail.notify_one();
        }
    }

    pub fn resume(&self, id: RequestId) {
        let mut state = self.lock();
        if state.ended.is_none() {
            state.mail.resumed.push(id);
            self.mail.notify_one();
        }
    }

    /// What runs and waits, the queue counted in; and why the engine has ended, if it has.
    pub fn load(&self) -> (SchedulerLoad, Option<EngineError>) {
        let state = self.lock();
        let waiting = state.load.waiting + state.mail.submitted.len();
        (SchedulerLoad { waiting, ..state.load }, state.ended.clone())
    }

    // ---- the loop ----

    /// Tells how things stand and takes the mail. If `idle`, sleeps until some comes. `None`: stop.
    pub fn take(&self, load: SchedulerLoad, idle: bool) -> Option<Mail> {
        let mut state = self.lock();
        state.load = load;
        if state.draining {
            self.progress.notify_all();
        }
        while idle && state.mail.is_empty() && !state.stopping {
            state = self.mail.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if state.stopping {
            return None;
        }
        let mail = std::mem::take(&mut state.mail);
        // Until the loop says otherwise they count as waiting, so that the bound holds meanwhile.
        state.load.waiting += mail.submitted.len();
        Some(mail)
    }

    /// Tells how things stand while a step is computed.
    pub fn report(&self, load: SchedulerLoad) {
        self.lock().load = load;
    }

    /// The loop has ended: nothing is taken any more. Returns what was still in the queue.
    pub fn end(&self, why: EngineError) -> Mail {
        let mut state = self.lock();
        state.ended = Some(why);
        state.load = SchedulerLoad { running: 0, waiting: 0, paused: 0, kv_blocks_used: 0, ..state.load };
        self.progress.notify_all();
        std::mem::take(&mut state.mail)
    }

    // ---- draining ----

    /// Refuses new requests and waits until all others have ended. Returns how many have not, after `timeout`.
    pub fn drain(&self, timeout: Duration) -> usize {
        let mut state = self.lock();
        state.draining = true;
        let began = Instant::now();
        while state.ended.is_none() && state.live() > 0 {
            let left = timeout.saturating_sub(began.elapsed());
            if left.is_zero() {
                return state.live();
            }
            state = self.progress.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        0
    }

    /// Asks the loop to stop after its current step; false if it has not within `timeout`.
    pub fn stop(&self, timeout: Duration) -> bool {
        let mut state = self.lock();
        state.draining = true;
        state.stopping = true;
        self.mail.notify_all();
        let wait = self.progress.wait_timeout_while(state, timeout, |state| state.ended.is_none());
        wait.unwrap_or_else(PoisonError::into_inner).0.ended.is_some()
    }
}
