//! A subscription that is emptied at the moment at which async-nats puts something into it.
//!
//! async-nats reads from its socket for as long as there is something to read and its turn lasts: hundreds of megabytes have
//! been seen in one turn, with a fast server. It puts every message into the channel of a subscription, whatever the size,
//! and drops what finds the channel full. A task that reads the channel comes too late for all of that. So it is read by the
//! waker of the channel, which async-nats calls between one message and the next.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::task::{Context, Poll, Wake, Waker};

use futures_util::{FutureExt as _, Stream, StreamExt as _};
use tokio::task::unconstrained;

/// Hands over what comes until it is dropped.
pub struct EagerSubscription<S: Stream> {
    subscriber: Mutex<S>,
    /// Calls of the waker that are not answered yet; only the first of them polls.
    calls: AtomicUsize,
    on_message: Box<dyn Fn(S::Item) + Send + Sync>,
}

/// Weak, because the channel of the subscriber owns it.
struct Emptier<S: Stream>(Weak<EagerSubscription<S>>);

impl<S: Stream + Send + Unpin + 'static> EagerSubscription<S> {
    /// Begins to hand over messages. `on_message` is called by async-nats as well as here, must not wait, and must not cause
    /// another message of this subscription.
    pub fn begin(subscriber: S, on_message: impl Fn(S::Item) + Send + Sync + 'static) -> Arc<Self> {
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

impl<S: Stream + Send + Unpin + 'static> Wake for Emptier<S> {
    fn wake(self: Arc<Self>) {
        if let Some(subscription) = self.0.upgrade() {
            subscription.empty();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use futures_util::stream;

    use super::*;

    /// Empties a subscription whose channel calls its waker while it is polled and has another message from then on; returns
    /// what was handed over.
    fn handed_over(call: fn(Waker)) -> Vec<u32> {
        let (sender, received) = mpsc::channel();
        // A call that waits for the one further up would wait for ever.
        std::thread::spawn(move || {
            let mut polls = 0..;
            let channel = stream::poll_fn(move |context| match polls.next() {
                Some(1) => {
                    call(context.waker().clone());
                    Poll::Pending
                }
                Some(number @ (0 | 2 | 3)) => Poll::Ready(Some(number)),
                _ => Poll::Pending,
            });
            let messages = Arc::new(Mutex::new(Vec::new()));
            let handed_over = Arc::clone(&messages);
            let _subscription =
                EagerSubscription::begin(channel, move |message| messages.lock().unwrap().push(message));
            sender.send(std::mem::take(&mut *handed_over.lock().unwrap())).unwrap();
        });
        received.recv_timeout(Duration::from_secs(10)).expect("an end of the calls")
    }

    #[test]
    fn a_call_of_the_waker_while_the_channel_is_polled_ends_at_once_and_is_not_lost() {
        assert_eq!(handed_over(Waker::wake), [0, 2, 3], "on the same thread");
        assert_eq!(handed_over(|waker| std::thread::spawn(|| waker.wake()).join().unwrap()), [0, 2, 3], "on another");
    }
}
