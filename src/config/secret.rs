//! Secrets: given in place or as the name of a file, and never shown.

use std::path::Path;

use secrecy::SecretString;

use super::read::{Fault, Table};

/// Reads `key`, or the content of the file that `file_key` names, without the line break at its end.
///
/// Both at once are a fault, unless one comes from a higher layer: that one wins.
pub fn secret(table: &Table<'_>, key: &'static str, file_key: &'static str) -> Option<SecretString> {
    let (in_place, in_file) = (table.rank(key), table.rank(file_key));
    if in_place.is_some() && in_place == in_file {
        table.fault(file_key, Fault::new(format!("and `{key}` are both given"), "keep one of them"));
        return None;
    }
    if in_file > in_place {
        let path = table.text(file_key)?;
        return match read_secret(Path::new(&path)) {
            Ok(text) => Some(SecretString::from(text)),
            Err(fault) => {
                table.fault(file_key, fault);
                None
            }
        };
    }
    let text = table.text(key)?;
    if text.is_empty() {
        table.fault(key, Fault::new("is empty", "write the secret, or leave the key out"));
        return None;
    }
    Some(SecretString::from(text))
}

/// The content of a file that holds a secret, without the line break at its end.
pub fn read_secret(path: &Path) -> Result<String, Fault> {
    let right = "name a file that this user may read, with the secret as its only line";
    let fault = |wrong: String| Fault::new(format!("`{}` {wrong}", path.display()), right);
    let bytes = super::file::read_limited(path).map_err(|error| fault(format!("cannot be read: {error}")))?;
    let mut text = String::from_utf8(bytes).map_err(|_| fault("is no UTF-8".to_owned()))?;
    let end = text.trim_end_matches(['\n', '\r']).len();
    text.truncate(end);
    if text.is_empty() {
        return Err(fault("is empty".to_owned()));
    }
    Ok(text)
}
