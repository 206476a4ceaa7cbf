//! The client ids of a bridge: one for each connection that it has at a time.

use crate::model::SinkName;
use crate::sinks::invalid::{InvalidText, invalid};

/// Most bytes of a template. Brokers take some hundred, and MQTT 3.1.1 promises 23 only.
const BYTES_MAX: usize = 200;

/// Purpose of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Delivers events and states.
    Events,
    /// Receives commands.
    Commands,
    /// Asks a question, for example what is retained.
    Probe,
}

impl Role {
    fn as_str(self) -> &'static str {
        match self {
            Self::Events => "events",
            Self::Commands => "commands",
            Self::Probe => "probe",
        }
    }
}

/// The client ids of a config, for brokers that restrict them: a text in which `{instance}`, `{name}` and `{role}` stand for
/// the instance, the broker's name in the config, and `events`, `commands` or `probe`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientIdTemplate(String);

impl ClientIdTemplate {
    /// Reads a template.
    ///
    /// # Errors
    /// The text is empty, too long, or has another placeholder or a control character.
    pub fn parse(text: &str) -> Result<Self, InvalidText> {
        let rest =
            ["{instance}", "{name}", "{role}"].iter().fold(text.to_owned(), |rest, place| rest.replace(place, ""));
        if text.is_empty() || text.len() > BYTES_MAX {
            return Err(invalid(format!("a client id has 1 to {BYTES_MAX} bytes")));
        }
        if rest.contains(['{', '}']) || rest.chars().any(char::is_control) {
            return Err(invalid(
                "in a client id only {instance}, {name} and {role} are replaced, and control characters do not belong there",
            ));
        }
        Ok(Self(text.to_owned()))
    }

    fn client_id(&self, instance: &str, sink: &SinkName, role: Role) -> String {
        let has_role = self.0.contains("{role}");
        let text =
            self.0.replace("{instance}", instance).replace("{name}", sink.as_str()).replace("{role}", role.as_str());
        match role {
            Role::Events => text,
            _ if has_role => text,
            // Without a place for the role the connections would disconnect each other.
            Role::Commands | Role::Probe => format!("{text}-{}", role.as_str()),
        }
    }
}

/// Returns the client id of a connection.
pub(super) fn client_id(template: Option<&ClientIdTemplate>, instance: &str, sink: &SinkName, role: Role) -> String {
    match (template, role) {
        (Some(template), _) => template.client_id(instance, sink, role),
        (None, Role::Events) => format!("dtorrent-{instance}-{sink}"),
        (None, Role::Commands) => format!("dtorrent-{instance}-{sink}-commands"),
        // Random, because `check` may ask while a bridge that runs does.
        (None, Role::Probe) => format!("dtorrent-{instance}-probe-{:08x}", rand::random::<u32>()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_connection_has_a_client_id_of_its_own() {
        let sink = SinkName::parse("b").unwrap();
        let ids = |template: &str| {
            let template = ClientIdTemplate::parse(template).unwrap();
            [Role::Events, Role::Commands, Role::Probe].map(|role| client_id(Some(&template), "main", &sink, role))
        };
        assert_eq!(ids("me"), ["me", "me-commands", "me-probe"]);
        assert_eq!(ids("{role}:{instance}.{name}"), ["events:main.b", "commands:main.b", "probe:main.b"]);
        assert_eq!(client_id(None, "main", &sink, Role::Events), "dtorrent-main-b");
        let probe = || client_id(None, "main", &sink, Role::Probe);
        assert_ne!(probe(), probe());
    }

    #[test]
    fn a_template_with_another_placeholder_is_refused() {
        for wrong in ["", "{server}", "a{", "}", "a\nb", &"x".repeat(201)] {
            assert!(ClientIdTemplate::parse(wrong).is_err(), "{wrong}");
        }
    }
}
