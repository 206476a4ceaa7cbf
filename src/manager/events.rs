//! The stream of events of a manager.

use std::pin::Pin;
use std::task::{Context, Poll};

use futures_util::stream::{self, BoxStream, Stream, StreamExt as _};
use tracing::error;

use crate::model::{Event, EventId};
use crate::outbox::{Missed, Reader, ReaderItem};

/// Where a stream of events begins.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Since {
    /// With the first event since the manager was built.
    #[default]
    Built,
    /// With the next event.
    Now,
    /// After these events, one for each server, as [`Event::id`] gave them; with
    /// [`Builder::data_dir`](super::Builder::data_dir) they may be of an earlier run. A server that none of them names
    /// begins with the next event.
    ///
    /// `updated` has no place in the order, so its ids are ignored here, and no earlier one is read.
    After(Vec<EventId>),
}

/// A stream of events, the same as brokers get; it ends when the manager has stopped.
///
/// Nothing waits for a reader, and a slow one takes no more memory: events are read from the journal, and an `updated`
/// is made when it is read. Events that were trimmed from the journal before they were read are an `Err` with their
/// number; the stream goes on after it.
#[must_use = "a stream does nothing unless it is read"]
pub struct Events(BoxStream<'static, Result<Event, Missed>>);

impl Events {
    pub(super) fn new(reader: Reader) -> Self {
        let next = |mut reader: Reader| async {
            loop {
                match reader.next().await {
                    Ok(item) => {
                        if let Some(event) = event(item?) {
                            return Some((event, reader));
                        }
                    }
                    Err(error) => {
                        error!(error = &error as &dyn std::error::Error, "cannot read the journal, event stream ends");
                        return None;
                    }
                }
            }
        };
        Self(stream::unfold(reader, next).boxed())
    }

    /// Returns the next event; `None` after the last. Cancel-safe.
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

/// Returns the event of a journal entry or an `updated`; `None` for what is of no use to a program.
pub(super) fn event(item: ReaderItem) -> Option<Result<Event, Missed>> {
    match item {
        ReaderItem::Missed(missed) => Some(Err(missed)),
        // Only of a position that a client sent as text, which `Since` has as ids.
        ReaderItem::PositionUnknown(_) => None,
        ReaderItem::Updated(event) => Some(Ok(*event)),
        ReaderItem::Entry(entry) => match entry.event() {
            Ok(event) => Some(Ok(Event::clone(event))),
            Err(error) => {
                error!(id = %entry.id, %error, "cannot read an event of an earlier version, skipped");
                None
            }
        },
    }
}
