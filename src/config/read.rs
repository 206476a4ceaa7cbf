//! Reads typed values out of the merged layers and collects what is wrong, instead of stopping at
//! the first error.
//!
//! A [`Table`] knows its section of the table of keys: form, range and default of a value come from
//! there, and any other key is an error. Every reading method returns `None` where an error was
//! noted or where nothing is written and nothing is the default; a config with errors is never used.
//!
//! An error never shows the value, which may be a secret in the wrong place; parsers of plain values
//! add it where that helps.

use std::borrow::Cow;
use std::cell::RefCell;
use std::path::PathBuf;
use std::time::Duration;

use figment::Figment;
use figment::value::{Dict, Value};

use super::env;
use super::error::{ConfigError, Place};
use super::file::{File, Lines};
use super::keys::{Default, Form, Key, ROOT, Section};
use crate::model::Mask;
use crate::model::nearest::nearest;

/// A fault of a value, and its remedy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The fault, worded to follow the key.
    pub wrong: String,
    /// The remedy.
    pub right: String,
}

impl Fault {
    /// Returns a fault of these two texts.
    pub fn new(wrong: impl Into<String>, right: impl Into<String>) -> Self {
        Self { wrong: wrong.into(), right: right.into() }
    }
}

/// Divides the text of a parser's error, `wrong; right` or `wrong: right`.
impl<E: std::error::Error> From<E> for Fault {
    fn from(error: E) -> Self {
        let text = error.to_string();
        match text.find("; ").into_iter().chain(text.find(": ")).min() {
            Some(at) => Self::new(&text[..at], &text[at + 2..]),
            None => Self::new(text, "see docs/configuration.md"),
        }
    }
}

/// Layer that a value came from; the higher wins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rank {
    /// The config file.
    File,
    /// An environment variable.
    Environment,
    /// A command-line flag.
    Flag,
}

/// The part that all tables of one reading share.
pub struct Context {
    figment: Figment,
    lines: Lines,
    /// A cell, because all tables of a reading share the list.
    errors: RefCell<Vec<ConfigError>>,
    warnings: RefCell<Vec<String>>,
    mask: RefCell<Mask>,
}

/// What was noted while the config was read.
pub struct Notes {
    /// Errors; with any, the config is not used.
    pub errors: Vec<ConfigError>,
    /// What is valid and likely a mistake.
    pub warnings: Vec<String>,
    /// Every secret that was read.
    pub mask: Mask,
}

impl Context {
    /// Returns the context of these layers, the file among them.
    pub fn new(figment: Figment, file: Option<&File>) -> Self {
        let lines = file.map(File::lines).cloned().unwrap_or_default();
        Self { figment, lines, errors: RefCell::default(), warnings: RefCell::default(), mask: RefCell::default() }
    }

    /// Returns what was noted.
    pub fn into_notes(self) -> Notes {
        let Self { errors, warnings, mask, .. } = self;
        Notes { errors: errors.into_inner(), warnings: warnings.into_inner(), mask: mask.into_inner() }
    }

    fn place(&self, value: &Value, path: &[String]) -> Place {
        let Some(metadata) = self.figment.get_metadata(value.tag()) else { return Place::Nowhere };
        match metadata.source.as_ref().and_then(|source| source.file_path()) {
            Some(file) => Place::File { path: file.to_owned(), line: self.lines.of(path) },
            None => env::place(metadata),
        }
    }

    /// Returns the name of the environment variable that a value is from.
    fn variable(&self, value: &Value, path: &[String]) -> Option<String> {
        match self.place(value, path) {
            Place::Variable(variable) => Some(variable),
            Place::File { .. } | Place::Flag(_) | Place::Nowhere => None,
        }
    }

    /// Notes an error of the key at `path`, at the place of `value`.
    fn note(&self, path: &[String], value: Option<&Value>, Fault { wrong, right }: Fault) {
        let place = value.map_or(Place::Nowhere, |value| self.place(value, path));
        self.errors.borrow_mut().push(ConfigError { place, key: path.join("."), wrong, right });
    }
}

/// One table of the config.
pub struct Table<'a> {
    context: &'a Context,
    section: &'static Section,
    path: Vec<String>,
    value: Option<&'a Value>,
}

impl<'a> Table<'a> {
    /// Returns the top level.
    pub fn root(context: &'a Context, value: &'a Value) -> Self {
        Self::new(context, &ROOT, &[], Vec::new(), Some(value))
    }

    fn new(
        context: &'a Context,
        section: &'static Section,
        forms: &'static [&'static Section],
        path: Vec<String>,
        value: Option<&'a Value>,
    ) -> Self {
        let table = Self { context, section, path, value: value.filter(|value| value.as_dict().is_some()) };
        // In the constructor, so that no table is read without this check.
        table.note_unknown_keys(forms);
        table
    }

    fn dict(&self) -> Option<&'a Dict> {
        self.value.and_then(Value::as_dict)
    }

    fn get(&self, name: &str) -> Option<&'a Value> {
        self.dict()?.get(name)
    }

    fn path_of(&self, name: &str) -> Vec<String> {
        self.path.iter().cloned().chain([name.to_owned()]).collect()
    }

    fn key(&self, name: &str) -> &'static Key {
        self.section.key(name).expect("only keys of the section are read")
    }

    /// Notes an error of a key, at the place where it or else its table was written.
    pub fn fault(&self, name: &str, fault: Fault) {
        self.context.note(&self.path_of(name), self.get(name).or(self.value), fault);
    }

    /// Notes what is valid and likely a mistake.
    pub fn warn(&self, name: &str, text: &str) {
        self.context.warnings.borrow_mut().push(format!("{}: {text}", self.path_of(name).join(".")));
    }

    /// Has a secret masked wherever others repeat it.
    pub fn mask(&self, add: impl FnOnce(&mut Mask)) {
        add(&mut self.context.mask.borrow_mut());
    }

    /// Returns the config file, if the key is written there.
    pub fn file_with(&self, name: &str) -> Option<PathBuf> {
        match self.context.place(self.get(name)?, &self.path_of(name)) {
            Place::File { path, .. } => Some(path),
            Place::Nowhere | Place::Variable(_) | Place::Flag(_) => None,
        }
    }

    /// Notes that a key has to be given and is not.
    pub fn missing(&self, name: &str, right: impl Into<String>) {
        self.fault(name, Fault::new("is missing", right));
    }

    /// Returns the value of the tag that distinguishes this table from the other forms of its kind.
    pub fn tag(&self) -> &'static str {
        self.section.tag().map_or("", |(_, value)| value)
    }

    /// Returns whether the key is written in any layer.
    pub fn has(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    /// Returns the layer that gave this key.
    pub fn rank(&self, name: &str) -> Option<Rank> {
        Some(match self.context.place(self.get(name)?, &self.path_of(name)) {
            Place::File { .. } | Place::Nowhere => Rank::File,
            Place::Variable(_) => Rank::Environment,
            Place::Flag(_) => Rank::Flag,
        })
    }

    /// Returns whether the value is a text from a variable or flag, which cannot write anything else.
    fn is_from_outside(&self, name: &str) -> bool {
        self.rank(name) > Some(Rank::File)
    }

    /// Returns what is written, or else the default; notes an error if the key has to be written.
    fn value(&self, name: &str) -> Option<Cow<'a, Value>> {
        if let Some(value) = self.get(name) {
            return Some(Cow::Borrowed(value));
        }
        let key = self.key(name);
        if let Default::Required(example) = key.default {
            let file = key.file().map_or(String::new(), |file| format!(", or {file} = \"/run/secrets/{name}\""));
            self.missing(name, format!("write {name} = {example}{file}"));
        }
        // A default passes the same parser as a written value.
        Value::serialize(key.default.value()?).ok().map(Cow::Owned)
    }

    fn wrong_type<T>(&self, name: &str, value: &Value, wanted: &str, right: &str) -> Option<T> {
        self.fault(name, wrong_type(value, wanted, right));
        None
    }

    /// Returns an example of a number and a unit for the key, if its values have one.
    fn unit(&self, name: &str) -> Option<(i128, &'static str)> {
        // The file of a secret has no form of its own.
        match self.section.key(name)?.form {
            Form::Duration(..) => Some((5, "s")),
            Form::Rate => Some((500, "kB")),
            Form::Size => Some((256, "MiB")),
            _ => None,
        }
    }

    /// Reads a text.
    pub fn text(&self, name: &str) -> Option<String> {
        match self.value(name)?.as_ref() {
            Value::String(_, text) => Some(text.clone()),
            Value::Num(_, number) if let Some((example, unit)) = self.unit(name) => {
                let number = number.to_i128().unwrap_or(example);
                let right = format!("write it with a unit, in quotes: {name} = \"{number}{unit}\"");
                self.fault(name, Fault::new("is a number without a unit", right));
                None
            }
            other => self.wrong_type(name, other, "a string", &format!("write {name} = \"…\", in quotes")),
        }
    }

    /// Reads a text that `parse` makes something of.
    pub fn parsed<T, E: Into<Fault>>(&self, name: &str, parse: impl FnOnce(&str) -> Result<T, E>) -> Option<T> {
        let text = self.text(name)?;
        parse(&text).map_err(|error| self.fault(name, error.into())).ok()
    }

    /// Reads a text that is one of the names of a choice.
    pub fn choice<T: Clone>(&self, name: &str, choices: &[(&'static str, T)]) -> Option<T> {
        self.parsed(name, |text| {
            let found = choices.iter().find(|(choice, _)| *choice == text);
            found
                .map(|(_, value)| value.clone())
                .ok_or_else(|| unknown_choice(text, choices.iter().map(|(choice, _)| *choice)))
        })
    }

    /// Reads a time span within the range of the key.
    pub fn duration(&self, name: &str) -> Option<Duration> {
        let Form::Duration(min, max) = self.key(name).form else { return None };
        self.parsed(name, |text| {
            let wrong = match humantime::parse_duration(text) {
                Err(_) => "is not a duration",
                Ok(duration) if duration < min => "is too short",
                Ok(duration) if duration > max => "is too long",
                Ok(duration) => return Ok(duration),
            };
            let (min, max) = (humantime::format_duration(min), humantime::format_duration(max));
            // A number alone lacks only its unit.
            let is_number = text.trim().parse::<u32>().is_ok();
            let example = if is_number { format!("\"{}s\"", text.trim()) } else { "\"1s\" or \"500ms\"".to_owned() };
            let right = format!("write {min} to {max} with a unit, as in {example}");
            Err(Fault::new(format!("`{text}` {wrong}"), right))
        })
    }

    /// Reads `true` or `false`.
    pub fn boolean(&self, name: &str) -> Option<bool> {
        match self.value(name)?.as_ref() {
            Value::Bool(_, is_true) => Some(*is_true),
            Value::String(_, text) if self.is_from_outside(name) => {
                let fault = || Fault::new("is neither true nor false", "set it to true or false");
                text.trim().parse().map_err(|_| self.fault(name, fault())).ok()
            }
            other => {
                let right = format!("write {name} = true or {name} = false, without quotes");
                self.wrong_type(name, other, "a boolean", &right)
            }
        }
    }

    /// Reads a whole number within the range of the key.
    pub fn whole<T: TryFrom<i64>>(&self, name: &str) -> Option<T> {
        let Form::Whole(min, max) = self.key(name).form else { return None };
        let right = format!("write a whole number from {min} to {max}, without quotes");
        let number: Option<i64> = match self.value(name)?.as_ref() {
            Value::Num(_, number) => {
                // Signed in a file, unsigned as a default.
                let unsigned = || number.to_u128()?.try_into().ok();
                number.to_i128().and_then(|number| number.try_into().ok()).or_else(unsigned)
            }
            Value::String(_, text) if self.is_from_outside(name) => text.trim().parse().ok(),
            other => return self.wrong_type(name, other, "a number", &right),
        };
        let number = number.filter(|number| (min..=max).contains(number)).and_then(|number| T::try_from(number).ok());
        if number.is_none() {
            self.fault(name, Fault::new("is not a whole number in its range", right));
        }
        number
    }

    /// Reads a list of texts. From outside: `a,b`, or a list as in TOML.
    pub fn texts(&self, name: &str) -> Option<Vec<String>> {
        let right = format!("write {name} = [\"…\", \"…\"]");
        let (texts, fault) = match self.value(name)?.as_ref() {
            Value::Array(_, items) => (
                items.iter().map(|item| item.as_str().map(str::to_owned)).collect(),
                Fault::new("contains something other than strings", right),
            ),
            Value::String(_, text) if self.is_from_outside(name) => {
                (texts_from_outside(text), Fault::new("is not a list of strings", "separate the values with commas"))
            }
            other => return self.wrong_type(name, other, "a list", &right),
        };
        if texts.is_none() {
            self.fault(name, fault);
        }
        texts
    }

    /// Reads a text or a list of texts, at least one.
    pub fn one_or_more(&self, name: &str) -> Option<Vec<String>> {
        let texts = match self.get(name) {
            // From outside a text is a list in any case: `a,b`.
            Some(Value::String(_, text)) if !self.is_from_outside(name) => vec![text.clone()],
            _ => self.texts(name)?,
        };
        if texts.is_empty() {
            self.fault(name, Fault::new("is an empty list", "write at least one"));
        }
        Some(texts)
    }

    /// Parses each of `texts`, which were read from this key; notes an error for each that cannot be.
    pub fn each<T, E: Into<Fault>>(
        &self,
        name: &str,
        texts: Option<Vec<String>>,
        parse: impl Fn(&str) -> Result<T, E>,
    ) -> Option<Vec<T>> {
        let note = |error: E| self.fault(name, error.into());
        Some(texts?.iter().filter_map(|text| parse(text).map_err(note).ok()).collect())
    }

    /// Reads the table under this key; an empty one if there is none.
    pub fn table(&self, name: &str) -> Option<Table<'a>> {
        let Form::Section(section) = self.key(name).form else { return None };
        let (path, value) = (self.path_of(name), self.get(name));
        if let Some(fault) = not_a_table(&path, value) {
            self.fault(name, fault);
            return None;
        }
        Some(Self::new(self.context, section, &[], path, value))
    }

    /// Reads the tables under this key, each with its name; `None` for a name with an error.
    pub fn named<N, E: Into<Fault>>(
        &self,
        name: &str,
        parse: impl Fn(&str) -> Result<N, E>,
    ) -> Vec<(Option<N>, Table<'a>)> {
        let Form::Named(forms) = self.key(name).form else { return Vec::new() };
        let mut tables = Vec::new();
        for (free, value) in self.dict_below(name) {
            let mut path = self.path_of(name);
            path.push(free.clone());
            if let Some(Fault { wrong, right }) = not_a_table(&path, Some(value)) {
                let likely = free
                    .match_indices('_')
                    .map(|(at, _)| (&free[..at], &free[at + 1..]))
                    .find(|(_, key)| forms.iter().any(|form| form.names().contains(*key)))
                    .and_then(|(free, key)| env::split(&self.context.variable(value, &path)?, free, key));
                self.context.note(&path, Some(value), Fault::new(wrong, did_you_mean(likely) + &right));
            }
            let Some(dict) = value.as_dict() else { continue };
            // The form decides which keys are known.
            match form_of(dict, forms) {
                Ok(form) => {
                    let table = Self::new(self.context, form, forms, path, Some(value));
                    let free = parse(free).map_err(|error| self.context.note(&table.path, Some(value), error.into()));
                    tables.push((free.ok(), table));
                }
                Err((tag, fault)) => {
                    let tag_path: Vec<String> = path.iter().cloned().chain([tag.to_owned()]).collect();
                    self.context.note(&tag_path, dict.get(tag).or(Some(value)), fault);
                    // Read in the form that it seems to have, so that its other errors are reported at the same time.
                    let form = likely_form(dict, tag, forms);
                    let table = Self::new(self.context, form, forms, path, Some(value));
                    tables.push((parse(free).ok(), table));
                }
            }
        }
        tables
    }

    /// Reads the texts under this key, each with its free name.
    pub fn named_texts(&self, name: &str) -> Vec<(String, String)> {
        let mut texts = Vec::new();
        for (free, value) in self.dict_below(name) {
            match value.as_str() {
                Some(text) => texts.push((free.clone(), text.to_owned())),
                None => {
                    let mut path = self.path_of(name);
                    path.push(free.clone());
                    let right = format!("write \"{free}\" = \"…\", in quotes");
                    self.context.note(&path, Some(value), wrong_type(value, "a string", &right));
                }
            }
        }
        texts
    }

    fn dict_below(&self, name: &str) -> impl Iterator<Item = (&'a String, &'a Value)> + use<'a> {
        let value = self.get(name);
        if let Some(fault) = not_a_table(&self.path_of(name), value) {
            self.fault(name, fault);
        }
        value.and_then(Value::as_dict).into_iter().flatten()
    }

    /// Notes every key that this section does not have. `forms`: those that the table could have instead.
    fn note_unknown_keys(&self, forms: &'static [&'static Section]) {
        let known = self.section.names();
        for name in self.dict().into_iter().flat_map(|dict| dict.keys()).filter(|name| !known.contains(*name)) {
            let other = forms.iter().find(|form| form.names().contains(name)).and_then(|form| form.tag());
            let (wrong, right) = match other {
                Some((key, value)) => (
                    format!("is not a key of {} = \"{}\"", key.name, self.tag()),
                    format!("remove it, or write {} = \"{value}\"", key.name),
                ),
                None => {
                    let list = known.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
                    let nearest = || nearest(name, known.iter().map(String::as_str)).map(str::to_owned);
                    let likely = self.likely_variable(name).or_else(nearest);
                    ("is an unknown key".to_owned(), format!("{}known here: {list}", did_you_mean(likely)))
                }
            };
            self.fault(name, Fault::new(wrong, right));
        }
    }

    /// Returns the variable that was likely meant, where one names an unknown key that begins with the name of a table.
    fn likely_variable(&self, name: &str) -> Option<String> {
        let tables = self.section.iter().filter(|key| matches!(key.form, Form::Section(_) | Form::Named(_)));
        let (key, rest) =
            tables.filter_map(|key| Some((key, name.strip_prefix(key.name)?.strip_prefix('_')?))).next()?;
        let variable = self.context.variable(self.get(name)?, &self.path_of(name))?;
        let split = env::split(&variable, key.name, rest)?;
        match (key.form, rest.split_once('_')) {
            (Form::Named(_), Some((free, rest))) => env::split(&split, free, rest),
            _ => Some(split),
        }
    }
}

/// Returns the form of a table, or the key that selects the form and its fault.
fn form_of(dict: &Dict, forms: &'static [&'static Section]) -> Result<&'static Section, (&'static str, Fault)> {
    let tags = || forms.iter().filter_map(|form| Some((*form, form.tag()?)));
    let Some((_, (key, _))) = tags().next() else { return Ok(forms[0]) };
    let values = || tags().map(|(_, (_, value))| value);
    let (found, fault) = match dict.get(key.name) {
        None => {
            let right = format!("write {}", alternatives(values().map(|value| format!("{} = \"{value}\"", key.name))));
            let default = tags().find(|(_, (key, _))| !matches!(key.default, Default::Required(_)));
            (default, Fault::new("is missing", right))
        }
        Some(Value::String(_, text)) => (tags().find(|(_, (_, value))| value == text), unknown_choice(text, values())),
        Some(other) => (None, wrong_type(other, "a string", &format!("write {} = \"…\", in quotes", key.name))),
    };
    found.map(|(form, _)| form).ok_or((key.name, fault))
}

/// Returns the form that a table without a valid tag was probably meant to have: by a typing error in the tag, by the scheme of
/// its URL, or by the keys that it has.
fn likely_form(dict: &Dict, tag: &str, forms: &'static [&'static Section]) -> &'static Section {
    let text = |key: &str| dict.get(key).and_then(Value::as_str).unwrap_or_default();
    let value_of = |form: &Section| form.tag().map_or("", |(_, value)| value);
    let values = forms.iter().map(|form| value_of(form));
    let by_tag = nearest(text(tag), values);
    let is_likely = |form: &&&Section| match by_tag {
        Some(value) => value_of(form) == value,
        None => text("url").starts_with(value_of(form)),
    };
    let known_keys = |form: &&&Section| form.names().iter().filter(|name| dict.contains_key(*name)).count();
    // Of equals the first is the more common one.
    let by_keys = || forms.iter().rev().max_by_key(known_keys);
    forms.iter().find(is_likely).or_else(by_keys).unwrap_or(&forms[0])
}

fn wrong_type(value: &Value, wanted: &str, right: &str) -> Fault {
    let found = match value {
        Value::String(..) | Value::Char(..) => "a string",
        Value::Bool(..) => "a boolean",
        Value::Num(..) => "a number",
        Value::Empty(..) => "a date",
        Value::Dict(..) => "a table",
        Value::Array(..) => "a list",
    };
    Fault::new(format!("is {found}, not {wanted}"), right)
}

fn did_you_mean(likely: Option<String>) -> String {
    likely.map_or(String::new(), |likely| format!("did you mean `{likely}`? "))
}

fn not_a_table(path: &[String], value: Option<&Value>) -> Option<Fault> {
    let value = value.filter(|value| value.as_dict().is_none())?;
    Some(wrong_type(value, "a table", &format!("write [{}] and its keys below", path.join("."))))
}

fn unknown_choice(text: &str, known: impl Iterator<Item = &'static str> + Clone) -> Fault {
    let hint = nearest(text, known.clone()).map_or(String::new(), |name| format!("did you mean \"{name}\"? "));
    let right = format!("{hint}write {}", alternatives(known.map(|known| format!("\"{known}\""))));
    Fault::new(format!("`{text}` is an unknown value"), right)
}

fn alternatives(all: impl Iterator<Item = String>) -> String {
    all.collect::<Vec<_>>().join(" or ")
}

fn texts_from_outside(text: &str) -> Option<Vec<String>> {
    if text.trim_start().starts_with('[') {
        let table: toml::Table = format!("list = {}", text.trim()).parse().ok()?;
        // A line break in the text could begin a further key.
        let items = table.get("list").filter(|_| table.len() == 1)?.as_array()?;
        return items.iter().map(|item| item.as_str().map(str::to_owned)).collect();
    }
    Some(text.split(',').map(str::trim).filter(|item| !item.is_empty()).map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_from_outside_is_separated_by_commas_or_written_as_in_toml() {
        for (text, list) in [
            ("", Some(vec![])),
            ("a", Some(vec!["a"])),
            (" *, -rpc ,", Some(vec!["*", "-rpc"])),
            ("[\"a,b\", 'c']", Some(vec!["a,b", "c"])),
            ("[1]", None),
            ("[\"a\"]\nx = 1", None),
            ("[", None),
        ] {
            let list = list.map(|items| items.into_iter().map(str::to_owned).collect::<Vec<_>>());
            assert_eq!(texts_from_outside(text), list, "{text}");
        }
    }
}
