//! Hooks: rTorrent itself rings when something happens to a torrent.
//!
//! Each of [`EVENTS`] gets one command under our key, which has rTorrent ask for an address of ours as if
//! a torrent were there (see [`super::calls::ring_command`]). It is not kept over a restart of rTorrent.
//!
//! Versions before 0.15.4 can crash when the hooks of an event are changed while one of them runs a
//! program: they let go of their lock in the middle of going through them. (Seen on 0.9.8, twice in a
//! few minutes of changes; those of *other* events were changed more than 100,000 times meanwhile, and nothing came of it.) What somebody's hook runs cannot be known from its text, so
//! on those versions an event that has hooks besides rTorrent's own and a bridge's is left alone, both
//! when hooks are set and when they are taken away. What is left behind then rings where nobody listens.

use super::Turn;
use super::calls::{Call, Fault, Value, ring_command};
use crate::model::HookKey;
use crate::port::{ClientError, HookRequest, Hooks};

/// The events of downloads after which a look is worth while. What has no event (a label, say) is found
/// by the next look anyway.
const EVENTS: [&str; 7] = ["inserted_new", "erased", "finished", "paused", "resumed", "hash_done", "closed"];

pub(super) async fn hooks(turn: &Turn<'_>, request: HookRequest<'_>) -> Result<Hooks, ClientError> {
    let probe = turn.probe().await?;
    let key = match request {
        HookRequest::Inspect(key) | HookRequest::Remove(key) => key,
        HookRequest::Install(hook) => &hook.key,
    };
    let mut hooks = Hooks::default();
    let mut calls = Vec::new();
    let answers = turn.ask(&EVENTS.map(Call::hooks_of)).await?;
    for (event, answer) in EVENTS.into_iter().zip(answers) {
        let hanging = Hanging::read(answer.map_err(|fault| refused(turn, &fault))?);
        if probe.is_legacy && hanging.may_run_programs() {
            hooks.skipped.push(event);
            continue;
        }
        let ours = hanging.command(key);
        let call = match request {
            HookRequest::Inspect(_) => None,
            HookRequest::Install(hook) if ours == Some(&ring_command(event, hook)) => None,
            HookRequest::Install(hook) => Some(Call::set_hook(event, key, Some(hook))),
            HookRequest::Remove(_) => ours.map(|_| Call::set_hook(event, key, None)),
        };
        calls.extend(call);
        let is_ringing = match request {
            HookRequest::Inspect(_) => ours.is_some(),
            HookRequest::Install(_) => true,
            HookRequest::Remove(_) => false,
        };
        hooks.installed.extend(is_ringing.then_some(event));
    }
    hooks.changed = calls.len();
    if !calls.is_empty() {
        let answers = turn.ask(&calls).await?;
        answers.into_iter().collect::<Result<Vec<_>, _>>().map_err(|fault| refused(turn, &fault))?;
    }
    Ok(hooks)
}

fn refused(turn: &Turn<'_>, fault: &Fault) -> ClientError {
    match turn.client.fault(fault) {
        ClientError::Fault { message } => ClientError::Fault { message: format!("hooks: {message}") },
        other => other,
    }
}

/// What hangs at one event, by key.
struct Hanging(Vec<(String, Value)>);

impl Hanging {
    fn read(answer: Value) -> Self {
        match answer {
            Value::Struct(members) => Self(members),
            _ => Self(Vec::new()),
        }
    }

    fn command(&self, key: &HookKey) -> Option<&String> {
        let (_, command) = self.0.iter().find(|(name, _)| name == key.as_str())?;
        match command {
            Value::Text(command) => Some(command),
            _ => None,
        }
    }

    /// Whether somebody else's hook is there, or one of rTorrent's own was made to run something.
    fn may_run_programs(&self) -> bool {
        self.0.iter().any(|(key, command)| {
            let is_known = key.starts_with(HookKey::PREFIX) || is_rtorrents_own(key);
            !is_known || has_word(command, "execute")
        })
    }
}

/// Keys under which rTorrent hangs hooks of its own, before and after all others.
fn is_rtorrents_own(key: &str) -> bool {
    ["!", "~_", "1_"].iter().any(|prefix| key.starts_with(prefix))
}

fn has_word(command: &Value, word: &str) -> bool {
    match command {
        Value::Text(text) => text.contains(word),
        Value::Array(values) => values.iter().any(|value| has_word(value, word)),
        Value::Struct(members) => members.iter().any(|(_, value)| has_word(value, word)),
        Value::Int(_) | Value::Null => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hanging(key: &str, command: Value) -> Hanging {
        Hanging(vec![(key.to_owned(), command)])
    }

    #[test]
    fn rule_8_whatever_may_run_a_program_is_left_alone() {
        let text = |text: &str| Value::Text(text.to_owned());
        let list = |texts: &[&str]| Value::Array(vec![Value::Array(texts.iter().map(|t| text(t)).collect())]);
        for (key, command, expected) in [
            ("!_timestamp", list(&["d.timestamp.started.set_if_z", "system.time"]), false),
            ("!view.seeding", text("view.filter_download=seeding"), false),
            ("1_prepare", list(&["d.save_full_session"]), false),
            ("~_delete_tied", text("d.delete_tied="), false),
            ("zz_dtorrent.main.home", text("load.normal=\"$cat=http://127.0.0.1:1/x/home/paused/,$d.hash=\""), false),
            ("1_prepare", list(&["execute.nothrow", "sh"]), true),
            ("notify", text("execute={notify-send,$d.name=}"), true),
            ("notify", text("my_own_command="), true),
        ] {
            assert_eq!(hanging(key, command.clone()).may_run_programs(), expected, "{key} {command:?}");
        }
        assert!(!Hanging::read(Value::Struct(Vec::new())).may_run_programs());
    }
}
