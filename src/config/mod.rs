//! The config: one TOML file over defaults, under environment variables, under command-line flags.
//!
//! ```text
//! file ──┐                                       keys: names, forms, defaults, docs
//! env  ──┼─ figment: the higher layer wins ─┐      │                └─► schema, example
//! flags ─┘                                  └─► read: typed values ─► servers, brokers, webhooks ─► checked: Config
//! ```
//!
//! A value is parsed once, where its table is read, into the type that uses it: the settings of an
//! adapter go from here to the adapter unchanged.
//!
//! Invariants: a [`Config`] is valid; [`load`] reports every error, each with its place, its key, what
//! is wrong and what would be right; no secret is in an error or in a `Debug`. Relative paths start at
//! the working directory. Reads files, changes nothing, opens no connection.

mod brokers;
mod checked;
mod choose;
mod env;
mod error;
mod file;
pub mod keys;
mod log;
mod login;
mod read;
mod root;
mod schema;
mod secret;
mod servers;
mod values;
mod warnings;
mod webhooks;

use std::ffi::OsString;
use std::path::PathBuf;

use figment::Figment;
use figment::value::Value;

pub use checked::{Broker, BrokerKind, Client, Config, Hooks, Http, Server, Webhook};
pub use choose::Rights;
pub use env::Layer as Flag;
pub use error::{ConfigError, ConfigErrors, Place};
pub use log::{Log, LogFormat};
pub use schema::schema;
pub use warnings::warnings;

use crate::model::{ANYWHERE_CHARS_MIN, Mask};
use file::File;
use read::{Context, Notes, Table};

const FILE_NAME: &str = "dtorrent.toml";

/// The sources of a config.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// The file of `--config`; no other is searched for.
    pub file: Option<PathBuf>,
    /// Flags that set keys.
    pub flags: Vec<Flag>,
    /// The whole environment; variables without the prefix are skipped.
    pub variables: Vec<(OsString, OsString)>,
    /// Directory in which the search for a file begins; the working directory if empty.
    pub folder: PathBuf,
}

impl Sources {
    /// Returns the sources of this process.
    pub fn of_process(file: Option<PathBuf>, flags: Vec<Flag>) -> Self {
        Self { file, flags, variables: std::env::vars_os().collect(), folder: PathBuf::new() }
    }

    fn variable(&self, name: &str) -> Option<PathBuf> {
        let text = self.variables.iter().find(|(variable, _)| variable == name).map(|(_, text)| text)?;
        // An empty variable counts as unset (XDG Base Directory Specification).
        (!text.is_empty()).then(|| PathBuf::from(text))
    }

    /// Returns the file given by flag or variable; it has to exist.
    fn named(&self) -> Option<PathBuf> {
        self.file.clone().or_else(|| self.variable("DTORRENT_CONFIG"))
    }

    /// Returns where a file is searched for: the first that exists is used.
    fn places(&self) -> Vec<PathBuf> {
        let user = self.variable("XDG_CONFIG_HOME").or_else(|| self.variable("HOME").map(|home| home.join(".config")));
        let user = user.map(|folder| folder.join("dtorrent").join(FILE_NAME));
        let system = PathBuf::from("/etc/dtorrent").join(FILE_NAME);
        [self.folder.join(FILE_NAME)].into_iter().chain(user).chain([system]).collect()
    }

    fn find(&self) -> Option<PathBuf> {
        // A path that cannot be examined counts as existing, so that reading it reports why.
        self.named().or_else(|| self.places().into_iter().find(|path| path.try_exists().unwrap_or(true)))
    }
}

/// Finds, reads and checks the config.
///
/// # Errors
/// All errors of the config at once.
pub fn load(sources: &Sources) -> Result<Config, ConfigErrors> {
    let path = sources.find();
    // After a syntax error the other layers are not checked: what they lack may be in the file.
    let file = path.as_deref().map(File::read).transpose().map_err(ConfigErrors)?;
    read_layers(file.as_ref(), sources)
}

/// Checks `bytes` as the only source; `name` is the path in errors.
///
/// # Errors
/// As for [`load`].
pub fn parse(name: &std::path::Path, bytes: &[u8]) -> Result<Config, ConfigErrors> {
    let file = File::parse(name, bytes).map_err(ConfigErrors)?;
    read_layers(Some(&file), &Sources::default())
}

fn read_layers(file: Option<&File>, sources: &Sources) -> Result<Config, ConfigErrors> {
    let mut figment = Figment::new();
    if let Some(file) = file {
        figment = figment.merge(file);
    }
    // Variables are matched with the keys of the file, so the file is merged first.
    let below = whole(&figment).into_dict().unwrap_or_default();
    let (layers, mut errors) = env::layers(&sources.variables, &below);
    // The later layer wins: flags over variables over the file.
    for layer in layers.iter().chain(&sources.flags) {
        figment = figment.merge(layer);
    }
    let tree = whole(&figment);
    let context = Context::new(figment, file);
    let config = root::config(&Table::root(&context, &tree), file.map(|file| file.path().to_owned()));
    let Notes { errors: noted, warnings, mut mask } = context.into_notes();
    config.iter().for_each(|config| mask_variables(config, sources, &mut mask));
    errors.extend(noted);
    // Only without other errors, which may be the reason why there is no server.
    if errors.is_empty() && config.as_ref().is_some_and(|config| config.servers.is_empty()) {
        errors.push(nothing_to_monitor(file, sources));
    }
    errors.sort_by_key(|error| error.place.line().unwrap_or(usize::MAX));
    match config {
        Some(config) if errors.is_empty() => Ok(Config { weak_secrets: warnings, mask: mask.built(), ..config }),
        _ => Err(ConfigErrors(errors)),
    }
}

/// Adds the variables that programs get by name: mostly a login of theirs.
fn mask_variables(config: &Config, sources: &Sources, mask: &mut Mask) {
    for server in config.servers.values() {
        let Client::Exec(program) = &server.client else { continue };
        let is_passed = |name: &OsString| program.environment.iter().any(|passed| *name == **passed);
        let values =
            sources.variables.iter().filter(|(name, _)| is_passed(name)).filter_map(|(_, value)| value.to_str());
        // Others are `1`, `debug` or `/downloads`, and in many texts.
        let is_secret = |value: &&str| value.chars().count() >= ANYWHERE_CHARS_MIN && !value.starts_with('/');
        values.filter(is_secret).for_each(|value| mask.add(value));
    }
}

fn whole(figment: &Figment) -> Value {
    // The providers of this module never fail, and the empty path is the whole tree.
    figment.find_value("").unwrap_or_else(|_| Value::from(figment::value::Dict::new()))
}

fn nothing_to_monitor(file: Option<&File>, sources: &Sources) -> ConfigError {
    let right = "write a table [servers.NAME] with url = \"unix:///path/of/rpc.sock\", \
                 or set DTORRENT_SERVERS__NAME__URL";
    let (place, wrong) = match file {
        Some(file) => {
            let place = Place::File { path: file.path().to_owned(), line: None };
            (place, "no server is given, so there is nothing to monitor".to_owned())
        }
        None => {
            let places: Vec<String> = sources.places().iter().map(|path| path.display().to_string()).collect();
            (Place::Nowhere, format!("no file was found (searched for {}), and no server is given", places.join(", ")))
        }
    };
    ConfigError { place, key: String::new(), wrong, right: right.to_owned() }
}
