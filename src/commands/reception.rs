//! Whether commands can be received by way of one sink: noted in its report, and logged when that changes.

use std::fmt::Write as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tracing::{info, warn};

use crate::live_state::{ChangeBuffer, CommandReception};
use crate::log_throttle::LogThrottle;
use crate::model::SinkName;
use crate::port::{CommandSource, DeliverError, RefusedFilter};

/// Refused filters that a reason names: there are two for each server.
const NAMED_MAX: usize = 3;

/// The reporter of a command source.
#[derive(Clone)]
pub(super) struct ReceptionReporter {
    sink: SinkName,
    buffer: Arc<ChangeBuffer>,
    throttles: Arc<Mutex<Throttles>>,
    /// Whether the source says what it has subscribed to. Nothing is reported otherwise.
    is_observed: bool,
}

/// Throttles of the log. Two, because a refusal often begins with the restart of a broker: the lost connection must not be
/// all that is logged.
#[derive(Default)]
struct Throttles {
    failures: LogThrottle,
    refusals: LogThrottle,
}

impl ReceptionReporter {
    /// Returns the reporter, to which the source says from now on what it has subscribed to.
    pub(super) fn of(source: &mut dyn CommandSource, sink: SinkName, buffer: Arc<ChangeBuffer>) -> Self {
        let reporter = Self { sink, buffer, throttles: Arc::default(), is_observed: true };
        let observer = reporter.clone();
        let is_observed = source.observe_subscriptions(Box::new(move |refused| observer.subscribed(refused)));
        let reporter = Self { is_observed, ..reporter };
        reporter.report(CommandReception::NotYet);
        reporter
    }

    fn subscribed(&self, refused: &[RefusedFilter]) {
        let failures = self.throttles().failures.recovered();
        let Some(reason) = refusal(refused) else {
            let refusals = self.throttles().refusals.recovered();
            if failures.or(refusals).is_some() {
                info!(sink = %self.sink, failures, refusals, "commands are received again");
            }
            return self.report(CommandReception::Complete);
        };
        if let Some(times) = self.throttles().refusals.failed() {
            warn!(sink = %self.sink, times, reason, "commands cannot be received, trying again");
        }
        self.report(CommandReception::Failed(reason));
    }

    /// Notes that the source has failed. Returns `Some(n)` if the n-th failure is to be logged.
    pub(super) fn failed(&self, error: &DeliverError) -> Option<u32> {
        self.report(CommandReception::Failed(error.to_string()));
        self.throttles().failures.failed()
    }

    /// Notes that a command came, from a source that may not say what it has subscribed to.
    pub(super) fn received(&self) {
        self.throttles().failures.recovered();
    }

    fn throttles(&self) -> MutexGuard<'_, Throttles> {
        self.throttles.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn report(&self, reception: CommandReception) {
        if self.is_observed {
            self.buffer.report(|report| report.reception = reception);
        }
    }
}

/// Returns which filters are refused, and why; `None` if none is.
fn refusal(refused: &[RefusedFilter]) -> Option<String> {
    let named = refused.iter().take(NAMED_MAX).map(|RefusedFilter { filter, reason }| format!("{filter}: {reason}"));
    let named = named.collect::<Vec<_>>().join(", ");
    let mut text = format!("the broker refuses the subscription to commands: {named}");
    match refused.len() {
        0 => return None,
        count if count > NAMED_MAX => write!(text, ", and {} more", count - NAMED_MAX).expect("writes to a string"),
        _ => {}
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use async_trait::async_trait;

    use super::*;
    use crate::port::{Incoming, SubscriptionObserver};

    /// A source that says what it has subscribed to, if it has a place for the observer.
    struct Source(Option<Arc<Mutex<Option<SubscriptionObserver>>>>);

    #[async_trait]
    impl CommandSource for Source {
        fn observe_subscriptions(&mut self, observer: SubscriptionObserver) -> bool {
            let Some(place) = &self.0 else { return false };
            *place.lock().unwrap() = Some(observer);
            true
        }

        async fn next(&mut self) -> Result<Incoming, DeliverError> {
            std::future::pending().await
        }
    }

    fn reporter(place: Option<Arc<Mutex<Option<SubscriptionObserver>>>>) -> (ReceptionReporter, Arc<ChangeBuffer>) {
        let buffer = Arc::new(ChangeBuffer::default());
        let sink = SinkName::parse("b").unwrap();
        (ReceptionReporter::of(&mut Source(place), sink, Arc::clone(&buffer)), buffer)
    }

    #[test]
    fn commands_are_received_once_everything_is_subscribed_to() {
        let place = Arc::default();
        let (reporter, buffer) = reporter(Some(Arc::clone(&place)));
        let subscribed = |refused: &[RefusedFilter]| place.lock().unwrap().as_ref().unwrap()(refused);
        let problem = || (buffer.last_report().reception.is_complete(), buffer.last_report().problem());
        assert_eq!(problem(), (Some(false), Some("the command topics are not subscribed to yet".to_owned())));
        subscribed(&[]);
        assert_eq!(problem(), (Some(true), None));
        assert_eq!(reporter.failed(&DeliverError::unavailable("gone")), Some(1));
        assert_eq!(problem(), (Some(false), Some("gone".to_owned())));
        subscribed(&[RefusedFilter { filter: "a/+".to_owned(), reason: "no".to_owned() }]);
        assert_eq!(
            problem(),
            (Some(false), Some("the broker refuses the subscription to commands: a/+: no".to_owned()))
        );
        buffer.report(|report| report.failure = Some("away".to_owned()));
        assert_eq!(problem().1.as_deref(), Some("away"), "the reason of that is said first");
    }

    #[test]
    fn nothing_is_reported_of_a_source_that_does_not_say_what_it_has_subscribed_to() {
        let (reporter, buffer) = reporter(None);
        assert_eq!([(); 2].map(|()| reporter.failed(&DeliverError::unavailable("gone"))), [Some(1), None]);
        reporter.received();
        assert_eq!(reporter.failed(&DeliverError::unavailable("gone")), Some(1));
        assert_eq!((buffer.last_report().reception.is_complete(), buffer.last_report().problem()), (None, None));
    }

    #[test]
    fn a_refusal_names_some_filters_with_their_reasons_and_counts_the_others() {
        let refused = |count| {
            let filter = |n| RefusedFilter { filter: format!("dtorrent/s{n}/command/+"), reason: "no".to_owned() };
            refusal(&(0..count).map(filter).collect::<Vec<_>>())
        };
        let begin = "the broker refuses the subscription to commands: dtorrent/s0/command/+: no";
        let more = ", dtorrent/s1/command/+: no, dtorrent/s2/command/+: no";
        assert_eq!(refused(0), None);
        assert_eq!(refused(1).unwrap(), begin);
        assert_eq!(refused(3).unwrap(), format!("{begin}{more}"));
        assert_eq!(refused(5).unwrap(), format!("{begin}{more}, and 2 more"));
    }
}
