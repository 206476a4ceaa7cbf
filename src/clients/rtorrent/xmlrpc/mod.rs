//! XML-RPC as rTorrent speaks it, which is not always XML.
//!
//! Names arrive with raw control characters and bytes that are not UTF-8, and one such torrent makes a strict
//! parser refuse the listing of all. The reader here ([`scanner`]) goes over the bytes once and accepts what
//! rTorrent writes:
//! - [`scan`] passes the rows of a listing to a visitor, without a tree and without a string for each number.
//!   A row that cannot be read is lost alone;
//! - [`read`] builds values, for answers that are small.
//!
//! Both accept an answer only if it is complete to its last tag: a truncated answer is an error, never a
//! shorter listing. `tests/xml_readers.rs` compares the reader with a general XML parser.

mod scanner;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use super::calls::{Call, Param};
pub use scanner::{read, scan};

/// Returns the request body for several calls, as one `system.multicall`.
pub(super) fn write(calls: &[Call]) -> Vec<u8> {
    let mut out = String::with_capacity(512 + calls.len() * 200);
    out.push_str(
        "<?xml version=\"1.0\"?><methodCall><methodName>system.multicall</methodName><params><param><value><array><data>",
    );
    for Call { method, params } in calls {
        // TinyXML-2 reads the two members by their position, and needs the name as a `<string>`.
        out.push_str("<value><struct><member><name>methodName</name><value><string>");
        out.push_str(method);
        out.push_str("</string></value></member><member><name>params</name><value><array><data>");
        // Methods of the XML library itself, not of rTorrent, take no target.
        let is_introspection = method == "system.listMethods";
        for param in params.iter().skip(usize::from(is_introspection)) {
            out.push_str("<value>");
            write_param(&mut out, param);
            out.push_str("</value>");
        }
        out.push_str("</data></array></value></member></struct></value>");
    }
    out.push_str("</data></array></value></param></params></methodCall>");
    out.into_bytes()
}

fn write_param(out: &mut String, param: &Param) {
    match param {
        Param::Int(number) => out.push_str(&format!("<i8>{number}</i8>")),
        Param::Text(text) if is_plain(text) => {
            // With its type, even if it is empty: `<value/>` crashes 0.15 to 0.16.20 with TinyXML-2.
            out.push_str("<string>");
            for c in text.chars() {
                match c {
                    '<' => out.push_str("&lt;"),
                    '>' => out.push_str("&gt;"),
                    '&' => out.push_str("&amp;"),
                    c => out.push(c),
                }
            }
            out.push_str("</string>");
        }
        Param::Text(text) => write_base64(out, text.as_bytes()),
        Param::Bytes(bytes) => write_base64(out, bytes),
    }
}

fn write_base64(out: &mut String, bytes: &[u8]) {
    out.push_str("<base64>");
    BASE64.encode_string(bytes, out);
    out.push_str("</base64>");
}

/// Returns whether every back end accepts the text as a `<string>`.
///
/// xmlrpc-c refuses control characters and characters beyond the basic multilingual plane. As `<base64>`
/// every back end accepts anything.
fn is_plain(text: &str) -> bool {
    text.chars().all(|c| !c.is_control() && c <= '\u{fffd}')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::InfoHash;

    #[test]
    fn a_request_types_every_value_and_names_the_method_first() {
        let hash = InfoHash::V1([0xab; 20]);
        let calls = [
            Call::global("view.size").text("main"),
            Call::on(hash, "d.custom1.set").text("a<&>\u{1f980}"),
            Call::on(hash, "d.priority.set").int(3),
            Call::on(hash, "d.custom1.set").text("tab\there"),
            Call::global("load.raw").bytes(bytes::Bytes::from_static(b"\xff")),
        ];
        let text = String::from_utf8(write(&calls)).unwrap();
        assert!(text.contains("<member><name>methodName</name><value><string>view.size</string></value></member><member><name>params</name><value><array><data><value><string></string></value><value><string>main</string></value>"));
        assert!(text.contains(&format!("<value><string>{}</string></value>", "AB".repeat(20))));
        assert!(text.contains("<base64>YTwmPvCfpoA=</base64>"), "beyond the basic plane: {text}");
        assert!(text.contains("<i8>3</i8>") && text.contains("<base64>/w==</base64>"));
        assert!(text.contains("<base64>dGFiCWhlcmU=</base64>"));
    }

    #[test]
    fn rule_6_nothing_untyped_or_empty_is_ever_sent() {
        let calls = [Call::global("load.normal").text("").int(0), Call::global("system.listMethods")];
        let text = String::from_utf8(write(&calls)).unwrap();
        for bad in ["<value/>", "<value></value>", "<!--", "<methodName></methodName>", "<methodName/>"] {
            assert!(!text.contains(bad), "{bad}");
        }
        assert!(text.matches("<value>").count() == text.matches("</value>").count());
        assert!(text.contains("<string></string>"), "an empty text has its type");
    }
}
