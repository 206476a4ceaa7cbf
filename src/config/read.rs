//! Reads typed values out of the merged layers and collects what is wrong, instead of stopping at
//! the first fault.
//!
//! Whoever reads a table asks for each key that it may have. So the reading is the only list of
//! known keys: what was never asked for is unknown. A fault never shows the value, which may be a
//! secret in the wrong place; parsers of plain values add it where it helps.

use std::cell::RefCell;
use std::collections::BTreeSet;

use figment::Figment;
use figment::value::{Dict, Value};

use super::env;
use super::error::{ConfigError, Place};
use super::file::{File, Lines};

/// What is wrong with a value, and what would be right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    pub wrong: String,
    pub right: String,
}

impl Fault {
    pub fn new(wrong: impl Into<String>, right: impl Into<String>) -> Self {
        Self { wrong: wrong.into(), right: right.into() }
    }
}

/// Which layer a value came from; the higher wins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rank {
    File,
    Environment,
    Flag,
}

/// What all tables of one reading share.
pub struct Context {
    figment: Figment,
    lines: Lines,
    errors: RefCell<Vec<ConfigError>>,
    /// Every key that was asked for, with `*` for a name.
    keys: RefCell<BTreeSet<String>>,
}

impl Context {
    pub fn new(figment: Figment, file: Option<&File>) -> Self {
        let lines = file.map(File::lines).cloned().unwrap_or_default();
        Self { figment, lines, errors: RefCell::default(), keys: RefCell::default() }
    }

    pub fn into_parts(self) -> (Vec<ConfigError>, BTreeSet<String>) {
        (self.errors.into_inner(), self.keys.into_inner())
    }

    fn place(&self, value: &Value, path: &[String]) -> Place {
        let Some(metadata) = self.figment.get_metadata(value.tag()) else { return Place::Nowhere };
        match metadata.source.as_ref().and_then(|source| source.file_path()) {
            Some(file) => Place::File { path: file.to_owned(), line: self.lines.of(path) },
            None => env::place(metadata),
        }
    }
}

/// One table of the config.
pub struct Table<'a> {
    context: &'a Context,
    path: Vec<String>,
    pattern: Vec<&'static str>,
    value: Option<&'a Value>,
    asked: RefCell<BTreeSet<&'static str>>,
}

impl<'a> Table<'a> {
    pub fn root(context: &'a Context, value: &'a Value) -> Self {
        Self { context, path: Vec::new(), pattern: Vec::new(), value: Some(value), asked: RefCell::default() }
    }

    fn dict(&self) -> Option<&'a Dict> {
        self.value.and_then(Value::as_dict)
    }

    fn path_of(&self, key: &str) -> Vec<String> {
        self.path.iter().cloned().chain([key.to_owned()]).collect()
    }

    fn ask(&self, key: &'static str) -> Option<&'a Value> {
        self.asked.borrow_mut().insert(key);
        let pattern: Vec<&str> = self.pattern.iter().copied().chain([key]).collect();
        self.context.keys.borrow_mut().insert(pattern.join("."));
        self.dict()?.get(key)
    }

    fn push(&self, place: Place, path: &[String], fault: Fault) {
        let Fault { wrong, right } = fault;
        self.context.errors.borrow_mut().push(ConfigError { place, key: path.join("."), wrong, right });
    }

    /// Notes a fault of `key`, at the place where it was written.
    pub fn fault(&self, key: &str, fault: Fault) {
        let path = self.path_of(key);
        let value = self.dict().and_then(|dict| dict.get(key)).or(self.value);
        let place = value.map_or(Place::Nowhere, |value| self.context.place(value, &path));
        self.push(place, &path, fault);
    }

    /// Notes that `key` has to be given and is not.
    pub fn missing(&self, key: &str, right: &str) {
        self.fault(key, Fault::new("is missing", right));
    }

    /// Notes a fault of the table as a whole.
    pub fn fault_here(&self, fault: Fault) {
        let place = self.value.map_or(Place::Nowhere, |value| self.context.place(value, &self.path));
        self.push(place, &self.path, fault);
    }

    pub fn has(&self, key: &'static str) -> bool {
        self.ask(key).is_some()
    }

    /// Notes a fault of `key`, which is none here, if it is written all the same.
    pub fn refuse(&self, key: &str, fault: Fault) {
        if self.dict().is_some_and(|dict| dict.contains_key(key)) {
            self.fault(key, fault);
        }
    }

    /// Which layer gave this key.
    pub fn rank(&self, key: &'static str) -> Option<Rank> {
        let value = self.ask(key)?;
        Some(match self.context.place(value, &self.path_of(key)) {
            Place::File { .. } | Place::Nowhere => Rank::File,
            Place::Variable(_) => Rank::Environment,
            Place::Flag(_) => Rank::Flag,
        })
    }

    fn is_text_from_outside(&self, key: &'static str) -> bool {
        self.rank(key) > Some(Rank::File)
    }

    fn wrong_type(&self, key: &str, value: &Value, wanted: &str, right: &str) {
        let found = match value {
            Value::String(..) | Value::Char(..) => "a text",
            Value::Bool(..) => "true or false",
            Value::Num(..) => "a number",
            Value::Empty(..) => "a date",
            Value::Dict(..) => "a table",
            Value::Array(..) => "a list",
        };
        self.fault(key, Fault::new(format!("is {found}, not {wanted}"), right));
    }

    pub fn text(&self, key: &'static str) -> Option<String> {
        match self.ask(key)? {
            Value::String(_, text) => Some(text.clone()),
            other => {
                self.wrong_type(key, other, "a text", &format!("write {key} = \"…\", in quotes"));
                None
            }
        }
    }

    /// A text that `parse` makes something of.
    pub fn parsed<T>(&self, key: &'static str, parse: impl FnOnce(&str) -> Result<T, Fault>) -> Option<T> {
        let text = self.text(key)?;
        parse(&text).map_err(|fault| self.fault(key, fault)).ok()
    }

    pub fn boolean(&self, key: &'static str) -> Option<bool> {
        let right = format!("write {key} = true or {key} = false, without quotes");
        match self.ask(key)? {
            Value::Bool(_, is_true) => Some(*is_true),
            Value::String(_, text) if self.is_text_from_outside(key) => match text.trim() {
                "true" => Some(true),
                "false" => Some(false),
                _ => {
                    self.fault(key, Fault::new("is neither true nor false", "set it to true or false"));
                    None
                }
            },
            other => {
                self.wrong_type(key, other, "true or false", &right);
                None
            }
        }
    }

    /// A whole number within `range`.
    pub fn whole(&self, key: &'static str, range: std::ops::RangeInclusive<i64>) -> Option<i64> {
        let right = format!("write a whole number from {} to {}, without quotes", range.start(), range.end());
        let value = self.ask(key)?;
        let number = match value {
            Value::Num(_, number) => number.to_i128().and_then(|number| i64::try_from(number).ok()),
            Value::String(_, text) if self.is_text_from_outside(key) => text.trim().parse().ok(),
            other => {
                self.wrong_type(key, other, "a number", &right);
                return None;
            }
        };
        let within = number.filter(|number| range.contains(number));
        if within.is_none() {
            self.fault(key, Fault::new("is no whole number in its range", right));
        }
        within
    }

    /// A list of texts. From the environment: `a,b`, or a list as in TOML.
    pub fn texts(&self, key: &'static str) -> Option<Vec<String>> {
        let right = format!("write {key} = [\"…\", \"…\"]");
        match self.ask(key)? {
            Value::Array(_, items) => self.texts_of(key, items, &right),
            Value::String(_, text) if self.is_text_from_outside(key) => {
                let list = texts_from_outside(text);
                if list.is_none() {
                    self.fault(key, Fault::new("is no list of texts", "separate the texts by commas"));
                }
                list
            }
            other => {
                self.wrong_type(key, other, "a list", &right);
                None
            }
        }
    }

    /// A text, or a list of texts.
    pub fn one_or_more(&self, key: &'static str) -> Option<Vec<String>> {
        match self.ask(key)? {
            Value::String(_, text) if !self.is_text_from_outside(key) => Some(vec![text.clone()]),
            _ => self.texts(key),
        }
    }

    fn texts_of(&self, key: &str, items: &[Value], right: &str) -> Option<Vec<String>> {
        let texts: Vec<String> = items.iter().filter_map(|item| item.as_str().map(str::to_owned)).collect();
        if texts.len() < items.len() {
            self.fault(key, Fault::new("holds something that is no text", right));
            return None;
        }
        Some(texts)
    }

    /// The table under `key`; an empty one if there is none.
    pub fn table(&self, key: &'static str) -> Table<'a> {
        let value = self.ask(key);
        if let Some(value) = value.filter(|value| value.as_dict().is_none()) {
            let section = self.path_of(key).join(".");
            self.wrong_type(key, value, "a table", &format!("write [{section}] and its keys below"));
        }
        self.below(key, key, value)
    }

    /// The tables under `key`, each with its name.
    pub fn named(&self, key: &'static str) -> Vec<(String, Table<'a>)> {
        let outer = self.table(key);
        let mut tables = Vec::new();
        for (name, value) in outer.dict().into_iter().flatten() {
            if value.as_dict().is_some() {
                tables.push((name.clone(), outer.below(name, "*", Some(value))));
            } else {
                outer.wrong_type(name, value, "a table", &format!("write [{key}.{name}] and its keys below"));
            }
        }
        tables
    }

    /// The texts under `key`, each with its free name.
    pub fn named_texts(&self, key: &'static str) -> Vec<(String, String)> {
        let outer = self.table(key);
        let mut texts = Vec::new();
        for (name, value) in outer.dict().into_iter().flatten() {
            match value.as_str() {
                Some(text) => texts.push((name.clone(), text.to_owned())),
                None => outer.wrong_type(name, value, "a text", &format!("write \"{name}\" = \"…\", in quotes")),
            }
        }
        texts
    }

    fn below(&self, key: &str, pattern: &'static str, value: Option<&'a Value>) -> Table<'a> {
        let pattern = self.pattern.iter().copied().chain([pattern]).collect();
        let value = value.filter(|value| value.as_dict().is_some());
        Table { context: self.context, path: self.path_of(key), pattern, value, asked: RefCell::default() }
    }

    fn is_refused(&self, key: &str) -> bool {
        let path = self.path_of(key).join(".");
        self.context.errors.borrow().iter().any(|error| error.key == path)
    }

    /// Ends the reading: every key that nobody asked for, and that was not refused, is unknown.
    pub fn finish(self) {
        let asked = self.asked.borrow();
        let known: Vec<&str> = asked.iter().copied().collect();
        let unknown = |key: &&String| !asked.contains(key.as_str()) && !self.is_refused(key);
        for key in self.dict().into_iter().flat_map(|dict| dict.keys()).filter(unknown) {
            let nearest = known.iter().find(|known| is_near(known, key));
            let list = known.join(", ");
            let right = match nearest {
                Some(nearest) => format!("did you mean `{nearest}`? Known here: {list}"),
                None => format!("known here: {list}"),
            };
            self.fault(key, Fault::new("is no key of dtorrent", right));
        }
    }
}

fn texts_from_outside(text: &str) -> Option<Vec<String>> {
    if text.trim_start().starts_with('[') {
        let table: toml::Table = format!("list = {}", text.trim()).parse().ok()?;
        let items = table.get("list").filter(|_| table.len() == 1)?.as_array()?;
        return items.iter().map(|item| item.as_str().map(str::to_owned)).collect();
    }
    Some(text.split(',').map(str::trim).filter(|item| !item.is_empty()).map(str::to_owned).collect())
}

/// Whether one is the other but for two slips of the finger.
fn is_near(known: &str, written: &str) -> bool {
    let known: Vec<char> = known.chars().collect();
    let mut row: Vec<usize> = (0..=known.len()).collect();
    for (i, c) in written.chars().take(64).enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, k) in known.iter().enumerate() {
            let changed = diagonal + usize::from(c != *k);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[known.len()] <= 2.min(known.len() / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_of_the_finger_is_near_and_another_word_is_not() {
        for (known, written, near) in [
            ("password", "pasword", true),
            ("password", "passwrod", true),
            ("interval", "intervall", true),
            ("url", "uri", true),
            ("url", "log", false),
            ("timeout", "sweep", false),
        ] {
            assert_eq!(is_near(known, written), near, "{known} {written}");
        }
    }

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
