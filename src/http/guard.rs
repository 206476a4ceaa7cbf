//! Who may see the pages, and who may change something by them. Pure.
//!
//! Two attacks come from a web page that the owner of this machine looks at. *Rebinding*: a name of the
//! attacker's is made to mean this machine, and his page then reads ours as its own. So what is asked for has
//! to be asked for under a name that he cannot have: an address, a name without dots, or one that the config
//! lists. *Forgery*: his page sends a form here. So whatever changes something needs the token, which no
//! browser adds by itself, and must not say that it comes from elsewhere.

use std::net::IpAddr;

use axum::http::uri::Authority;
use axum::http::{HeaderMap, Uri, header};
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest as _, Sha256};

/// What is asked for a change, and by which names we are known.
#[derive(Clone, Debug, Default)]
pub struct Guard {
    /// `None`: nothing can be changed over HTTP.
    pub token: Option<SecretString>,
    /// Names with dots by which a browser may ask for the pages, in lower case.
    pub hosts: Vec<String>,
}

/// Why a request is not carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    Host,
    Origin,
    NoToken,
    WrongToken,
}

impl Refusal {
    pub(super) fn message(self) -> &'static str {
        match self {
            Self::Host => "this is asked for under a name that is not ours; list it in http.hosts if it is",
            Self::Origin => "this comes from another site's page",
            Self::NoToken => "nothing can be changed over HTTP before http.token or http.token_file is in the config",
            Self::WrongToken => "the header `Authorization: Bearer …` with the token of the config is needed",
        }
    }
}

impl Guard {
    pub(super) fn check_host(&self, uri: &Uri, headers: &HeaderMap) -> Result<(), Refusal> {
        let of_uri = uri.authority().map(|authority| self.is_ours(authority.host()));
        let mut of_headers = headers.get_all(header::HOST).iter().map(|value| {
            let authority = value.to_str().ok().and_then(|text| text.parse::<Authority>().ok());
            authority.is_some_and(|authority| self.is_ours(authority.host()))
        });
        let is_right = of_uri.unwrap_or(true) && of_headers.all(|is_ours| is_ours);
        if is_right { Ok(()) } else { Err(Refusal::Host) }
    }

    fn is_ours(&self, host: &str) -> bool {
        let host = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(&host);
        bare.parse::<IpAddr>().is_ok()
            || (!host.is_empty() && !host.contains('.'))
            || host.ends_with(".localhost")
            || self.hosts.contains(&host)
    }

    /// Whether a request may change something.
    pub(super) fn check_change(&self, headers: &HeaderMap) -> Result<(), Refusal> {
        let said = |name| headers.get(name).map(|value: &axum::http::HeaderValue| value.to_str().unwrap_or_default());
        if let Some(origin) = said(header::ORIGIN) {
            let from = origin.split_once("://").and_then(|(_, rest)| rest.parse::<Authority>().ok());
            let is_here = |from: &Authority| {
                let is_asked_host = said(header::HOST).is_some_and(|host| host.eq_ignore_ascii_case(from.as_str()));
                is_asked_host || self.hosts.contains(&from.host().to_ascii_lowercase())
            };
            if !from.is_some_and(|from| is_here(&from)) {
                return Err(Refusal::Origin);
            }
        }
        let site = headers.get("sec-fetch-site").map(axum::http::HeaderValue::as_bytes);
        if !matches!(site, None | Some(b"same-origin" | b"none")) {
            return Err(Refusal::Origin);
        }
        let Some(token) = &self.token else { return Err(Refusal::NoToken) };
        let given = said(header::AUTHORIZATION).and_then(|value| value.split_once(' '));
        let given = given.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer")).map(|(_, token)| token.trim());
        if given.is_some_and(|given| is_same(given, token.expose_secret())) { Ok(()) } else { Err(Refusal::WrongToken) }
    }
}

/// In a time that tells nothing of where they differ.
fn is_same(one: &str, other: &str) -> bool {
    let (one, other) = (Sha256::digest(one), Sha256::digest(other));
    one.iter().zip(other.iter()).fold(0, |difference, (one, other)| difference | (one ^ other)) == 0
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// A browser that was sent to a name with dots says it in `Host`, with a port or not, in any case.
        #[test]
        fn no_name_with_a_dot_that_is_not_listed_is_ours(
            name in "[a-zA-Z0-9-]{1,8}(\\.[a-zA-Z0-9-]{1,8}){0,2}\\.[a-zA-Z]{2,8}\\.?",
            port in prop::option::of(any::<u16>()),
        ) {
            prop_assume!(!name.to_lowercase().trim_end_matches('.').ends_with(".localhost"));
            let host = port.map_or(name.clone(), |port| format!("{name}:{port}"));
            let check = guard().check_host(&"/".parse().unwrap(), &headers(&[("host", &host)]));
            prop_assert_eq!(check, Err(Refusal::Host));
        }

        #[test]
        fn no_header_makes_it_panic_or_is_the_token(value in prop::collection::vec(any::<u8>(), 0..40)) {
            let Ok(value) = axum::http::HeaderValue::from_bytes(&value) else { return Ok(()) };
            for name in [header::HOST, header::ORIGIN, header::AUTHORIZATION] {
                let headers = HeaderMap::from_iter([(name, value.clone())]);
                let _not_panicked = guard().check_host(&"/".parse().unwrap(), &headers);
                prop_assert!(guard().check_change(&headers).is_err());
            }
        }
    }

    fn guard() -> Guard {
        Guard { token: Some("sesame".to_owned().into()), hosts: vec!["torrents.example.org".to_owned()] }
    }

    fn headers(of: &[(&'static str, &str)]) -> HeaderMap {
        of.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect::<HeaderMap>()
    }

    #[test]
    fn only_a_name_that_no_stranger_can_have_is_ours() {
        let check = |host: &str| guard().check_host(&"/".parse().unwrap(), &headers(&[("host", host)]));
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
        assert_eq!(guard().check_host(&absolute, &headers(&[("host", "localhost")])), Err(Refusal::Host));
        assert_eq!(guard().check_host(&"/".parse().unwrap(), &HeaderMap::new()), Ok(()), "HTTP/1.0 has none");
    }

    #[test]
    fn a_change_needs_the_token_and_must_not_come_from_elsewhere() {
        let right = ("authorization", "Bearer sesame");
        let host = ("host", "nas:8787");
        for (of, expected) in [
            (vec![host, right], Ok(())),
            (vec![host, ("authorization", "bearer  sesame ")], Ok(())),
            (vec![host], Err(Refusal::WrongToken)),
            (vec![host, ("authorization", "Bearer sesam")], Err(Refusal::WrongToken)),
            (vec![host, ("authorization", "Basic sesame")], Err(Refusal::WrongToken)),
            (vec![host, ("authorization", "sesame")], Err(Refusal::WrongToken)),
            (vec![host, right, ("origin", "http://nas:8787")], Ok(())),
            (vec![host, right, ("origin", "https://torrents.example.org")], Ok(())),
            (vec![host, right, ("origin", "http://nas:8788")], Err(Refusal::Origin)),
            (vec![host, right, ("origin", "http://evil.example")], Err(Refusal::Origin)),
            (vec![host, right, ("origin", "null")], Err(Refusal::Origin)),
            (vec![host, right, ("sec-fetch-site", "same-origin")], Ok(())),
            (vec![host, right, ("sec-fetch-site", "cross-site")], Err(Refusal::Origin)),
            (vec![host, right, ("sec-fetch-site", "same-site")], Err(Refusal::Origin)),
        ] {
            assert_eq!(guard().check_change(&headers(&of)), expected, "{of:?}");
        }
        let nobody = Guard { token: None, ..guard() };
        assert_eq!(nobody.check_change(&headers(&[host, right])), Err(Refusal::NoToken));
    }
}
