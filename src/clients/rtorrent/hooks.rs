//! Hooks: rTorrent itself notifies the bridge when something happens to a torrent.
//!
//! Each of [`EVENTS`] gets one command under the key of this bridge, which has rTorrent append a line to a file of the
//! bridge (see [`super::calls::hook_command`]). rTorrent forgets it when it restarts.
//!
//! Versions before 0.15.4 can crash when the hooks of an event are changed while one of them runs a program:
//! they release their lock while they go through them. This was seen on 0.9.8, twice in a few minutes of
//! changes; changes to *other* events did no harm in more than 100,000 attempts. The text of a hook does not
//! show what it runs, so on those versions an event that has hooks besides those of rTorrent and of a bridge
//! is not touched, neither to install a hook nor to remove one. A hook that stays behind has no effect.

use super::Access;
use super::calls::{APPEND, Call, Fault, Value, hook_command};
use crate::model::HookKey;
use crate::port::{ClientError, HookRequest, Hooks};

/// The events of downloads after which a poll is worth while. A change without an event, of a label for
/// example, is found by the next poll anyway.
const EVENTS: [&str; 7] = ["inserted_new", "erased", "finished", "paused", "resumed", "hash_done", "closed"];

/// Installs, removes or inspects the hooks of this bridge.
pub(super) async fn hooks(access: &Access<'_>, request: HookRequest<'_>) -> Result<Hooks, ClientError> {
    let probe = access.probe().await?;
    let key = match request {
        HookRequest::Inspect(key) | HookRequest::Remove(key) => key,
        HookRequest::Install(hook) => &hook.key,
    };
    if let HookRequest::Install(hook) = request {
        let written = access.call(&[Call::prove_hook(hook)]).await?;
        written.into_iter().collect::<Result<Vec<_>, _>>().map_err(|fault| cannot_write(access, &fault))?;
    }
    let former_key = key.former();
    let mut hooks = Hooks::default();
    let mut calls = Vec::new();
    let answers = access.call(&EVENTS.map(Call::read_hooks)).await?;
    for (event, answer) in EVENTS.into_iter().zip(answers) {
        let commands = EventCommands::read(answer.map_err(|fault| refused(access, &fault))?);
        // For a removal, too: taking a key out is a change like any other.
        if probe.is_legacy && commands.may_run_programs() {
            hooks.skipped.push(event);
            continue;
        }
        let ours = commands.command(key);
        let call = match request {
            HookRequest::Inspect(_) => None,
            // Each change is a moment in which an old version can crash, so none is made without need.
            HookRequest::Install(hook) if ours == Some(&hook_command(hook)) => None,
            HookRequest::Install(hook) => Some(Call::set_hook(event, key, Some(hook))),
            HookRequest::Remove(_) => ours.map(|_| Call::set_hook(event, key, None)),
        };
        calls.extend(call);
        if !matches!(request, HookRequest::Inspect(_)) && commands.command(&former_key).is_some() {
            calls.push(Call::set_hook(event, &former_key, None));
        }
        let is_installed = match request {
            HookRequest::Inspect(_) => ours.is_some(),
            HookRequest::Install(_) => true,
            HookRequest::Remove(_) => false,
        };
        hooks.installed.extend(is_installed.then_some(event));
    }
    hooks.changed = calls.len();
    if !calls.is_empty() {
        let answers = access.call(&calls).await?;
        answers.into_iter().collect::<Result<Vec<_>, _>>().map_err(|fault| refused(access, &fault))?;
    }
    Ok(hooks)
}

fn cannot_write(access: &Access<'_>, fault: &Fault) -> ClientError {
    let message = match access.client.fault(fault) {
        ClientError::Fault { message } => message,
        other => return other,
    };
    // `Method 'file.append' not defined`, and in other words with other libraries.
    if message.contains(APPEND) && !message.contains("untrusted") {
        let what = format!("notify by hooks, because this rTorrent has no `{APPEND}` (0.9.8 to 0.16.17 have it)");
        return ClientError::Unsupported { what };
    }
    ClientError::Precondition { reason: format!("rTorrent cannot write to the file of its hooks: {message}") }
}

fn refused(access: &Access<'_>, fault: &Fault) -> ClientError {
    match access.client.fault(fault) {
        ClientError::Fault { message } => ClientError::Fault { message: format!("hooks: {message}") },
        other => other,
    }
}

/// The commands of one event, by key.
struct EventCommands(Vec<(String, Value)>);

impl EventCommands {
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

    /// Returns whether a hook of somebody else is there, or one of rTorrent's own was changed to run a program.
    fn may_run_programs(&self) -> bool {
        self.0.iter().any(|(key, command)| {
            // The hooks of bridges write a line, and those of earlier versions request an address.
            let is_of_bridge = [HookKey::PREFIX, HookKey::FORMER_PREFIX].iter().any(|prefix| key.starts_with(prefix));
            !is_of_bridge && (!is_rtorrents_own(key) || contains_command(command, "execute"))
        })
    }
}

/// Returns whether rTorrent itself uses the key, for hooks that run before and after all others.
fn is_rtorrents_own(key: &str) -> bool {
    ["!", "~_", "1_"].iter().any(|prefix| key.starts_with(prefix))
}

fn contains_command(command: &Value, name: &str) -> bool {
    match command {
        Value::Text(text) => text.contains(name),
        Value::Array(values) => values.iter().any(|value| contains_command(value, name)),
        Value::Struct(members) => members.iter().any(|(_, value)| contains_command(value, name)),
        Value::Int(_) | Value::Null => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn commands(key: &str, command: Value) -> EventCommands {
        EventCommands(vec![(key.to_owned(), command)])
    }

    #[test]
    fn rule_8_an_event_whose_hooks_may_run_a_program_is_not_touched() {
        let text = |text: &str| Value::Text(text.to_owned());
        let list = |texts: &[&str]| Value::Array(vec![Value::Array(texts.iter().map(|t| text(t)).collect())]);
        for (key, command, expected) in [
            ("!_timestamp", list(&["d.timestamp.started.set_if_z", "system.time"]), false),
            ("!view.seeding", text("view.filter_download=seeding"), false),
            ("1_prepare", list(&["d.save_full_session"]), false),
            ("~_delete_tied", text("d.delete_tied="), false),
            ("!!dtorrent.main.home", text("catch=\"file.append=/execute/hooks/main.home,$d.hash=\""), false),
            ("!!dtorrent.main.home", text("load.normal=\"$cat=http://127.0.0.1:1/x/home/paused/,$d.hash=\""), false),
            ("zz_dtorrent.main.home", text("load.normal=\"$cat=http://127.0.0.1:1/x/home/paused/,$d.hash=\""), false),
            ("1_prepare", list(&["execute.nothrow", "sh"]), true),
            ("notify", text("execute={notify-send,$d.name=}"), true),
            ("notify", text("my_own_command="), true),
        ] {
            assert_eq!(commands(key, command.clone()).may_run_programs(), expected, "{key} {command:?}");
        }
        assert!(!EventCommands::read(Value::Struct(Vec::new())).may_run_programs());
    }
}
