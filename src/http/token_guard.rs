//! Guesses of the token: counted, logged, and slowed down by the address that they come from.
//!
//! The answer to a wrong token comes after a delay, which doubles with each one from the same address. An address with
//! [`DELAYS_MAX`] answers still to come is not heard: its tokens are not even compared, so that it does not guess faster by
//! hanging up and asking again. A right token is never delayed, and other addresses are not concerned. An address that sends
//! none for a quarter of an hour is forgotten.
//!
//! Behind a reverse proxy all requests come from one address, and share its guesses.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tracing::warn;

use crate::log_throttle::LogThrottle;
use crate::model::AUDIT;

/// Delay of the answer to the first wrong token.
const DELAY_FIRST: Duration = Duration::from_millis(100);
/// Maximum delay: below the time limit of a connection and the timeouts of clients.
const DELAY_MAX: Duration = Duration::from_secs(5);
/// Delayed answers of one address at a time.
const DELAYS_MAX: usize = 4;
/// Time after which an address that guessed is forgotten.
const FORGET_AFTER: Duration = Duration::from_secs(15 * 60);
/// Addresses that are remembered; beyond, the one that has guessed least recently is forgotten.
const PEERS_MAX: usize = 1024;

/// Remembers who guessed.
#[derive(Default)]
pub(super) struct TokenGuard {
    peers: Mutex<HashMap<IpAddr, Guesses>>,
}

struct Guesses {
    count: u32,
    last: Instant,
    /// When the answers that are still to come may be sent.
    delayed_until: Vec<Instant>,
    log: LogThrottle,
}

impl TokenGuard {
    /// Returns whether a token from this address is compared at all.
    ///
    /// # Errors
    /// The time after which it is.
    pub fn check(&self, peer: IpAddr) -> Result<(), Duration> {
        let (mut peers, now) = (self.peers.lock().unwrap_or_else(PoisonError::into_inner), Instant::now());
        let Some(guesses) = peers.get_mut(&network(peer)) else { return Ok(()) };
        guesses.delayed_until.retain(|until| *until > now);
        match guesses.delayed_until.iter().min() {
            Some(first) if guesses.delayed_until.len() >= DELAYS_MAX => Err(first.saturating_duration_since(now)),
            _ => Ok(()),
        }
    }

    /// Counts and logs a wrong token; returns the time at which it may be answered.
    pub fn wrong(&self, peer: IpAddr) -> Instant {
        metrics::counter!("dtorrent_http_wrong_tokens_total").increment(1);
        let (mut peers, now) = (self.peers.lock().unwrap_or_else(PoisonError::into_inner), Instant::now());
        let network = network(peer);
        make_room(&mut peers, network, now);
        let guesses = peers.entry(network).or_insert_with(|| Guesses::new(now));
        let until = now + DELAY_FIRST.saturating_mul(1 << guesses.count.min(16)).min(DELAY_MAX);
        guesses.count = guesses.count.saturating_add(1);
        guesses.last = now;
        guesses.delayed_until.push(until);
        if let Some(times) = guesses.log.failed() {
            warn!(target: AUDIT, %peer, times, "wrong token over HTTP");
        }
        until
    }
}

impl Guesses {
    fn new(now: Instant) -> Self {
        Self { count: 0, last: now, delayed_until: Vec::new(), log: LogThrottle::default() }
    }
}

/// Returns the address, or the network of one whose owner has many: a whole /64 belongs to one line (RFC 6177).
fn network(peer: IpAddr) -> IpAddr {
    match peer.to_canonical() {
        IpAddr::V6(ip) => IpAddr::V6(Ipv6Addr::from_bits(ip.to_bits() & !u128::from(u64::MAX))),
        ip => ip,
    }
}

/// Forgets who has not guessed for long, and one more if there is no room for `next`.
fn make_room(peers: &mut HashMap<IpAddr, Guesses>, next: IpAddr, now: Instant) {
    peers.retain(|_, guesses| now.saturating_duration_since(guesses.last) < FORGET_AFTER);
    if peers.len() < PEERS_MAX || peers.contains_key(&next) {
        return;
    }
    let oldest = peers.iter().min_by_key(|(_, guesses)| guesses.last).map(|(peer, _)| *peer);
    drop(oldest.and_then(|oldest| peers.remove(&oldest)));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(last: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, last])
    }

    #[tokio::test(start_paused = true)]
    async fn each_wrong_token_of_an_address_is_answered_later_and_others_are_not_concerned() {
        let guard = TokenGuard::default();
        let mut delays = Vec::new();
        for _ in 0..9 {
            let until = guard.wrong(peer(1));
            delays.push(until.duration_since(Instant::now()).as_millis());
            tokio::time::sleep_until(until).await;
            assert_eq!(guard.check(peer(1)), Ok(()), "whoever waits for the answers is heard");
        }
        assert_eq!(delays, [100, 200, 400, 800, 1600, 3200, 5000, 5000, 5000]);
        assert_eq!(guard.wrong(peer(2)).duration_since(Instant::now()), DELAY_FIRST);
        tokio::time::advance(FORGET_AFTER).await;
        assert_eq!(guard.wrong(peer(1)).duration_since(Instant::now()), DELAY_FIRST, "forgotten");
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_that_does_not_wait_for_answers_is_not_heard_until_one_is_due() {
        let guard = TokenGuard::default();
        for _ in 0..DELAYS_MAX {
            guard.wrong(peer(1));
        }
        assert_eq!(guard.check(peer(1)), Err(DELAY_FIRST));
        assert_eq!(guard.check(peer(2)), Ok(()));
        tokio::time::advance(DELAY_FIRST).await;
        assert_eq!(guard.check(peer(1)), Ok(()));
    }

    #[tokio::test(start_paused = true)]
    async fn memory_is_bounded_and_a_network_counts_as_one() {
        let guard = TokenGuard::default();
        for number in 0..2 * PEERS_MAX as u128 {
            guard.wrong(Ipv6Addr::from_bits((0x2001_0db8 << 96) | (number << 64)).into());
        }
        assert_eq!(guard.peers.lock().unwrap().len(), PEERS_MAX);
        let (one, other) = (network("2001:db8::1".parse().unwrap()), network("2001:db8::ffff:2".parse().unwrap()));
        assert_eq!(one, other);
        assert_eq!(network("::ffff:10.0.0.1".parse().unwrap()), peer(1));
    }
}
