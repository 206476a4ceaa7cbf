//! The stream of events.

use std::pin::Pin;
use std::task::{Context, Poll};

use futures_util::stream::{self, BoxStream, Stream, StreamExt as _};
use tracing::error;

use crate::model::{Event, EventId};
use crate::outbox::{Heard, Missed, Reader};

/// Where a stream of events begins.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Since {
    /// With the first event of this manager's life.
    #[default]
    Built,
    /// With what is told from now on.
    Now,
    /// After these events, one for each server, as [`Event::id`] gave them; also those of an earlier life, with
    /// [`Builder::data_dir`](super::Builder::data_dir). Of a server that none of them names, with the present.
    ///
    /// `updated` has no place in the order, so its ids do not count here, and none is told of the time before.
    After(Vec<EventId>),
}

/// Events as they are told, the same as on every wire; a [`Stream`] that ends when the manager has stopped.
///
/// Nothing waits for a reader, and it costs no more memory for being slow: events wait in the journal, and an
/// `updated` is made when it is read. What was trimmed from the journal before it was read is an `Err`, which says
/// how many events that were; reading goes on after it.
#[must_use = "events are heard by reading them"]
pub struct Events(BoxStream<'static, Result<Event, Missed>>);

impl Events {
    pub(super) fn new(reader: Reader) -> Self {
        let next = |mut reader: Reader| async {
            loop {
                let item = match reader.next().await {
                    Ok(Some(Heard::Missed(missed))) => Err(missed),
                    Ok(Some(heard)) => match event(heard) {
                        Some(event) => Ok(event),
                        None => continue,
                    },
                    Ok(None) => return None,
                    Err(error) => {
                        error!(error = &error as &dyn std::error::Error, "the journal cannot be read any more");
                        return None;
                    }
                };
                return Some((item, reader));
            }
        };
        Self(stream::unfold(reader, next).boxed())
    }

    /// The next event; `None` when there will be none. Cancel-safe.
    pub async fn next(&mut self) -> Option<Result<Event, Missed>> {
        self.0.next().await
    }
}

impl Stream for Events {
    type Item = Result<Event, Missed>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_next_unpin(context)
    }
}

/// An event in its typed shape.
pub(super) fn event(heard: Heard) -> Option<Event> {
    match heard {
        Heard::Missed(_) | Heard::Elsewhere(_) => None,
        Heard::Updated(event) => Some(*event),
        Heard::Entry(entry) => match serde_json::from_slice(&entry.body) {
            Ok(event) => Some(event),
            Err(error) => {
                error!(id = %entry.id, %error, "an event of an earlier version cannot be read and is left out");
                None
            }
        },
    }
}
