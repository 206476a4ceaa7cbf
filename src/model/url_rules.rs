//! Which hosts and networks a .torrent file may be fetched from.
//!
//! A link may come from anyone who may publish. Loopback and private networks are allowed unless the config says
//! otherwise, because indexers run there; metadata services of cloud machines never are, because they hand out secrets to
//! whoever asks from this machine.
//!
//! Pure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// Hosts and networks that links may lead to.
///
/// A denied one is refused. If some are allowed, all others are refused.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UrlRules {
    allow: Vec<UrlRule>,
    deny: Vec<UrlRule>,
}

/// A host or a network: `example.org`, `*.example.org` (every name below it), `10.0.0.0/8`, `::1`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UrlRule(Rule);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Rule {
    /// In lower case.
    Host(String),
    /// The end of a name, from its dot on, in lower case.
    Below(String),
    Network(IpNet),
}

/// A text that is neither a host nor a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("is neither a host nor a network")]
pub struct InvalidUrlRule;

/// Metadata services whose addresses are not link-local: of AWS and Google Cloud (IPv6), Alibaba Cloud, Azure and Oracle.
const METADATA: [IpAddr; 6] = [
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x23)),
    IpAddr::V6(Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254)),
    IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)),
    IpAddr::V4(Ipv4Addr::new(168, 63, 129, 16)),
    IpAddr::V4(Ipv4Addr::new(192, 0, 0, 192)),
];

impl UrlRules {
    /// Returns the rules of these lists.
    pub fn new(allow: Vec<UrlRule>, deny: Vec<UrlRule>) -> Self {
        Self { allow, deny }
    }

    /// Whether links to `host` are refused whatever its addresses are.
    pub fn denies_host(&self, host: &str) -> bool {
        let host = host.trim_end_matches('.').to_ascii_lowercase();
        self.deny.iter().any(|rule| rule.matches_host(&host))
    }

    /// Whether a link to `host`, one of whose addresses this is, may be followed.
    pub fn permit(&self, host: &str, address: IpAddr) -> bool {
        let host = host.trim_end_matches('.').to_ascii_lowercase();
        // Written as IPv6, an IPv4 address would pass the rules for IPv4.
        let addresses = [Some(address.to_canonical()), embedded(address)];
        let addresses: Vec<IpAddr> = addresses.into_iter().flatten().collect();
        let matches = |rule: &UrlRule| rule.matches_host(&host) || addresses.iter().any(|one| rule.has(*one));
        addresses.iter().all(|address| is_reachable_by_links(*address))
            && !self.deny.iter().any(matches)
            && (self.allow.is_empty() || self.allow.iter().any(matches))
    }
}

impl UrlRule {
    /// Reads a host, `*.` and a host, an address, or a network with the length of its prefix.
    ///
    /// # Errors
    /// The text is none of these.
    pub fn parse(text: &str) -> Result<Self, InvalidUrlRule> {
        if let Ok(address) = text.trim_matches(['[', ']']).parse::<IpAddr>() {
            return Ok(Self(Rule::Network(address.into())));
        }
        if text.contains('/') {
            return text.parse().map(|network| Self(Rule::Network(network))).map_err(|_| InvalidUrlRule);
        }
        let name = text.strip_prefix("*.").unwrap_or(text).trim_end_matches('.').to_ascii_lowercase();
        // Names are compared as URLs have them: in ASCII.
        let is_name = url::Host::parse(&name).is_ok_and(|host| host == url::Host::Domain(name.clone()));
        match (is_name && !name.contains('*'), text.starts_with("*.")) {
            (false, _) => Err(InvalidUrlRule),
            (true, false) => Ok(Self(Rule::Host(name))),
            (true, true) => Ok(Self(Rule::Below(format!(".{name}")))),
        }
    }

    fn matches_host(&self, host: &str) -> bool {
        match &self.0 {
            Rule::Host(name) => name == host,
            Rule::Below(end) => host.ends_with(end.as_str()),
            Rule::Network(..) => false,
        }
    }

    fn has(&self, address: IpAddr) -> bool {
        matches!(&self.0, Rule::Network(network) if network.contains(&address))
    }
}

/// Returns the IPv4 address that an IPv6 address leads to, through NAT64 (RFC 6052), 6to4 (RFC 3056) or a stateless
/// translation (RFC 2765), or in its deprecated compatible form.
fn embedded(address: IpAddr) -> Option<IpAddr> {
    let IpAddr::V6(address) = address else { return None };
    let [a, b, c, d, e, f, g, h] = address.segments();
    let (high, low) = match (a, b) {
        (0x64, 0xff9b) => (g, h),
        (0x2002, _) => (b, c),
        (0, 0) if (c, d, e, f) == (0, 0, 0, 0) && g != 0 => (g, h),
        (0, 0) if (c, d, e, f) == (0, 0, 0xffff, 0) => (g, h),
        _ => return None,
    };
    Some(Ipv4Addr::from_bits((u32::from(high) << 16) | u32::from(low)).into())
}

/// Whether an address is one that a .torrent file can be at: one host's, and not link-local, where metadata services live.
fn is_reachable_by_links(address: IpAddr) -> bool {
    let is_special = match address {
        IpAddr::V4(address) => address.is_link_local() || address.is_broadcast(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    };
    !is_special && !address.is_unspecified() && !address.is_multicast() && !METADATA.contains(&address)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rules(allow: &[&str], deny: &[&str]) -> UrlRules {
        let parsed = |texts: &[&str]| texts.iter().map(|text| UrlRule::parse(text).unwrap()).collect();
        UrlRules::new(parsed(allow), parsed(deny))
    }

    #[test]
    fn metadata_services_are_never_permitted_however_their_address_is_written() {
        for address in [
            "169.254.169.254",
            "::ffff:169.254.169.254",
            "::169.254.169.254",
            "64:ff9b::a9fe:a9fe",
            "2002:a9fe:a9fe::1",
            "fe80::1",
            "0.0.0.0",
            "::",
            "255.255.255.255",
            "fd00:ec2::254",
            "fd00:ec2::23",
            "fd20:ce::254",
            "100.100.100.200",
            "168.63.129.16",
            "192.0.0.192",
            "::ffff:0.0.0.0",
            "::ffff:0:169.254.169.254",
            "64:ff9b:1::169.254.169.254",
            "64:ff9b::168.63.129.16",
            "224.0.0.1",
            "ff02::1",
        ] {
            let address = address.parse().unwrap();
            assert!(!UrlRules::default().permit("x", address), "{address}");
            assert!(!rules(&["x", "0.0.0.0/0", "::/0"], &[]).permit("x", address), "{address}");
        }
        for address in ["127.0.0.1", "10.1.2.3", "192.168.0.1", "::1", "fd00::1", "100.64.0.1", "2001:db8::1"] {
            assert!(UrlRules::default().permit("x", address.parse().unwrap()), "{address}");
        }
    }

    #[test]
    fn a_denied_host_or_network_wins_and_an_allowed_one_excludes_all_others() {
        //     allow                        deny                    host            address          permitted
        for (allow, deny, host, address, is_permitted) in [
            (&[][..], &["127.0.0.0/8"][..], "localhost", "127.0.0.1", false),
            (&[], &["127.0.0.0/8"], "x", "::ffff:127.1.1.1", false),
            (&[], &["127.0.0.0/8"], "localhost", "::1", true),
            (&[], &["Evil.example"], "evil.EXAMPLE.", "1.2.3.4", false),
            (&[], &["*.example"], "evil.example", "1.2.3.4", false),
            (&[], &["*.example"], "example", "1.2.3.4", true),
            (&["jackett"], &[], "jackett", "10.0.0.1", true),
            (&["jackett"], &[], "prowlarr", "10.0.0.1", false),
            (&["10.0.0.0/24"], &[], "prowlarr", "10.0.0.1", true),
            (&["10.0.0.0/24"], &[], "prowlarr", "10.0.1.1", false),
            (&["jackett"], &["10.0.0.1"], "jackett", "10.0.0.1", false),
            (&["fd00::/8"], &[], "x", "fd12::1", true),
            (&["0.0.0.0/0"], &[], "x", "fd12::1", false),
            (&[], &["::/0"], "x", "1.2.3.4", true),
        ] {
            let permitted = rules(allow, deny).permit(host, address.parse().unwrap());
            assert_eq!(permitted, is_permitted, "{allow:?} {deny:?} {host} {address}");
        }
    }

    #[test]
    fn a_rule_is_a_host_or_a_network() {
        for bad in
            ["", "*", "a*", "*.*.a", "http://a", "a:80", "10.0.0.0/33", "::/129", "10.0.0/8", "a/b", "a b", "ü.example"]
        {
            assert_eq!(UrlRule::parse(bad), Err(InvalidUrlRule), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in "[0-9a-f.:/*\\[\\]x-]{0,30}|.{0,30}", bits in any::<u128>()) {
            let Ok(rule) = UrlRule::parse(&text) else { return Ok(()) };
            let rules = UrlRules::new(vec![rule.clone()], vec![rule]);
            prop_assert!(!rules.permit("a.b", IpAddr::V6(Ipv6Addr::from_bits(bits))), "deny wins");
        }
    }
}
