//! A subscription that is emptied at the moment at which async-nats puts something into it.
//!
//! async-nats reads from its socket for as long as there is something to read and its turn lasts: hundreds of megabytes have
//! been seen in one turn, with a fast server. It puts every message into the channel of a subscription, whatever the size,
//! and drops what finds the channel full. A task that reads the channel comes too late for all of that. So it is read by the
//! waker of the channel, which async-nats calls between one message and the next.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::task::{Context, Poll, Wake, Waker};

use async_nats::{Message, Subscriber};
use futures_util::{FutureExt as _, StreamExt as _};
use tokio::task::unconstrained;

/// Hands over what comes until it is dropped.
pub struct EagerSubscription {
    subscriber: Mutex<Subscriber>,
    /// Calls of the waker that are not answered yet; only the first of them polls.
    calls: AtomicUsize,
    on_message: Box<dyn Fn(Message) + Send + Sync>,
}

/// Weak, because the channel of the subscriber owns it.
struct Emptier(Weak<EagerSubscription>);

impl EagerSubscription {
    /// Begins to hand over messages. `on_message` is called by async-nats as well as here, must not wait, and must not cause
    /// another message of this subscription.
    pub fn begin(subscriber: Subscriber, on_message: impl Fn(Message) + Send + Sync + 'static) -> Arc<Self> {
        let subscription = Arc::new(Self {
            subscriber: Mutex::new(subscriber),
            calls: AtomicUsize::new(0),
            on_message: Box::new(on_message),
        });
        subscription.empty();
        subscription
    }

    fn empty(self: &Arc<Self>) {
        // Another call polls already, on another thread or further down on this one, and polls once more for this one.
        let mut calls = self.calls.fetch_add(1, Ordering::AcqRel) + 1;
        if calls > 1 {
            return;
        }
        let waker = Waker::from(Arc::new(Emptier(Arc::downgrade(self))));
        let mut context = Context::from_waker(&waker);
        let mut subscriber = self.subscriber.lock().unwrap_or_else(PoisonError::into_inner);
        while calls > 0 {
            // Without tokio's budget: where that is used up, there would be one more call for each message.
            while let Poll::Ready(Some(message)) = unconstrained(subscriber.next()).poll_unpin(&mut context) {
                (self.on_message)(message);
            }
            calls = self.calls.fetch_sub(calls, Ordering::AcqRel) - calls;
        }
    }
}

impl Wake for Emptier {
    fn wake(self: Arc<Self>) {
        if let Some(subscription) = self.0.upgrade() {
            subscription.empty();
        }
    }
}
