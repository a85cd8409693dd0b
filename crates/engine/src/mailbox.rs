//! What clients leave for the step loop, and where it sleeps when there is nothing to do.
//!
//! Every list here is bounded: submissions by `queue_requests_max`, the others by the number of live streams.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use lingqu_scheduler::SchedulerLoad;
use lingqu_types::{Limits, RequestId};

use crate::request::Submission;
use crate::{EngineError, SubmitError};

/// Shared by the loop, the handles and the streams.
pub(crate) struct Mailbox {
    queue_requests_max: usize,
    queue_requests_per_tenant_max: usize,
    state: Mutex<State>,
    /// The loop waits here for mail.
    mail: Condvar,
    /// Whoever drains waits here for the loop.
    progress: Condvar,
}

/// A request that has not begun, counted for its tenant until this is dropped.
pub(crate) struct QueuePlace(Arc<AtomicUsize>);

impl Drop for QueuePlace {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[derive(Default)]
struct State {
    mail: Mail,
    /// Requests of each tenant that have not begun. Tenants without any are forgotten from time to time.
    queued: HashMap<Arc<str>, Arc<AtomicUsize>>,
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

    /// One more place for a tenant that has fewer than `max`. Only here, under the lock, counts go up.
    fn place(&mut self, tenant: &Arc<str>, max: usize) -> Option<QueuePlace> {
        let count = self.queued.entry(tenant.clone()).or_default();
        if count.load(Ordering::Relaxed) >= max {
            return None;
        }
        count.fetch_add(1, Ordering::Relaxed);
        Some(QueuePlace(count.clone()))
    }
}

impl Mailbox {
    pub fn new(limits: &Limits) -> Self {
        let &Limits { queue_requests_max, queue_requests_per_tenant_max, .. } = limits;
        let (state, mail, progress) = (Mutex::default(), Condvar::new(), Condvar::new());
        Self { queue_requests_max, queue_requests_per_tenant_max, state, mail, progress }
    }

    /// No code that can panic runs under this lock, and its state is whole between any two statements.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    // ---- clients ----

    /// Puts one request into the queue. `make` is given its id; ids ascend in the order of the queue.
    pub fn submit<T>(
        &self,
        tenant: &Arc<str>,
        make: impl FnOnce(RequestId, QueuePlace) -> (Submission, T),
    ) -> Result<T, SubmitError> {
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
        let Some(place) = state.place(tenant, self.queue_requests_per_tenant_max) else {
            let queue_requests_per_tenant_max = self.queue_requests_per_tenant_max;
            return Err(SubmitError::TenantQueueFull { tenant: tenant.clone(), queue_requests_per_tenant_max });
        };
        if state.queued.len() > 2 * self.queue_requests_max {
            state.queued.retain(|_, count| count.load(Ordering::Relaxed) > 0);
        }
        let id = RequestId(state.next_id);
        state.next_id += 1;
        let (submission, result) = make(id, place);
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

    /// Tells how things stand and takes the mail. If `idle`, sleeps until some comes, or `until`. `None`: stop.
    pub fn take(&self, load: SchedulerLoad, idle: bool, until: Option<Instant>) -> Option<Mail> {
        let mut state = self.lock();
        state.load = load;
        if state.draining {
            self.progress.notify_all();
        }
        while idle && state.mail.is_empty() && !state.stopping {
            state = match until.map(|until| until.saturating_duration_since(Instant::now())) {
                None => self.mail.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(Duration::ZERO) => break,
                Some(left) => self.mail.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0,
            };
        }
        if state.stopping {
            return None;
        }
        let mail = std::mem::take(&mut state.mail);
        // Until the loop says otherwise they count as waiting, so that the bound holds meanwhile.
        state.load.waiting += mail.submitted.len();
        Some(mail)
    }

    /// Whether [`Mailbox::take`] has something to tell.
    pub fn has_news(&self) -> bool {
        let state = self.lock();
        state.stopping || !state.mail.is_empty()
    }

    /// Tells how things stand while a step is computed.
    pub fn report(&self, load: SchedulerLoad) {
        self.lock().load = load;
    }

    /// The loop has ended: nothing is taken any more. Returns what was still in the queue.
    pub fn end(&self, why: EngineError) -> Mail {
        let mut state = self.lock();
        state.ended = Some(why);
        state.load =
            SchedulerLoad { running: 0, waiting: 0, paused: 0, kv_blocks_used: 0, kv_blocks_kept: 0, ..state.load };
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
