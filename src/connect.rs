//! Outgoing TCP connections to every address of a name (Happy Eyeballs, RFC 8305).
//!
//! A name often has several addresses, of which some are dead: IPv6 where only IPv4 is routed, or a host that is down and
//! swallows packets, which the kernel tries for two minutes. Attempts begin one after the other, the address families take
//! turns, and the first connection wins. Where the first address answers at once, nothing else is tried.

use std::io::{Error, ErrorKind, Result};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt as _};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

/// Maximum time for one address. A busy machine answers sooner; one that takes longer drops packets.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Delay before the next address is tried beside those that have not answered (RFC 8305 §5).
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);
/// Maximum number of addresses that are tried. Names of large services have eight.
const ADDRESSES_MAX: usize = 16;

/// Connects to a name or an address; one of IPv6 is written without brackets. Small packets are sent without delay.
///
/// # Errors
/// The name is not known, or none of its addresses answers. Cancelled, it leaves nothing behind.
pub async fn connect(host: &str, port: u16) -> Result<TcpStream> {
    let found = tokio::net::lookup_host((host, port)).await?;
    let stream = first_to_answer(families_in_turn(found.collect())).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Returns the address that answers, for a library that tries the addresses of a name one after the other; `None` if it may
/// be given the name: that has one address, the first of them answers, or none does.
pub async fn better_address(host: &str, port: u16) -> Option<IpAddr> {
    let found: Vec<_> = tokio::net::lookup_host((host, port)).await.ok()?.collect();
    let [first, _, ..] = found[..] else { return None };
    let answers = first_to_answer(families_in_turn(found)).await.ok()?.peer_addr().ok()?;
    (answers != first).then_some(answers.ip())
}

/// Returns the addresses with the families in turn, in other respects in the resolver's order (RFC 8305 §4).
fn families_in_turn(addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let first_is_ipv4 = addresses.first().is_some_and(SocketAddr::is_ipv4);
    let (preferred, others): (Vec<_>, Vec<_>) =
        addresses.into_iter().partition(|address| address.is_ipv4() == first_is_ipv4);
    let pairs = preferred.len().min(others.len());
    let in_turn = preferred.iter().zip(&others).flat_map(|(one, other)| [one, other]);
    in_turn.chain(&preferred[pairs..]).chain(&others[pairs..]).copied().collect()
}

async fn first_to_answer(addresses: Vec<SocketAddr>) -> Result<TcpStream> {
    let mut untried = addresses.into_iter().take(ADDRESSES_MAX);
    let mut attempts = FuturesUnordered::new();
    let mut failure: Option<Error> = None;
    loop {
        attempts.extend(untried.next().map(attempt));
        tokio::select! {
            ended = attempts.next() => match ended {
                Some(Ok(stream)) => return Ok(stream),
                // Silence says less than an answer of another address.
                Some(Err(error)) if failure.is_none() || error.kind() != ErrorKind::TimedOut => failure = Some(error),
                Some(Err(_)) => {}
                None => return Err(failure.unwrap_or_else(|| Error::new(ErrorKind::NotFound, "the name has no address"))),
            },
            () = sleep(ATTEMPT_DELAY), if untried.len() > 0 => {}
        }
    }
}

async fn attempt(address: SocketAddr) -> Result<TcpStream> {
    let timed_out = |_| Error::new(ErrorKind::TimedOut, "no answer to the attempt to connect");
    timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await.map_err(timed_out)?
}

#[cfg(test)]
mod tests {
    use tokio::net::{TcpListener, TcpSocket};

    use super::*;

    fn addresses(list: &[&str]) -> Vec<SocketAddr> {
        list.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn the_families_take_turns_and_the_resolvers_order_is_kept() {
        for (found, expected) in [
            (&["[::1]:1", "[::2]:1", "1.0.0.1:1"][..], &["[::1]:1", "1.0.0.1:1", "[::2]:1"][..]),
            (&["1.0.0.1:1", "1.0.0.2:1", "[::1]:1", "[::2]:1"], &["1.0.0.1:1", "[::1]:1", "1.0.0.2:1", "[::2]:1"]),
            (&["1.0.0.2:1", "1.0.0.1:1"], &["1.0.0.2:1", "1.0.0.1:1"]),
            (&[], &[]),
        ] {
            assert_eq!(families_in_turn(addresses(found)), addresses(expected));
        }
    }

    proptest::proptest! {
        #[test]
        fn every_address_is_tried_once(families in proptest::collection::vec(proptest::bool::ANY, 0..20)) {
            let address = |(port, is_ipv4): (usize, &bool)| match is_ipv4 {
                true => SocketAddr::from(([127, 0, 0, 1], port as u16)),
                false => SocketAddr::from(([0, 0, 0, 0, 0, 0, 0, 1], port as u16)),
            };
            let found: Vec<_> = families.iter().enumerate().map(address).collect();
            let mut tried = families_in_turn(found.clone());
            proptest::prop_assert_eq!(tried.first(), found.first());
            tried.sort_by_key(SocketAddr::port);
            proptest::prop_assert_eq!(tried, found);
        }
    }

    // The paused clock advances while every task waits, as for an answer that never comes.
    #[tokio::test(start_paused = true)]
    async fn an_address_that_swallows_packets_does_not_hide_the_others() {
        // Linux drops the SYNs of a listener whose queue is full.
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
        let full = socket.listen(0).unwrap();
        let swallows = full.local_addr().unwrap();
        let _queued = TcpStream::connect(swallows).await.unwrap();
        let refuses = SocketAddr::from(([127, 0, 0, 3], swallows.port()));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let answers = listener.local_addr().unwrap();
        for order in [[swallows, refuses, answers], [refuses, swallows, answers], [answers, swallows, refuses]] {
            assert_eq!(first_to_answer(order.to_vec()).await.unwrap().peer_addr().unwrap(), answers);
        }
        for (order, expected) in [
            (vec![swallows, refuses], ErrorKind::ConnectionRefused),
            (vec![refuses, swallows], ErrorKind::ConnectionRefused),
            (vec![swallows, swallows], ErrorKind::TimedOut),
            (vec![], ErrorKind::NotFound),
        ] {
            assert_eq!(first_to_answer(order).await.unwrap_err().kind(), expected);
        }
    }
}
