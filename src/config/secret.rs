//! Secrets: written in place or in a file, and never shown.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use secrecy::{ExposeSecret as _, SecretString};

use super::read::{Fault, Table};
use crate::model::{ANYWHERE_CHARS_MIN, Mask};

/// Fewest bytes of a word in a file of secrets that is one; keys and signed tokens are longer, labels are shorter.
const LONG_WORD_BYTES_MIN: usize = 20;

/// Reads `name`, or the content of the file that `NAME_file` names, and returns the key that gave it.
///
/// Both at once are an error, unless one comes from a higher layer: that one wins.
fn secret_and_key(table: &Table<'_>, name: &str) -> Option<(SecretString, String)> {
    let file = format!("{name}_file");
    let (in_place, in_file) = (table.rank(name), table.rank(&file));
    if in_place.is_some() && in_place == in_file {
        table.fault(&file, Fault::new(format!("and `{name}` are both given"), "keep one of them"));
        return None;
    }
    // `None` is the lowest rank, so this holds, too, if only the file is given.
    if in_file > in_place {
        let text = table.parsed(&file, |path| read_secret(Path::new(path)))?;
        warn_of_readers(table, &file, table.text(&file)?.as_ref());
        return Some((text.into(), file));
    }
    let text = table.text(name)?;
    if text.is_empty() {
        table.fault(name, Fault::new("is empty", "write the secret, or leave the key out"));
        return None;
    }
    if let Some(config) = table.file_with(name) {
        warn_of_readers(table, name, &config);
    }
    Some((text.into(), name.to_owned()))
}

/// Notes that the file with the secret of a key is open to every user of the machine. A group is somebody's choice.
pub fn warn_of_readers(table: &Table<'_>, key: &str, file: &Path) {
    let mode = std::fs::metadata(file).map(|metadata| metadata.permissions().mode());
    if mode.is_ok_and(|mode| mode & 0o007 != 0) {
        let file = file.display();
        table.warn(key, &format!("every user of this machine may read the secret in {file}; chmod o= {file}"));
    }
}

/// Reads a secret, which is masked from then on; see [`secret_and_key`].
pub fn secret(table: &Table<'_>, name: &str) -> Option<SecretString> {
    let (secret, key) = secret_and_key(table, name)?;
    note_secret(table, &key, secret.expose_secret());
    Some(secret)
}

/// Masks the secret of a key from now on, and warns of a short one.
pub fn note_secret(table: &Table<'_>, key: &str, text: &str) {
    table.mask(|mask| mask.add(text));
    if text.chars().count() < ANYWHERE_CHARS_MIN {
        let wrong = format!("has fewer than {ANYWHERE_CHARS_MIN} characters");
        table.warn(key, &format!("{wrong}, so it can be guessed, and is masked only where it stands alone"));
    }
}

/// Reads and parses a secret, of which `mask` adds what is to be masked; see [`secret_and_key`].
pub fn parsed_secret<T, E: Into<Fault>>(
    table: &Table<'_>,
    name: &str,
    parse: impl FnOnce(&str) -> Result<T, E>,
    mask: impl FnOnce(&mut Mask, &str),
) -> Option<T> {
    let (text, key) = secret_and_key(table, name)?;
    table.mask(|masked| mask(masked, text.expose_secret()));
    parse(text.expose_secret()).map_err(|error| table.fault(&key, error.into())).ok()
}

/// Returns the content of a file that holds a secret, without a byte order mark and the line breaks at its end.
pub fn read_secret(path: &Path) -> Result<String, Fault> {
    let fault = |wrong: &str| {
        Fault::new(format!("`{}` {wrong}", path.display()), "name a file with the secret as its only line")
    };
    let text = String::from_utf8(read_file(path)?).map_err(|_| fault("is not UTF-8"))?;
    // Editors of some systems put a mark before a text, and editors and `echo` end a file with a line break.
    let text = text.trim_start_matches('\u{feff}').trim_end_matches(['\n', '\r']);
    if text.is_empty() { Err(fault("is empty")) } else { Ok(text.to_owned()) }
}

/// Adds each secret of a text with several: the longer words, without the names that stand around them.
pub fn mask_words(mask: &mut Mask, text: &str) {
    let words = text.split_whitespace().map(|word| word.strip_prefix("whsec_").unwrap_or(word));
    words.filter(|word| word.len() >= LONG_WORD_BYTES_MIN).for_each(|word| mask.add(word));
}

/// Reads a whole file.
pub fn read_file(path: impl AsRef<Path>) -> Result<Vec<u8>, Fault> {
    let path = path.as_ref();
    let right = "name a file that this user may read; a relative path starts at the working directory";
    super::file::read_limited(path)
        .map_err(|error| Fault::new(format!("`{}` cannot be read: {error}", path.display()), right))
}
