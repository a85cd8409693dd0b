//! Being told to give up.

use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use futures_util::task::AtomicWaker;

/// Says once to one waiter that it is to give up.
#[derive(Debug, Default)]
pub(crate) struct Cut {
    given: AtomicBool,
    waker: AtomicWaker,
}

impl Cut {
    pub fn give(&self) {
        self.given.store(true, Ordering::SeqCst);
        self.waker.wake();
    }

    pub fn is_given(&self) -> bool {
        self.given.load(Ordering::SeqCst)
    }

    /// Ready once it is given; the last task that polled it is woken then.
    pub fn poll(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.waker.register(cx.waker());
        match self.is_given() {
            true => Poll::Ready(()),
            false => Poll::Pending,
        }
    }
}
