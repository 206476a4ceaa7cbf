//! Custom values of a torrent, set as typed text and read back.
//!
//! The values of a magnet link have to survive its resolution, at which rTorrent loads the torrent again and repeats the
//! commands of the load; there they are part of code, see [`load_commands`].

use super::super::Access;
use super::super::calls::Call;
use super::super::probe::{Probe, XmlLibrary};
use super::Outcome;
use super::single::{CurrentTorrent, SingleAction};
use crate::model::CustomValues;
use crate::port::{Applied, ClientError};

impl SingleAction<'_> {
    /// Sets custom values of a torrent that is there.
    pub(super) async fn custom(&self, values: &CustomValues) -> Outcome {
        let CurrentTorrent { access, probe, .. } = self.read().await?;
        check_readable(values, &probe)?;
        let mut calls = self.set_custom(values);
        calls.push(self.call("d.save_full_session"));
        access.call_torrent(self.hash, &calls).await?;
        match self.other_custom(&access, values).await? {
            None => Ok(Applied::Seen),
            Some(key) => Err(not_stored(key)),
        }
    }

    /// Returns the calls that set custom values.
    pub(super) fn set_custom(&self, values: &CustomValues) -> Vec<Call> {
        values.iter().map(|(key, value)| self.call("d.custom.set").text(key).text(value)).collect()
    }

    /// Reads the custom values, and returns the key of the first that is another one.
    pub(super) async fn other_custom<'v>(
        &self,
        access: &Access<'_>,
        values: &'v CustomValues,
    ) -> Result<Option<&'v str>, ClientError> {
        if values.is_empty() {
            return Ok(None);
        }
        let reads: Vec<Call> = values.iter().map(|(key, _)| Call::column(self.hash, "d.custom", Some(key))).collect();
        let stored = access.call_torrent(self.hash, &reads).await?;
        let other = values.iter().zip(&stored).find(|((_, value), stored)| stored.str() != Some(value));
        Ok(other.map(|((key, _), _)| key))
    }
}

/// The error of a value that is another one after it was set.
pub(super) fn not_stored(key: &str) -> ClientError {
    ClientError::Fault { message: format!("the custom value `{key}` is another one after it was set") }
}

/// Checks that rTorrent can show the values, which is the only proof that it has them.
pub(super) fn check_readable(values: &CustomValues, probe: &Probe) -> Result<(), ClientError> {
    // xmlrpc-c answers with `?` or `%XX` for text beyond the basic multilingual plane, and for U+FFFE and U+FFFF.
    let is_shown = |value: &str| probe.xml_library == XmlLibrary::TinyXml2 || value.chars().all(|c| c < '\u{fffd}');
    match values.iter().find(|(_, value)| !is_shown(value)) {
        None => Ok(()),
        Some((key, _)) => {
            let what = format!("show the custom value `{key}`: this rTorrent mangles emoji and the like; encode it");
            Err(ClientError::Unsupported { what })
        }
    }
}

/// Returns the commands of a magnet link that set custom values, also when it is resolved.
///
/// Within double quotes only `"` ends the text, only `\` escapes, and only a `$` makes code of it. A value with one of
/// these is refused; tried with every other printable sign of ASCII on 0.9.8.
pub(super) fn load_commands(values: &CustomValues) -> Result<Vec<String>, ClientError> {
    let command = |(key, value): (&str, &str)| {
        if value.contains(['"', '\\', '$']) {
            let what = format!(
                "keep the custom value `{key}` of a magnet link, as it has a `\"`, `\\` or `$`; encode it, or add the \
                 .torrent file instead"
            );
            return Err(ClientError::Unsupported { what });
        }
        Ok(format!("d.custom.set=\"{key}\",\"{value}\""))
    };
    values.iter().map(command).collect()
}
