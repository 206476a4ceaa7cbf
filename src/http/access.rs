//! Access rules: who may read the pages, and who may change something through them. Pure.
//!
//! Two attacks come from a web page that a browser on the owner's network has loaded.
//!
//! *DNS rebinding*: the attacker points a name of his at this address, and his page then reads ours as its own origin.
//! Hence a request is served only under a host that he cannot own: an address, a name without dots, or a name that
//! the config lists.
//!
//! *Request forgery*: his page submits a form to this address. Hence a change needs the token, which no browser adds by
//! itself, and must not declare another origin. Wrong tokens are slowed down: [`super::token_guard`].

use core::net::IpAddr;
use std::time::Duration;

use axum::http::uri::Authority;
use axum::http::{HeaderMap, Uri, header};
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest as _, Sha256};

/// The token that a change needs, and the host names that are ours.
#[derive(Clone, Debug, Default)]
pub struct AccessRules {
    /// `None` forbids every change over HTTP.
    pub token: Option<SecretString>,
    /// Host names with dots under which the pages are served, in lower case.
    pub hosts: Vec<String>,
}

/// Why a request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refusal {
    /// The host name is not one of ours.
    #[error("unknown host name; if it is one of this bridge, list it in http.hosts")]
    Host,
    /// A page of another site sent the request.
    #[error("cross-site request")]
    Origin,
    /// The config has no token, so nothing can be changed.
    #[error("changes over HTTP are off; set http.token or http.token_file")]
    NoToken,
    /// There is no token. Nobody has guessed.
    #[error("missing or wrong token; send `Authorization: Bearer TOKEN` with the http.token of the config")]
    MissingToken,
    /// The token is another one.
    #[error("missing or wrong token; send `Authorization: Bearer TOKEN` with the http.token of the config")]
    WrongToken,
    /// Too many wrong tokens came from the same address, so this one was not compared.
    #[error("too many wrong tokens from this address; wait")]
    TooManyGuesses(Duration),
}

/// Who sends a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Viewer {
    /// Somebody who reaches the port.
    Anybody,
    /// Somebody who has the token.
    TokenHolder,
}

impl AccessRules {
    /// Checks that a request names a host of ours, in its target and in every `Host` header.
    pub(super) fn check_host(&self, uri: &Uri, headers: &HeaderMap) -> Result<(), Refusal> {
        // A request in absolute form, as to a proxy, names the host twice, and a server may follow either.
        let is_uri_right = uri.authority().is_none_or(|authority| self.is_ours(authority.host()));
        let mut host_headers = headers.get_all(header::HOST).iter().map(|value| {
            let authority = value.to_str().ok().and_then(|text| text.parse::<Authority>().ok());
            authority.is_some_and(|authority| self.is_ours(authority.host()))
        });
        // HTTP/1.0 has no `Host`, and no browser speaks it.
        if is_uri_right && host_headers.all(|is_ours| is_ours) { Ok(()) } else { Err(Refusal::Host) }
    }

    fn is_ours(&self, host: &str) -> bool {
        // A browser keeps the dot of a fully qualified name, which is the same host.
        let host = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(&host);
        bare.parse::<IpAddr>().is_ok()
            || (!host.is_empty() && !host.contains('.'))
            || host.ends_with(".localhost")
            || self.hosts.contains(&host)
    }

    /// Checks that no page of another site sent a request that may change something.
    pub(super) fn check_origin(&self, headers: &HeaderMap) -> Result<(), Refusal> {
        let text = |name| headers.get(name).map(|value: &axum::http::HeaderValue| value.to_str().unwrap_or_default());
        if let Some(origin) = text(header::ORIGIN) {
            let from = origin.split_once("://").and_then(|(_, rest)| rest.parse::<Authority>().ok());
            // The scheme is not compared: behind a proxy that ends TLS, `Host` does not show it.
            let is_same_origin = |from: &Authority| {
                let is_requested = text(header::HOST).is_some_and(|host| host.eq_ignore_ascii_case(from.as_str()));
                is_requested || self.hosts.contains(&from.host().to_ascii_lowercase())
            };
            if !from.is_some_and(|from| is_same_origin(&from)) {
                return Err(Refusal::Origin);
            }
        }
        // Browsers omit `Origin` on some requests, and scripts cannot set or remove this header.
        let site = headers.get("sec-fetch-site").map(axum::http::HeaderValue::as_bytes);
        if !matches!(site, None | Some(b"same-origin" | b"none")) {
            return Err(Refusal::Origin);
        }
        Ok(())
    }

    /// Returns whether a token is the right one.
    pub(super) fn is_token(&self, given: &str) -> bool {
        self.token.as_ref().is_some_and(|token| is_same(given, token.expose_secret()))
    }
}

/// Returns the token of a request; the login of a proxy (`Basic`) is none.
pub(super) fn given_token(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// Returns whether a token is a JSON Web Token (RFC 7519), as proxies with a login of their own pass on.
pub(super) fn is_web_token(token: &str) -> bool {
    // Base64 of `{"`, with which its header begins.
    token.starts_with("eyJ") && token.matches('.').count() == 2
}

/// Compares in a time that does not reveal where the two differ.
fn is_same(one: &str, other: &str) -> bool {
    // Digests have one length, so that of the token is not revealed either.
    let (one, other) = (Sha256::digest(one), Sha256::digest(other));
    one.iter().zip(other.iter()).fold(0, |difference, (one, other)| difference | (one ^ other)) == 0
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// A browser repeats the name in `Host`, with or without the port, in any case.
        #[test]
        fn no_name_with_a_dot_that_is_not_listed_is_ours(
            name in "[a-zA-Z0-9-]{1,8}(\\.[a-zA-Z0-9-]{1,8}){0,2}\\.[a-zA-Z]{2,8}\\.?",
            port in prop::option::of(any::<u16>()),
        ) {
            prop_assume!(!name.to_lowercase().trim_end_matches('.').ends_with(".localhost"));
            let host = port.map_or(name.clone(), |port| format!("{name}:{port}"));
            let check = rules().check_host(&"/".parse().unwrap(), &headers(&[("host", &host)]));
            prop_assert_eq!(check, Err(Refusal::Host));
        }

        #[test]
        fn no_random_header_panics_or_is_the_token(value in prop::collection::vec(any::<u8>(), 0..40)) {
            let Ok(value) = axum::http::HeaderValue::from_bytes(&value) else { return Ok(()) };
            for name in [header::HOST, header::ORIGIN, header::AUTHORIZATION] {
                let headers = HeaderMap::from_iter([(name, value.clone())]);
                let _not_panicked = rules().check_host(&"/".parse().unwrap(), &headers);
                let _not_panicked = rules().check_origin(&headers);
                prop_assert!(!given_token(&headers).is_some_and(|given| rules().is_token(given)));
            }
        }
    }

    fn rules() -> AccessRules {
        AccessRules { token: Some("sesame".to_owned().into()), hosts: vec!["torrents.example.org".to_owned()] }
    }

    fn headers(of: &[(&'static str, &str)]) -> HeaderMap {
        of.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect::<HeaderMap>()
    }

    #[test]
    fn only_a_host_that_no_attacker_can_own_is_ours() {
        let check = |host: &str| rules().check_host(&"/".parse().unwrap(), &headers(&[("host", host)]));
        for ours in [
            "127.0.0.1:8787",
            "[::1]:8787",
            "10.0.0.2",
            "localhost",
            "LOCALHOST:1",
            "nas:8787",
            "a.localhost",
            "torrents.example.org",
            "Torrents.Example.org.:443",
        ] {
            assert_eq!(check(ours), Ok(()), "{ours}");
        }
        for other in [
            "evil.example",
            "evil.example:8787",
            "127.0.0.1.evil.example",
            "localhost.evil.example",
            "0x7f.1",
            "",
            "a b",
            "torrents.example.org.evil.example",
            "user@evil.example",
        ] {
            assert_eq!(check(other), Err(Refusal::Host), "{other}");
        }
        let absolute = "http://evil.example/".parse().unwrap();
        assert_eq!(rules().check_host(&absolute, &headers(&[("host", "localhost")])), Err(Refusal::Host));
        assert_eq!(rules().check_host(&"/".parse().unwrap(), &HeaderMap::new()), Ok(()), "HTTP/1.0 has none");
    }

    #[test]
    fn a_token_is_a_bearer_token_and_nothing_else() {
        for (value, expected) in [
            ("Bearer sesame", Some(true)),
            ("bearer  sesame ", Some(true)),
            ("Bearer sesam", Some(false)),
            ("Bearer sesame sesame", Some(false)),
            ("Basic sesame", None),
            ("sesame", None),
            ("", None),
        ] {
            let headers = headers(&[("authorization", value)]);
            assert_eq!(given_token(&headers).map(|given| rules().is_token(given)), expected, "{value}");
        }
        let without_token = AccessRules { token: None, ..rules() };
        assert!(!without_token.is_token("") && !without_token.is_token("sesame"));
    }

    #[test]
    fn a_change_must_not_be_cross_site() {
        let host = ("host", "nas:8787");
        for (of, expected) in [
            (vec![host], Ok(())),
            (vec![host, ("origin", "http://nas:8787")], Ok(())),
            (vec![host, ("origin", "https://torrents.example.org")], Ok(())),
            (vec![host, ("origin", "http://nas:8788")], Err(Refusal::Origin)),
            (vec![host, ("origin", "http://evil.example")], Err(Refusal::Origin)),
            (vec![host, ("origin", "null")], Err(Refusal::Origin)),
            (vec![host, ("sec-fetch-site", "same-origin")], Ok(())),
            (vec![host, ("sec-fetch-site", "cross-site")], Err(Refusal::Origin)),
            (vec![host, ("sec-fetch-site", "same-site")], Err(Refusal::Origin)),
        ] {
            assert_eq!(rules().check_origin(&headers(&of)), expected, "{of:?}");
        }
    }
}
