//! The config file: TOML text into a tree of values, with the line of each.
//!
//! All syntax errors are found at once. The meaning of keys is left to [`super::read`]. A syntax error
//! is reported by its message and line only, because the text of the line may contain a secret.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::{self, ErrorKind, Read as _};
use std::path::{Path, PathBuf};

use figment::value::{Dict, Empty, Map, Num, Tag, Value};
use figment::{Metadata, Profile, Provider};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::error::{ConfigError, Place};

/// Maximum size of a config. A larger file is a mistake and is not read.
const FILE_BYTES_MAX: usize = 1 << 20;

/// A file that was read, as a layer of figment.
#[derive(Clone, Debug)]
pub struct File {
    path: PathBuf,
    values: Dict,
    lines: Lines,
}

/// The line of each key, by the path of the key.
#[derive(Clone, Debug, Default)]
pub struct Lines(BTreeMap<Vec<String>, usize>);

impl Lines {
    /// Returns the line of this key, or of the nearest table around it.
    pub fn of(&self, path: &[String]) -> Option<usize> {
        (0..=path.len()).rev().find_map(|length| self.0.get(&path[..length]).copied())
    }
}

/// Reads a small file. One without an end (a device) is read up to the limit only.
pub(super) fn read_limited(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    // One byte above the limit is read, to detect a larger file.
    std::fs::File::open(path)?.take(FILE_BYTES_MAX as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > FILE_BYTES_MAX {
        return Err(io::Error::new(ErrorKind::FileTooLarge, "it has more than 1 MiB; is this the right file?"));
    }
    Ok(bytes)
}

impl File {
    /// Reads a file.
    ///
    /// # Errors
    /// The file cannot be read, is not UTF-8, is too large, or is not TOML.
    pub fn read(path: &Path) -> Result<Self, Vec<ConfigError>> {
        let bytes = read_limited(path).map_err(|error| {
            let right = "give the path of a file that this user may read";
            vec![file_error(path, None, format!("cannot be read: {error}"), right)]
        })?;
        Self::parse(path, &bytes)
    }

    /// Parses `bytes` as the content of the file at `path`; the path is only for messages.
    ///
    /// # Errors
    /// As for [`Self::read`].
    pub fn parse(path: &Path, bytes: &[u8]) -> Result<Self, Vec<ConfigError>> {
        if bytes.len() > FILE_BYTES_MAX {
            let wrong = format!("has {} bytes", bytes.len());
            return Err(vec![file_error(path, None, wrong, "a config has at most 1 MiB; is this the right file?")]);
        }
        let text = std::str::from_utf8(bytes).map_err(|error| {
            let line = line_of(bytes, error.valid_up_to());
            vec![file_error(path, Some(line), "is not UTF-8".to_owned(), "save the file as UTF-8")]
        })?;
        // Not `toml::from_str`, which stops at the first error and has no lines for the values.
        let (table, errors) = DeTable::parse_recoverable(text);
        if !errors.is_empty() {
            let mut errors: Vec<ConfigError> = errors.iter().map(|error| syntax_error(path, bytes, error)).collect();
            errors.sort_by_key(|error| error.place.line());
            return Err(errors);
        }
        let mut lines = Lines::default();
        let values = plain(&DeValue::Table(table.into_inner()), bytes, &mut Vec::new(), &mut lines);
        Ok(Self { path: path.to_owned(), values: values.into_dict().unwrap_or_default(), lines })
    }

    /// Returns the line of each key.
    pub fn lines(&self) -> &Lines {
        &self.lines
    }

    /// Returns the path as it was given.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Provider for File {
    fn metadata(&self) -> Metadata {
        Metadata::from("config file", self.path.as_path())
    }

    fn data(&self) -> Result<Map<Profile, Dict>, figment::Error> {
        Ok(Profile::Default.collect(self.values.clone()))
    }
}

fn file_error(path: &Path, line: Option<usize>, wrong: String, right: &str) -> ConfigError {
    let place = Place::File { path: path.to_owned(), line };
    ConfigError { place, key: String::new(), wrong, right: right.to_owned() }
}

fn syntax_error(path: &Path, bytes: &[u8], error: &toml::de::Error) -> ConfigError {
    let line = error.span().map(|span| line_of(bytes, span.start));
    file_error(path, line, format!("is not TOML: {}", error.message()), "correct the syntax (https://toml.io)")
}

fn line_of(bytes: &[u8], offset: usize) -> usize {
    let before = &bytes[..offset.min(bytes.len())];
    memchr::memchr_iter(b'\n', before).count() + 1
}

/// Converts a value, and notes the line of each key and item below it.
fn plain(value: &DeValue<'_>, bytes: &[u8], path: &mut Vec<String>, lines: &mut Lines) -> Value {
    let tag = Tag::Default;
    let mut below = |key: String, offset: usize, value: &DeValue<'_>| {
        path.push(key);
        lines.0.insert(path.clone(), line_of(bytes, offset));
        let value = plain(value, bytes, path, lines);
        path.pop();
        value
    };
    match value {
        DeValue::String(text) => Value::String(tag, text.to_string()),
        DeValue::Integer(digits) => match i64::from_str_radix(digits.as_str(), digits.radix()) {
            Ok(number) => Value::Num(tag, Num::I64(number)),
            // No key takes a number of this size: its range check refuses infinity.
            Err(_) => Value::Num(tag, Num::F64(f64::INFINITY)),
        },
        DeValue::Float(digits) => Value::Num(tag, Num::F64(digits.as_str().parse().unwrap_or(f64::NAN))),
        DeValue::Boolean(is_true) => Value::Bool(tag, *is_true),
        // No key takes a date.
        DeValue::Datetime(_) => Value::Empty(tag, Empty::Unit),
        DeValue::Array(items) => {
            let item = |(at, item): (usize, &Spanned<_>)| below(at.to_string(), item.span().start, item.get_ref());
            Value::Array(tag, items.iter().enumerate().map(item).collect())
        }
        DeValue::Table(table) => {
            let entry = |(key, value): (&Spanned<Cow<'_, str>>, &Spanned<_>)| {
                let name = key.get_ref().to_string();
                (name.clone(), below(name, key.span().start, value.get_ref()))
            };
            Value::Dict(tag, table.iter().map(entry).collect())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(toml: &[u8]) -> Vec<String> {
        match File::parse(Path::new("x.toml"), toml) {
            Ok(_) => Vec::new(),
            Err(errors) => errors.iter().map(ToString::to_string).collect(),
        }
    }

    #[test]
    fn a_file_without_an_end_is_read_up_to_the_limit() {
        let error = read_limited(Path::new("/dev/zero")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::FileTooLarge);
    }

    #[test]
    fn each_syntax_error_has_its_line_and_none_shows_the_text() {
        let errors = texts(b"a = 1\n[servers.home]\npassword = sesame\nurl = \"x\n[y\n");
        assert!(errors.len() > 1, "{errors:?}");
        assert!(errors[0].starts_with("x.toml:3: is not TOML:"), "{errors:?}");
        assert!(!errors.iter().any(|error| error.contains("sesame")), "{errors:?}");
    }

    #[test]
    fn a_file_that_is_not_text_or_too_large_is_refused() {
        assert_eq!(texts(b"a = 1\n\xff"), ["x.toml:2: is not UTF-8; save the file as UTF-8"]);
        assert!(texts(&vec![b'\n'; FILE_BYTES_MAX + 1])[0].contains("at most 1 MiB"));
    }

    #[test]
    fn depth_does_not_exhaust_the_stack() {
        for toml in ["a.".repeat(100_000) + "a = 1", "a = ".to_owned() + &"[".repeat(100_000), "[a.".repeat(50_000)] {
            assert!(!texts(toml.as_bytes()).is_empty());
        }
    }

    #[test]
    fn a_value_has_the_line_of_its_key_or_of_the_table_around_it() {
        let file = File::parse(Path::new("x"), b"\n[a]\nb = [\n 1,\n 2]\n").unwrap();
        for (path, line) in [("a", 2), ("a.b", 3), ("a.b.1", 5), ("a.missing", 2)] {
            let path: Vec<String> = path.split('.').map(str::to_owned).collect();
            assert_eq!(file.lines().of(&path), Some(line), "{path:?}");
        }
    }
}
