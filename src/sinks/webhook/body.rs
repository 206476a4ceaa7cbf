//! What is sent: an event in the shape that its receiver wants. Pure.
//!
//! The same event makes the same bytes, however often it is sent.

use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::template::Template;
use super::words::{Level, Told, Words};
use crate::model::Entity;

/// The shape of a body.
#[derive(Clone, Debug)]
pub enum Format {
    /// As Standard Webhooks has it, the event whole.
    Standard,
    /// As dTorrent for Node sent it.
    Dtorrent,
    Ntfy {
        topic: String,
    },
    Discord,
    Slack,
    Apprise,
    Own(Template),
}

/// A body and what it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Body {
    pub content_type: String,
    pub bytes: Vec<u8>,
}

impl Body {
    fn json(value: &Value) -> Self {
        Self { content_type: "application/json".to_owned(), bytes: value.to_string().into_bytes() }
    }
}

impl Format {
    pub fn name(&self) -> &'static str {
        match self {
            Self::Standard => "standard",
            Self::Dtorrent => "dtorrent",
            Self::Ntfy { .. } => "ntfy",
            Self::Discord => "discord",
            Self::Slack => "slack",
            Self::Apprise => "apprise",
            Self::Own(_) => "a template of your own",
        }
    }

    /// Makes the body for an event, given as its JSON.
    ///
    /// # Errors
    /// The template of the user's fails on it; in words.
    pub fn render(&self, event: &[u8]) -> Result<Body, String> {
        let unreadable = |error: serde_json::Error| format!("the event cannot be read back: {error}");
        let told: Told = serde_json::from_slice(event).map_err(unreadable)?;
        Ok(match self {
            Self::Standard => standard(&told, event).map_err(unreadable)?,
            Self::Dtorrent => dtorrent(&told, event).map_err(unreadable)?,
            Self::Ntfy { topic } => Body::json(&ntfy(topic, &Words::of(&told))),
            Self::Discord => Body::json(&discord(&told, &Words::of(&told))),
            Self::Slack => Body::json(&slack(&Words::of(&told))),
            Self::Apprise => Body::json(&apprise(&Words::of(&told))),
            Self::Own(template) => {
                let event: Value = serde_json::from_slice(event).map_err(unreadable)?;
                let Words { title, text, level } = Words::of(&told);
                let torrent = event.get("torrent").cloned();
                let context =
                    json!({"event": event, "torrent": torrent, "title": title, "text": text, "level": level.as_str()});
                let bytes = template.render(&context).map_err(|reason| format!("the template fails: {reason}"))?;
                Body { content_type: template.content_type().to_owned(), bytes }
            }
        })
    }
}

fn entity(told: &Told) -> &'static str {
    match told.event_type.entity() {
        Entity::Torrent => "torrent",
        Entity::Server => "server",
    }
}

fn standard(told: &Told, event: &[u8]) -> Result<Body, serde_json::Error> {
    #[derive(serde::Serialize)]
    struct Standard<'a> {
        r#type: String,
        timestamp: String,
        data: &'a RawValue,
    }
    let body = Standard {
        r#type: format!("{}.{}", entity(told), told.event_type.as_str()),
        timestamp: told.time.to_string(),
        data: serde_json::from_slice(event)?,
    };
    Ok(Body { content_type: "application/json".to_owned(), bytes: serde_json::to_vec(&body)? })
}

/// A server had no events there; it is told by its name.
fn dtorrent(told: &Told, event: &[u8]) -> Result<Body, serde_json::Error> {
    #[derive(serde::Deserialize)]
    struct Event<'a> {
        #[serde(borrow, default)]
        torrent: Option<&'a RawValue>,
    }
    #[derive(serde::Serialize)]
    struct Old<'a> {
        entity: &'a str,
        event: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        torrent: Option<&'a RawValue>,
        #[serde(skip_serializing_if = "Option::is_none")]
        server: Option<&'a str>,
    }
    let Event { torrent } = serde_json::from_slice(event)?;
    let server = torrent.is_none().then(|| told.server.as_str());
    let body = Old { entity: entity(told), event: told.event_type.as_str(), torrent, server };
    Ok(Body { content_type: "application/json".to_owned(), bytes: serde_json::to_vec(&body)? })
}

fn ntfy(topic: &str, words: &Words) -> Value {
    let Words { title, text, level } = words;
    let (tag, priority) = match level {
        Level::Info => ("information_source", 3),
        Level::Success => ("white_check_mark", 3),
        Level::Warning => ("warning", 3),
        Level::Error => ("rotating_light", 4),
    };
    json!({"topic": topic, "title": title, "message": text, "tags": [tag], "priority": priority})
}

fn discord(told: &Told, words: &Words) -> Value {
    let Words { title, text, level } = words;
    let color = match level {
        Level::Info => 0x34_98_db,
        Level::Success => 0x2e_cc_71,
        Level::Warning => 0xf1_c4_0f,
        Level::Error => 0xe7_4c_3c,
    };
    let embed = json!({
        "title": without_marks(title, 256), "description": without_marks(text, 4096), "color": color,
        "timestamp": told.time,
    });
    // No name of a torrent calls anybody.
    json!({"embeds": [embed], "allowed_mentions": {"parse": []}})
}

/// What Discord would take for emphasis, a link or a mention is shown as it is; no longer than it takes.
fn without_marks(text: &str, chars_max: usize) -> String {
    let (mut shown, mut count) = (String::new(), 0);
    for c in text.chars() {
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

fn slack(words: &Words) -> Value {
    let Words { title, text, level } = words;
    let sign = match level {
        Level::Info => ":information_source:",
        Level::Success => ":white_check_mark:",
        Level::Warning => ":warning:",
        Level::Error => ":rotating_light:",
    };
    // What has a meaning for Slack is written as it asks for; the rest is no markup inside a plain text.
    let escaped = |text: &str| text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    let section =
        |text: String| json!({"type": "section", "text": {"type": "plain_text", "text": text, "emoji": true}});
    json!({
        "text": escaped(&format!("{title}\n{text}")),
        "blocks": [section(format!("{sign} {title}\n{text}"))],
    })
}

fn apprise(words: &Words) -> Value {
    let Words { title, text, level } = words;
    let kind = match level {
        Level::Info => "info",
        Level::Success => "success",
        Level::Warning => "warning",
        Level::Error => "failure",
    };
    json!({"title": title, "body": text, "type": kind, "format": "text"})
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVENT: &str = include_str!("../../../tests/golden/event-finished.json");
    const OF_SERVER: &str = include_str!("../../../tests/golden/event-server-online.json");

    fn made(format: &Format, event: &str) -> Value {
        let body = format.render(event.as_bytes()).unwrap();
        assert_eq!(body, format.render(event.as_bytes()).unwrap(), "the same event, the same bytes");
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
            let body = made(&Format::Standard, event);
            let event: Value = serde_json::from_str(event).unwrap();
            assert_eq!(body, json!({"type": kind, "timestamp": event["time"], "data": event}));
        }
    }

    #[test]
    fn the_old_body_is_entity_event_and_torrent() {
        let event: Value = serde_json::from_str(EVENT).unwrap();
        let expected = json!({"entity": "torrent", "event": "finished", "torrent": event["torrent"]});
        assert_eq!(made(&Format::Dtorrent, EVENT), expected);
        let expected = json!({"entity": "server", "event": "server_online", "server": "home"});
        assert_eq!(made(&Format::Dtorrent, OF_SERVER), expected);
    }

    #[test]
    fn each_service_gets_title_text_and_how_much_it_matters() {
        let ntfy = made(&Format::Ntfy { topic: "t".to_owned() }, &named("a"));
        assert_eq!(
            (&ntfy["topic"], &ntfy["title"], &ntfy["priority"]),
            (&json!("t"), &json!("Finished: a"), &json!(3))
        );
        let discord = made(&Format::Discord, &named("@everyone *a*"));
        assert_eq!(discord["embeds"][0]["title"], "Finished: \\@everyone \\*a\\*");
        assert_eq!(discord["allowed_mentions"], json!({"parse": []}));
        let slack = made(&Format::Slack, &named("<!channel> & co"));
        assert!(slack["text"].as_str().unwrap().starts_with("Finished: &lt;!channel&gt; &amp; co\n"), "{slack}");
        assert_eq!(slack["blocks"][0]["text"]["type"], "plain_text");
        let apprise = made(&Format::Apprise, OF_SERVER);
        assert_eq!((&apprise["title"], &apprise["type"]), (&json!("home is online"), &json!("success")));
    }

    #[test]
    fn a_template_gets_the_event_and_the_words_for_it() {
        let source = r#"{"k": {{ event.event_type }}, "n": {{ torrent.name }}, "t": {{ title }}, "l": {{ level }}}"#;
        let own = Format::Own(Template::parse(source, "application/json").unwrap());
        let expected = json!({"k": "finished", "n": "\"}, {", "t": "Finished: \"}, {", "l": "success"});
        assert_eq!(made(&own, &named("\"}, {")), expected);
        let expected = json!({"k": "server_online", "n": null, "t": "home is online", "l": "success"});
        assert_eq!(made(&own, OF_SERVER), expected);
    }

    #[test]
    fn no_name_makes_a_body_that_a_service_refuses_for_its_length() {
        let event = named(&"@".repeat(5000));
        let discord = made(&Format::Discord, &event);
        assert!(discord["embeds"][0]["title"].as_str().unwrap().chars().count() <= 256);
        let slack = made(&Format::Slack, &event);
        assert!(slack["blocks"][0]["text"]["text"].as_str().unwrap().chars().count() <= 3000);
    }
}
