//! What the service counts: the requests of each endpoint, and what became of them.
//!
//! A request is taken on one connection and answered on another, by the sink, when the effect was seen. So each
//! gets a mark, which goes with its reply address through the command log, and by which the answer is counted where
//! it belongs; the mark also tells two requests to one address apart. Answers to requests that an earlier life of
//! the bridge took are not counted, as those requests are not.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Of one service.
pub struct Tally {
    /// The service's own, another one in each life.
    pub id: String,
    endpoints: Mutex<BTreeMap<String, Counts>>,
}

/// Of one endpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub requests: u64,
    pub errors: u64,
    /// Its code and what it says, as in the headers of the reply; empty if there was none.
    pub last_error: String,
    /// From request to reply, over all that were answered.
    pub processing: Duration,
}

/// A reply that was given, or could not be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Told {
    pub mark: Vec<u8>,
    pub error: Option<String>,
    pub took: Duration,
}

impl Tally {
    pub fn new(id: String) -> Self {
        Self { id, endpoints: Mutex::default() }
    }

    /// Counts a request, and returns its mark.
    pub fn requested(&self, endpoint: &str) -> Vec<u8> {
        let number = self.update(endpoint, |counts| {
            counts.requests += 1;
            counts.requests
        });
        format!("{} {endpoint} {number}", self.id).into_bytes()
    }

    pub fn replied(&self, told: Told) {
        let Told { mark, error, took } = told;
        let mark = String::from_utf8_lossy(&mark);
        let words: Vec<&str> = mark.split(' ').collect();
        let [id, endpoint, _] = words[..] else { return };
        if id == self.id {
            self.update(endpoint, |counts| {
                counts.processing += took;
                counts.errors += u64::from(error.is_some());
                counts.last_error = error.unwrap_or_else(|| std::mem::take(&mut counts.last_error));
            });
        }
    }

    pub fn of(&self, endpoint: &str) -> Counts {
        self.update(endpoint, |counts| counts.clone())
    }

    fn update<T>(&self, endpoint: &str, update: impl FnOnce(&mut Counts) -> T) -> T {
        let mut endpoints = self.endpoints.lock().unwrap_or_else(PoisonError::into_inner);
        update(endpoints.entry(endpoint.to_owned()).or_default())
    }
}

impl Counts {
    /// Of one request; 0 before the first.
    pub fn average(&self) -> Duration {
        self.processing.checked_div(u32::try_from(self.requests).unwrap_or(u32::MAX)).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_counted_where_its_request_was_and_those_of_an_earlier_life_nowhere() {
        let tally = Tally::new("1".to_owned());
        let earlier = Tally::new("0".to_owned()).requested("a");
        let (first, second, other) = (tally.requested("a"), tally.requested("a"), tally.requested("b"));
        assert!(first != second && second != other);
        let told = |mark: &[u8], error: Option<&str>, seconds| Told {
            mark: mark.to_vec(),
            error: error.map(str::to_owned),
            took: Duration::from_secs(seconds),
        };
        for told in [
            told(&first, Some("404: no"), 3),
            told(&second, None, 1),
            told(&earlier, Some("x"), 9),
            told(b"\xff", Some("x"), 9),
        ] {
            tally.replied(told);
        }
        let last_error = "404: no".to_owned();
        let of_a = Counts { requests: 2, errors: 1, last_error, processing: Duration::from_secs(4) };
        assert_eq!(tally.of("a"), of_a);
        assert_eq!(of_a.average(), Duration::from_secs(2));
        assert_eq!(tally.of("b"), Counts { requests: 1, ..Counts::default() });
        assert_eq!(Counts::default().average(), Duration::ZERO);
    }
}
