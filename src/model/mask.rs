//! The mask: secrets of the config, replaced in texts that come back from outside.
//!
//! A receiver that repeats a request in its answer, or a broker that names the password in its reason, would otherwise
//! put the secret into the log, the page, results and dead letters. The config adds each secret where it reads it, and every
//! text of an error is searched for them (`outside_text`).
//!
//! Each secret is recognized as it is written, in any case, percent-encoded, decoded, in base64 and as JSON, HTML and
//! Rust escape it. Not recognized is what was taken apart, reversed or encoded otherwise: whoever does that on purpose
//! knows the secret, and can publish it elsewhere. A secret of fewer than [`ANYWHERE_CHARS_MIN`] characters is part of
//! too many words; it is masked only where it stands alone between other signs. Pure.

use std::borrow::Cow;
use std::collections::BTreeSet;

use aho_corasick::{AhoCorasick, MatchKind};
use base64::Engine as _;
use base64::prelude::{BASE64_STANDARD, BASE64_STANDARD_NO_PAD, BASE64_URL_SAFE_NO_PAD};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use url::{Position, Url};

/// The text in place of a secret.
const MASKED: &str = "***";
/// Fewest characters of a secret that is masked wherever it occurs, also within a word.
pub const ANYWHERE_CHARS_MIN: usize = 6;
/// Longest part of a path that is taken for a word if it has nothing but lower-case letters.
const WORD_BYTES_MAX: usize = 12;
/// Characters that encoders of URLs leave as they are (RFC 3986 §2.3).
const UNRESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// The forms in which the secrets of a config may come back.
#[derive(Clone, derive_more::Debug, Default)]
#[debug("Mask({})", forms.len())]
pub struct Mask {
    forms: BTreeSet<String>,
    /// Those that are masked anywhere, and those that have to stand alone.
    matchers: [Option<AhoCorasick>; 2],
}

impl Mask {
    /// Adds a secret.
    pub fn add(&mut self, secret: &str) {
        let secret = secret.trim();
        let decoded = percent_decode_str(secret).decode_utf8_lossy().into_owned();
        for text in [secret, decoded.as_str()].into_iter().filter(|text| !text.is_empty()) {
            self.forms.extend(forms(text));
        }
    }

    /// Adds the password of a user, also as both are sent together.
    pub fn add_login(&mut self, user: &str, password: &str) {
        self.add(password);
        // HTTP basic authentication (RFC 7617), where the name alone is no secret.
        self.add(&format!("{user}:{password}"));
    }

    /// Adds the value of a header of a request, whole and without its scheme or the names in it, as a server may repeat it.
    pub fn add_header(&mut self, name: &str, value: &str) {
        self.add(value);
        if name.eq_ignore_ascii_case("cookie") {
            let values = value.split(';').filter_map(|pair| Some(pair.split_once('=')?.1));
            return values.filter(|value| is_long(value)).for_each(|value| self.add(value));
        }
        let Some((scheme, credentials)) = value.trim().split_once(' ') else { return };
        self.add(credentials);
        let login = BASE64_STANDARD.decode(credentials.trim()).ok().and_then(|login| String::from_utf8(login).ok());
        if let Some((user, password)) = login.as_deref().and_then(|login| login.split_once(':'))
            && scheme.eq_ignore_ascii_case("basic")
        {
            self.add_login(user, password);
        }
    }

    /// Adds what follows the host of a URL: the path, each part of it that is long and no plain word, and the query.
    pub fn add_url(&mut self, url: &str) {
        // What is no URL is an error of the config, which ends here.
        let Ok(url) = Url::parse(url.trim()) else { return };
        let path = url.path();
        // `services` and `dtorrent` are in many texts, and no secret.
        let secrets: Vec<&str> = path.split('/').filter(|part| !is_plain_word(part) && !part.is_empty()).collect();
        let whole = &url[Position::BeforePath..Position::AfterQuery];
        if !secrets.is_empty() {
            secrets.into_iter().chain([path, whole]).filter(|part| is_long(part)).for_each(|part| self.add(part));
        }
        self.add_query(&url);
    }

    /// Adds each long value of a URL's query, but for words under a name that promises no secret (`parse_mode=Markdown`).
    pub fn add_query(&mut self, url: &Url) {
        let is_word = |value: &str| is_plain_word(&value.to_ascii_lowercase());
        let is_secret =
            |(name, value): &(Cow<'_, str>, Cow<'_, str>)| is_long(value) && (names_secret(name) || !is_word(value));
        url.query_pairs().filter(is_secret).for_each(|(_, value)| self.add(&value));
    }

    /// Completes the mask: secrets that are added later are not looked for.
    #[must_use]
    pub fn built(self) -> Self {
        let (anywhere, alone): (Vec<&String>, Vec<&String>) = self.forms.iter().partition(|form| is_long(form));
        let matcher = |forms: Vec<&String>| {
            let mut builder = AhoCorasick::builder();
            let builder = builder.ascii_case_insensitive(true).match_kind(MatchKind::LeftmostLongest);
            // Fails only beyond two billion states, and the files of a config are limited.
            (!forms.is_empty()).then(|| builder.build(forms).ok()).flatten()
        };
        let matchers = [matcher(anywhere), matcher(alone)];
        Self { matchers, ..self }
    }

    /// Returns a text with every secret replaced.
    pub fn masked<'a>(&self, text: &'a str) -> Cow<'a, str> {
        let [anywhere, alone] = &self.matchers;
        let text = replaced(text.into(), anywhere.as_ref(), |_, _, _| true);
        replaced(text, alone.as_ref(), stands_alone)
    }

    /// As [`Self::masked`], without the secrets that are part of too many words. For texts that are not from outside.
    pub fn masked_anywhere<'a>(&self, text: &'a str) -> Cow<'a, str> {
        replaced(text.into(), self.matchers[0].as_ref(), |_, _, _| true)
    }
}

/// Returns whether the name of a header or parameter promises a secret.
pub fn names_secret(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    ["auth", "cookie", "key", "pass", "secret", "sign", "token"].iter().any(|word| name.contains(word))
}

/// Whether a secret is no part of other words.
fn is_long(secret: &str) -> bool {
    secret.chars().count() >= ANYWHERE_CHARS_MIN
}

/// Whether a part of a path is likely a word that many URLs have.
fn is_plain_word(part: &str) -> bool {
    part.len() <= WORD_BYTES_MAX && part.bytes().all(|byte| byte.is_ascii_lowercase())
}

/// Returns a secret as others may repeat it.
fn forms(secret: &str) -> Vec<String> {
    let encoded = |set| utf8_percent_encode(secret, set).to_string();
    let html = secret.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    let json = serde_json::Value::from(secret).to_string();
    vec![
        secret.to_owned(),
        encoded(NON_ALPHANUMERIC),
        encoded(UNRESERVED),
        encoded(UNRESERVED).replace("%20", "+"),
        BASE64_STANDARD_NO_PAD.encode(secret),
        BASE64_URL_SAFE_NO_PAD.encode(secret),
        json.trim_matches('"').to_owned(),
        secret.escape_debug().to_string(),
        html.replace('"', "&quot;").replace('\'', "&#39;"),
        html,
    ]
}

fn replaced<'a>(
    text: Cow<'a, str>,
    matcher: Option<&AhoCorasick>,
    is_one: impl Fn(&str, usize, usize) -> bool,
) -> Cow<'a, str> {
    let Some(matcher) = matcher else { return text };
    let (mut masked, mut from) = (String::new(), 0);
    for found in matcher.find_iter(&*text).filter(|found| is_one(&text, found.start(), found.end())) {
        masked += &text[from..found.start()];
        masked += MASKED;
        from = found.end();
    }
    if from == 0 {
        return text;
    }
    masked += &text[from..];
    masked.into()
}

/// Whether no word goes on before or behind a place in a text.
fn stands_alone(text: &str, start: usize, end: usize) -> bool {
    let is_word = |c: Option<char>| c.is_some_and(char::is_alphanumeric);
    !is_word(text[..start].chars().next_back()) && !is_word(text[end..].chars().next())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn mask(add: impl FnOnce(&mut Mask)) -> Mask {
        let mut mask = Mask::default();
        add(&mut mask);
        mask.built()
    }

    #[test]
    fn a_secret_is_masked_in_each_form_in_which_it_is_repeated() {
        let mask = mask(|mask| mask.add_login("me", "open \"sesame\"/&"));
        for text in [
            "open \"sesame\"/&",
            "OPEN \"Sesame\"/&",
            "open%20%22sesame%22%2F%26",
            "open%20%22sesame%22%2f%26",
            "open+%22sesame%22%2F%26",
            "open \\\"sesame\\\"/&",
            "open &quot;sesame&quot;/&amp;",
            "b3BlbiAic2VzYW1lIi8m",
            "Authorization: Basic bWU6b3BlbiAic2VzYW1lIi8m",
        ] {
            let masked = mask.masked(text).to_lowercase();
            assert!(masked.contains("***") && !masked.contains("sesame") && !masked.contains("c2vzyw1l"), "{masked}");
        }
        assert_eq!(format!("{mask:?}").find("sesame"), None);
    }

    #[test]
    fn the_path_and_the_query_of_a_url_are_masked_whole_and_in_parts() {
        let mask = mask(|mask| mask.add_url("https://hooks.example/services/T0%20secret/x?key=abcdef"));
        for (text, expected) in [
            ("no route /services/T0%20secret/x?key=abcdef.", "no route ***."),
            ("no route /services/T0 secret/x", "no route ***"),
            ("`T0%20SECRET` is unknown", "`***` is unknown"),
            ("key abcdef is over", "key *** is over"),
            ("services of hooks.example are down", "services of hooks.example are down"),
        ] {
            assert_eq!(mask.masked(text), expected);
        }
    }

    #[test]
    fn words_in_a_url_are_in_other_texts_too() {
        let mask = mask(|mask| mask.add_url("http://nas:9000/downloads?parse_mode=Markdown&token=sesames"));
        assert_eq!(mask.masked("/downloads/x.iso is no Markdown"), "/downloads/x.iso is no Markdown");
        assert_eq!(mask.masked("bad token sesames"), "bad token ***");
    }

    #[test]
    fn a_header_is_masked_with_and_without_its_scheme() {
        for (name, value, repeated) in [
            ("Authorization", "Bearer tk_AgQdq7mV", "unknown token tk_AgQdq7mV"),
            ("authorization", "Basic bWU6c2VzYW1lcw==", "wrong password: sesames"),
            ("Cookie", "lang=en; session=5e55104d", "no session 5e55104d"),
        ] {
            let masked = mask(|mask| mask.add_header(name, value)).masked(repeated).into_owned();
            assert!(masked.ends_with("***"), "{masked}");
        }
        let mask = mask(|mask| mask.add_header("Authorization", "Bearer tk_AgQdq7mV"));
        assert_eq!(mask.masked("write Bearer TOKEN"), "write Bearer TOKEN");
    }

    #[test]
    fn a_short_secret_is_masked_where_it_stands_alone() {
        let mask = mask(|mask| mask.add("abc"));
        assert_eq!(mask.masked("password=abc, not abcd nor dabc (ABC)"), "password=***, not abcd nor dabc (***)");
        assert_eq!(mask.masked_anywhere("password=abc"), "password=abc", "our own words are not taken for it");
    }

    #[test]
    fn a_secret_within_another_leaves_no_rest() {
        let mask = mask(|mask| ["sesame", "open sesame now"].iter().for_each(|secret| mask.add(secret)));
        assert_eq!(mask.masked("open sesame now or sesame"), "*** or ***");
        assert_eq!(Mask::default().built().masked("sesame"), "sesame");
    }

    proptest! {
        #[test]
        fn no_text_keeps_a_secret(secret in "[ -~]{6,20}", before in "\\PC{0,20}", behind in "\\PC{0,20}") {
            prop_assume!(secret.trim().len() >= 6 && !MASKED.contains(secret.trim()));
            let mask = mask(|mask| mask.add(&secret));
            let masked = mask.masked(&format!("{before} {secret} {behind}")).into_owned();
            let rest = masked.replace(MASKED, "\n");
            prop_assert!(!rest.contains(secret.trim()), "{masked}");
        }
    }
}
