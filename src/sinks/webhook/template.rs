//! Templates: webhook bodies in a shape of the user's own.
//!
//! A template has no access to files and no includes, and is bounded in steps, recursion and output. In JSON every value
//! that it prints is encoded as JSON, with quotes, so a torrent's name cannot break out of its place (I14).

use std::io;
use std::sync::Arc;

use minijinja::{AutoEscape, Environment, UndefinedBehavior};
use serde_json::{Value, json};

/// The name in the environment, which holds one template.
const NAME: &str = "template";
/// Maximum size of a template's source.
const SOURCE_BYTES_MAX: usize = 64 << 10;
/// Maximum size of a rendered body.
const BODY_BYTES_MAX: usize = 256 << 10;
/// Maximum number of instructions of one rendering: some milliseconds.
const STEPS_MAX: u64 = 100_000;
/// Maximum recursion of macros and loops.
const DEPTH_MAX: usize = 50;

/// A template that was parsed and tried.
#[derive(Clone, derive_more::Debug)]
#[debug("a template for {content_type}")]
pub struct Template {
    environment: Arc<Environment<'static>>,
    content_type: String,
    is_json: bool,
}

/// A template cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{wrong}; {right}")]
pub struct InvalidTemplate {
    /// The fault, in words that go behind the name of the key.
    pub wrong: String,
    /// Advice to the user.
    pub right: &'static str,
}

impl Template {
    /// Parses a template and renders it with a sample event of a torrent and one of a server.
    ///
    /// # Errors
    /// The template cannot be parsed or rendered, or its output is not JSON where `content_type` says so.
    pub fn parse(source: &str, content_type: &str) -> Result<Self, InvalidTemplate> {
        let refuse = |wrong: String, right| InvalidTemplate { wrong, right };
        if source.len() > SOURCE_BYTES_MAX {
            return Err(refuse(format!("has {} bytes", source.len()), "a template has at most 64 KiB"));
        }
        let is_plain = |byte: u8| byte.is_ascii_graphic() || byte == b' ';
        if !content_type.contains('/') || !content_type.bytes().all(is_plain) {
            return Err(refuse("goes with a content_type that is none".to_owned(), "write one as \"text/plain\""));
        }
        let kind = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        let is_json = kind == "application/json" || kind.ends_with("+json");
        let mut environment = Environment::new();
        environment.set_auto_escape_callback(move |_| if is_json { AutoEscape::Json } else { AutoEscape::None });
        // An event of a server has no torrent; `{{ torrent.name }}` is then empty, not an error.
        environment.set_undefined_behavior(UndefinedBehavior::Chainable);
        // A template that loops over a torrent's files must not hold up the sink for ever (I9).
        environment.set_fuel(Some(STEPS_MAX));
        environment.set_recursion_limit(DEPTH_MAX);
        environment.add_template_owned(NAME, source.to_owned()).map_err(|error| {
            refuse(format!("is not a valid template: {error:#}"), "correct it; docs/webhooks.md has examples")
        })?;
        let template = Self { environment: Arc::new(environment), content_type: content_type.to_owned(), is_json };
        // Tried at once, so that a mistake is an error of the config and not a dead letter for each event.
        for (what, sample) in samples() {
            template.render(&sample).map_err(|reason| {
                let wrong = format!("fails with an event of a {what}: {reason}");
                refuse(wrong, "in JSON write {{ value }} without quotes around it; see docs/webhooks.md")
            })?;
        }
        Ok(template)
    }

    /// Returns the media type of the bodies.
    pub fn content_type(&self) -> &str {
        &self.content_type
    }

    /// Renders a body.
    ///
    /// # Errors
    /// The rendering exceeds a limit, or its output is not JSON where it has to be; the text says which.
    pub fn render(&self, context: &Value) -> Result<Vec<u8>, String> {
        let template = self.environment.get_template(NAME).map_err(|error| format!("{error:#}"))?;
        let mut body = Bounded::default();
        let context = minijinja::Value::from(minijinja::value::Serde(context));
        if let Err(error) = template.render_captured_to(context, &mut body) {
            return Err(if body.is_full { "it makes more than 256 KiB".to_owned() } else { format!("{error:#}") });
        }
        // A receiver's answer to broken JSON would cost the event; the fault is the template's.
        if self.is_json {
            serde_json::from_slice::<serde::de::IgnoredAny>(&body.bytes)
                .map_err(|error| format!("its output is not valid JSON: {error}"))?;
        }
        Ok(body.bytes)
    }
}

#[derive(Default)]
struct Bounded {
    bytes: Vec<u8>,
    is_full: bool,
}

impl io::Write for Bounded {
    fn write(&mut self, more: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + more.len() > BODY_BYTES_MAX {
            // The error that comes back from minijinja is one of writing, so the reason is noted here.
            self.is_full = true;
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        self.bytes.extend_from_slice(more);
        Ok(more.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Returns sample contexts, with characters in names that templates often mishandle.
fn samples() -> [(&'static str, Value); 2] {
    let torrent = json!({
        "hash": "3f786850e387550fdab836ed7e6dc881de23001b", "name": "A \"name\" {{ with }} <odds> & \\ends", "server": "home",
        "active": true, "downloaded": 10, "uploaded": 5, "length": 10, "path": "/downloads/x", "progress": 100.0,
        "ratio": 0.5, "finished": true, "playing": true, "extra": {}, "status": "seeding", "error": false,
        "message": null, "stalled": false, "download_rate": 0, "upload_rate": 0, "left": 0, "eta": null, "peers": 0,
        "seeds": 0, "label": "linux", "directory": "/downloads", "private": false, "priority": 2,
        "tracker": "tracker.example.org", "added_at": "2026-01-01T00:00:00.000Z", "started_at": null,
        "finished_at": "2026-01-01T01:00:00.000Z", "size_files": 1,
    });
    let event = |entity: &str, event_type: &str| {
        json!({
            "schema": "dtorrent.event/1", "entity": entity, "event_type": event_type, "id": "home-00000000-000000000001",
            "seq": 1, "time": "2026-01-01T01:00:00.000Z", "server": "home", "cause": "observed", "command_id": null,
            "changes": {},
        })
    };
    let context = |event: Value| json!({"event": event, "torrent": event.get("torrent"), "title": "A title", "text": "a text", "level": "info"});
    let mut of_torrent = event("torrent", "finished");
    of_torrent["hash"] = torrent["hash"].clone();
    of_torrent["torrent"] = torrent;
    [("torrent", context(of_torrent)), ("server", context(event("server", "server_offline")))]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rendered(source: &str, content_type: &str) -> String {
        let template = Template::parse(source, content_type).unwrap();
        let [(_, context), _] = samples();
        String::from_utf8(template.render(&context).unwrap()).unwrap()
    }

    #[test]
    fn in_json_every_value_is_written_as_json() {
        let body = rendered(
            r#"{"n": {{ torrent.name }}, "r": {{ torrent.ratio }}, "m": {{ torrent.message }}, "x": {{ torrent.extra.none }}}"#,
            "application/json",
        );
        let body: Value = serde_json::from_str(&body).unwrap();
        assert_eq!(body, json!({"n": "A \"name\" {{ with }} <odds> & \\ends", "r": 0.5, "m": null, "x": null}));
    }

    #[test]
    fn other_media_types_are_not_encoded() {
        assert_eq!(
            rendered("{{ event.event_type|upper }}: {{ title }}", "text/plain; charset=utf-8"),
            "FINISHED: A title"
        );
        assert_eq!(rendered("{% if torrent %}{{ torrent.label }}{% else %}-{% endif %}", "text/plain"), "linux");
    }

    proptest! {
        /// Names come from anywhere: whatever they are, they stay in the places that the template has for them.
        #[test]
        fn no_text_breaks_out_of_its_place_in_json(name in "\\PC{0,40}|[\"\\\\{}%\u{0}-\u{1f}]{0,20}") {
            let source = r#"{"n": {{ torrent.name }}, "t": {{ title ~ "!" }}}"#;
            let template = Template::parse(source, "application/json").unwrap();
            let context = json!({"torrent": {"name": name}, "title": name});
            let body: Value = serde_json::from_slice(&template.render(&context).unwrap()).unwrap();
            prop_assert_eq!(body, json!({"n": name, "t": format!("{name}!")}));
        }

        #[test]
        fn no_source_makes_it_panic(source in "(\\{\\{|\\}\\}|\\{%|%\\}|[a-z ._|()\"'0-9~*]{0,12}){0,8}") {
            drop(Template::parse(&source, "text/plain"));
        }
    }

    #[test]
    fn a_template_that_cannot_work_is_refused_when_it_is_parsed() {
        for (source, content_type, expected) in [
            ("{{", "text/plain", "is not a valid template: syntax error"),
            ("{\"t\": \"{{ title }}\"}", "application/json", "its output is not valid JSON"),
            ("{{ title }} and more", "application/problem+json", "its output is not valid JSON"),
            ("{% include \"/etc/passwd\" %}", "text/plain", "unknown statement include"),
            (
                "{% for a in range(1000) %}{% for b in range(1000) %}{% endfor %}{% endfor %}",
                "text/plain",
                "fails with",
            ),
            (
                &format!("{{% for a in range(900) %}}{}{{% endfor %}}", "x".repeat(400)),
                "text/plain",
                "more than 256 KiB",
            ),
            ("{{ torrent.name|nothing }}", "text/plain", "nothing"),
            ("x", "text", "content_type"),
            ("x", "text/plain\r\nx: y", "content_type"),
            (&"x".repeat(SOURCE_BYTES_MAX + 1), "text/plain", "has 65537 bytes"),
        ] {
            let error = Template::parse(source, content_type).unwrap_err().to_string();
            assert!(error.contains(expected), "{source:.50}: {error}");
        }
    }
}
