//! Webhook bodies: an event in the shape that its receiver expects. Pure.
//!
//! The same event makes the same bytes, however often it is sent (I6).

use std::mem::discriminant;

use serde_json::{Value, json};

use super::chat_message::{ChatMessage, Level};
use super::template::Template;
use crate::model::{Event, Torrent};

/// The shape of a body.
#[derive(Clone, Debug)]
pub enum Format {
    /// Standard Webhooks: type, timestamp and the whole event.
    Standard,
    /// The shape of dTorrent for Node.
    Dtorrent,
    /// ntfy's JSON publishing, which names the topic in the body.
    Ntfy {
        /// The topic, which the user wrote at the end of the URL.
        topic: String,
    },
    /// A Discord webhook: one embed.
    Discord,
    /// A Slack incoming webhook: one block.
    Slack,
    /// The API of Apprise.
    Apprise,
    /// A template of the user's.
    Own(Template),
}

/// Formats by their names in a config. The topic of ntfy is part of the URL.
pub static FORMATS: [(&str, Format); 6] = [
    ("standard", Format::Standard),
    ("dtorrent", Format::Dtorrent),
    ("ntfy", Format::Ntfy { topic: String::new() }),
    ("discord", Format::Discord),
    ("slack", Format::Slack),
    ("apprise", Format::Apprise),
];

/// A request body with its media type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Body {
    /// The value of the `Content-Type` header.
    pub content_type: String,
    /// The bytes that are signed and sent.
    pub bytes: Vec<u8>,
}

impl Body {
    fn json(bytes: Vec<u8>) -> Self {
        Self { content_type: "application/json".to_owned(), bytes }
    }
}

impl Format {
    /// Returns the name of the format, for people.
    pub fn name(&self) -> &'static str {
        let named = FORMATS.iter().find(|(_, format)| discriminant(format) == discriminant(self));
        named.map_or("a template of your own", |(name, _)| name)
    }

    /// Returns whether people read it. Events of the initial snapshot are excluded from such a format by default.
    pub fn is_chat(&self) -> bool {
        matches!(self, Self::Ntfy { .. } | Self::Discord | Self::Slack | Self::Apprise)
    }

    /// Renders the body for an event; `event_json`: the event as every sink gets it.
    ///
    /// # Errors
    /// The user's template fails on this event; the text says how.
    pub fn render(&self, event: &Event, event_json: &[u8]) -> Result<Body, String> {
        let value = match self {
            Self::Standard => return Ok(standard(event, event_json)),
            Self::Dtorrent => return Ok(dtorrent(event)),
            Self::Own(template) => return from_template(template, event),
            Self::Ntfy { topic } => ntfy(topic, &ChatMessage::new(event)),
            Self::Discord => discord(event, &ChatMessage::new(event)),
            Self::Slack => slack(&ChatMessage::new(event)),
            Self::Apprise => apprise(&ChatMessage::new(event)),
        };
        Ok(Body::json(value.to_string().into_bytes()))
    }
}

fn standard(event: &Event, event_json: &[u8]) -> Body {
    // The event's bytes are copied, not rendered again: an event of an earlier version is sent as it was stored (I6).
    let (entity, kind, time) = (event.entity.as_str(), event.event_type.as_str(), event.time);
    // Neither names nor times have a character that JSON would escape.
    let head = format!(r#"{{"type":"{entity}.{kind}","timestamp":"{time}","data":"#);
    Body::json([head.as_bytes(), event_json, b"}"].concat())
}

/// Events of a server, which dTorrent for Node did not have, carry the server's name instead of a torrent.
fn dtorrent(event: &Event) -> Body {
    #[derive(serde::Serialize)]
    struct NodeEvent<'a> {
        entity: &'a str,
        event: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        torrent: Option<&'a Torrent>,
        #[serde(skip_serializing_if = "Option::is_none")]
        server: Option<&'a str>,
    }
    let torrent = event.torrent.as_deref();
    let server = torrent.is_none().then(|| event.server.as_str());
    let body = NodeEvent { entity: event.entity.as_str(), event: event.event_type.as_str(), torrent, server };
    Body::json(serde_json::to_vec(&body).expect("an event is plain JSON"))
}

fn from_template(template: &Template, event: &Event) -> Result<Body, String> {
    let ChatMessage { title, text, level } = ChatMessage::new(event);
    let context =
        json!({"event": event, "torrent": event.torrent, "title": title, "text": text, "level": level.as_str()});
    let bytes = template.render(&context).map_err(|reason| format!("the template fails: {reason}"))?;
    Ok(Body { content_type: template.content_type().to_owned(), bytes })
}

fn ntfy(topic: &str, message: &ChatMessage) -> Value {
    let ChatMessage { title, text, level } = message;
    let priority = if *level == Level::Error { 4 } else { 3 };
    json!({"topic": topic, "title": title, "message": text, "tags": [emoji(*level)], "priority": priority})
}

/// Returns the short name of an emoji, which ntfy and Slack have in common.
fn emoji(level: Level) -> &'static str {
    match level {
        Level::Info => "information_source",
        Level::Success => "white_check_mark",
        Level::Warning => "warning",
        Level::Error => "rotating_light",
    }
}

fn discord(event: &Event, message: &ChatMessage) -> Value {
    let ChatMessage { title, text, level } = message;
    let color = match level {
        Level::Info => 0x34_98_db,
        Level::Success => 0x2e_cc_71,
        Level::Warning => 0xf1_c4_0f,
        Level::Error => 0xe7_4c_3c,
    };
    let embed = json!({
        "title": without_markup(title, 256), "description": without_markup(text, 4096), "color": color,
        "timestamp": event.time,
    });
    // A torrent called `@everyone` must not notify anybody.
    json!({"embeds": [embed], "allowed_mentions": {"parse": []}})
}

/// Returns the text with everything escaped that Discord would take for emphasis, a link or a mention, cut to the
/// length that it accepts.
fn without_markup(text: &str, chars_max: usize) -> String {
    let (mut shown, mut count) = (String::new(), 0);
    for c in text.chars() {
        // The limit counts the escapes too, so a name full of marks is cut earlier.
        let is_mark = "\\*_~`|>[]()#<@".contains(c);
        count += 1 + usize::from(is_mark);
        if count > chars_max {
            break;
        }
        shown.extend(is_mark.then_some('\\'));
        shown.push(c);
    }
    shown
}

fn slack(message: &ChatMessage) -> Value {
    let ChatMessage { title, text, level } = message;
    // Slack asks for exactly these three to be escaped; other markup means nothing in `plain_text`.
    let escaped = |text: &str| text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    let section =
        |text: String| json!({"type": "section", "text": {"type": "plain_text", "text": text, "emoji": true}});
    json!({
        "text": escaped(&format!("{title}\n{text}")),
        "blocks": [section(format!(":{}: {title}\n{text}", emoji(*level)))],
    })
}

fn apprise(message: &ChatMessage) -> Value {
    let ChatMessage { title, text, level } = message;
    // Apprise's own word for it; the other three are the same.
    let kind = if *level == Level::Error { "failure" } else { level.as_str() };
    json!({"title": title, "body": text, "type": kind, "format": "text"})
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVENT: &str = include_str!("../../../tests/golden/event-finished.json");
    const OF_SERVER: &str = include_str!("../../../tests/golden/event-server-online.json");

    fn rendered(format: &Format, json: &str) -> Value {
        let event: Event = serde_json::from_str(json).unwrap();
        let body = format.render(&event, json.as_bytes()).unwrap();
        assert_eq!(body, format.render(&event, json.as_bytes()).unwrap(), "the same event, the same bytes");
        serde_json::from_slice(&body.bytes).unwrap()
    }

    fn named(name: &str) -> String {
        let mut event: Value = serde_json::from_str(EVENT).unwrap();
        event["torrent"]["name"] = json!(name);
        event.to_string()
    }

    #[test]
    fn the_standard_body_holds_the_event_whole() {
        for (event, kind) in [(EVENT, "torrent.finished"), (OF_SERVER, "server.server_online")] {
            let body = rendered(&Format::Standard, event);
            let event: Value = serde_json::from_str(event).unwrap();
            assert_eq!(body, json!({"type": kind, "timestamp": event["time"], "data": event}));
        }
    }

    #[test]
    fn the_old_body_is_entity_event_and_torrent() {
        let event: Value = serde_json::from_str(EVENT).unwrap();
        let expected = json!({"entity": "torrent", "event": "finished", "torrent": event["torrent"]});
        assert_eq!(rendered(&Format::Dtorrent, EVENT), expected);
        let expected = json!({"entity": "server", "event": "server_online", "server": "home"});
        assert_eq!(rendered(&Format::Dtorrent, OF_SERVER), expected);
    }

    #[test]
    fn each_service_gets_title_text_and_level() {
        let ntfy = rendered(&Format::Ntfy { topic: "t".to_owned() }, &named("a"));
        assert_eq!(
            (&ntfy["topic"], &ntfy["title"], &ntfy["priority"]),
            (&json!("t"), &json!("Finished: a"), &json!(3))
        );
        let discord = rendered(&Format::Discord, &named("@everyone *a*"));
        assert_eq!(discord["embeds"][0]["title"], "Finished: \\@everyone \\*a\\*");
        assert_eq!(discord["allowed_mentions"], json!({"parse": []}));
        let slack = rendered(&Format::Slack, &named("<!channel> & co"));
        assert!(slack["text"].as_str().unwrap().starts_with("Finished: &lt;!channel&gt; &amp; co\n"), "{slack}");
        assert_eq!(slack["blocks"][0]["text"]["type"], "plain_text");
        let apprise = rendered(&Format::Apprise, OF_SERVER);
        assert_eq!((&apprise["title"], &apprise["type"]), (&json!("home is online"), &json!("success")));
    }

    #[test]
    fn a_template_gets_the_event_and_its_chat_message() {
        let source = r#"{"k": {{ event.event_type }}, "n": {{ torrent.name }}, "t": {{ title }}, "l": {{ level }}}"#;
        let own = Format::Own(Template::parse(source, "application/json").unwrap());
        let expected = json!({"k": "finished", "n": "\"}, {", "t": "Finished: \"}, {", "l": "success"});
        assert_eq!(rendered(&own, &named("\"}, {")), expected);
        let expected = json!({"k": "server_online", "n": null, "t": "home is online", "l": "success"});
        assert_eq!(rendered(&own, OF_SERVER), expected);
    }

    #[test]
    fn no_name_makes_a_body_that_a_service_refuses_for_its_length() {
        let event = named(&"@".repeat(5000));
        let discord = rendered(&Format::Discord, &event);
        assert!(discord["embeds"][0]["title"].as_str().unwrap().chars().count() <= 256);
        let slack = rendered(&Format::Slack, &event);
        assert!(slack["blocks"][0]["text"]["text"].as_str().unwrap().chars().count() <= 3000);
    }
}
