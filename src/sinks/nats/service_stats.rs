//! The counters of the NATS service: the requests of each endpoint, and their outcomes.
//!
//! A request is received on one connection and replied to on another, by the sink, once its effect was seen. So each
//! gets an id, which travels with its reply address through the command log and says which endpoint the reply is
//! counted for; the id also distinguishes two requests with one reply address. Replies to requests of an earlier run are not
//! counted, as those requests are not.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// The counters of one service.
pub struct ServiceStats {
    /// The service's id (ADR-32), random in each run.
    pub service_id: String,
    endpoints: Mutex<BTreeMap<String, EndpointStats>>,
}

/// The counters of one endpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EndpointStats {
    /// Requests received.
    pub requests: u64,
    /// Requests whose reply is an error, or was refused.
    pub errors: u64,
    /// Code and text of the last error, as in the headers of its reply; empty before the first.
    pub last_error: String,
    /// Time from request to reply, summed over all replies.
    pub processing: Duration,
}

/// The outcome of one request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RequestOutcome {
    /// From [`ServiceStats::count_request`]; any other id is ignored.
    pub request_id: Vec<u8>,
    /// Code and text; `None` for a success.
    pub error: Option<String>,
    /// Time from request to reply.
    pub took: Duration,
}

impl ServiceStats {
    /// Creates counters at zero.
    pub fn new(service_id: String) -> Self {
        Self { service_id, endpoints: Mutex::default() }
    }

    /// Counts a request, and returns its id.
    pub fn count_request(&self, endpoint: &str) -> Vec<u8> {
        let number = self.update(endpoint, |stats| {
            stats.requests += 1;
            stats.requests
        });
        format!("{} {endpoint} {number}", self.service_id).into_bytes()
    }

    /// Counts the outcome of a request of this run.
    pub fn count_reply(&self, outcome: RequestOutcome) {
        let RequestOutcome { request_id, error, took } = outcome;
        let request_id = String::from_utf8_lossy(&request_id);
        let parts: Vec<&str> = request_id.split(' ').collect();
        // Requests of an earlier run are not counted, and so are their replies not; the id is new in each run.
        let [service_id, endpoint, _number] = parts[..] else { return };
        if service_id == self.service_id {
            self.update(endpoint, |stats| {
                stats.processing += took;
                if let Some(error) = error {
                    stats.errors += 1;
                    stats.last_error = error;
                }
            });
        }
    }

    /// Returns the counters of an endpoint, zero for an unknown one.
    pub fn of(&self, endpoint: &str) -> EndpointStats {
        self.update(endpoint, |stats| stats.clone())
    }

    fn update<T>(&self, endpoint: &str, update: impl FnOnce(&mut EndpointStats) -> T) -> T {
        let mut endpoints = self.endpoints.lock().unwrap_or_else(PoisonError::into_inner);
        update(endpoints.entry(endpoint.to_owned()).or_default())
    }
}

impl EndpointStats {
    /// Returns the mean processing time per request; 0 before the first.
    pub fn average(&self) -> Duration {
        self.processing.checked_div(u32::try_from(self.requests).unwrap_or(u32::MAX)).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_is_counted_for_its_request_and_one_of_an_earlier_run_is_not() {
        let stats = ServiceStats::new("1".to_owned());
        let earlier = ServiceStats::new("0".to_owned()).count_request("a");
        let (first, second, other) = (stats.count_request("a"), stats.count_request("a"), stats.count_request("b"));
        assert!(first != second && second != other);
        for (request_id, error, seconds) in [
            (&*first, Some("404: no"), 3),
            (&*second, None, 1),
            (&*earlier, Some("x"), 9),
            (&b"\xff"[..], Some("x"), 9),
        ] {
            stats.count_reply(RequestOutcome {
                request_id: request_id.to_vec(),
                error: error.map(str::to_owned),
                took: Duration::from_secs(seconds),
            });
        }
        let last_error = "404: no".to_owned();
        let of_a = EndpointStats { requests: 2, errors: 1, last_error, processing: Duration::from_secs(4) };
        assert_eq!(stats.of("a"), of_a);
        assert_eq!(of_a.average(), Duration::from_secs(2));
        assert_eq!(stats.of("b"), EndpointStats { requests: 1, ..EndpointStats::default() });
        assert_eq!(EndpointStats::default().average(), Duration::ZERO);
    }
}
