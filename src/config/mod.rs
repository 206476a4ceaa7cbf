//! The config: one TOML file over defaults, under environment variables, under command-line flags.
//!
//! ```text
//! file ──┐
//! env  ──┼─ figment: the higher layer wins ─► read: typed values, all faults ─► checked: Config
//! flags ─┘
//! ```
//!
//! What must hold: whoever has a [`Config`] has a valid one; [`load`] tells every fault, each with
//! where it was written, the key, what is wrong and what would be right; no secret is in a fault or
//! in a `Debug`. Relative paths are relative to the working directory.
//!
//! Reads files, changes nothing, opens no connection.

mod brokers;
mod checked;
mod choose;
mod env;
mod error;
mod file;
mod formats;
pub mod keys;
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

pub use checked::{Broker, BrokerKind, Client, Config, Hooks, Http, Log, LogFormat, Server, Webhook};
pub use choose::Rights;
pub use env::Layer as Flag;
pub use error::{ConfigError, ConfigErrors, Place};
pub use keys::{INTERVAL_MIN, keys};
pub use schema::schema;
pub use warnings::warnings;

use file::File;
use read::{Context, Table};

const FILE_NAME: &str = "dtorrent.toml";

/// Where a config comes from.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// `--config`: this file and no other.
    pub file: Option<PathBuf>,
    pub flags: Vec<Flag>,
    /// The environment; all of it, the rest is skipped.
    pub variables: Vec<(OsString, OsString)>,
    /// Where the search for a file begins; the working directory if empty.
    pub folder: PathBuf,
}

impl Sources {
    /// Those of this process.
    pub fn of_process(file: Option<PathBuf>, flags: Vec<Flag>) -> Self {
        Self { file, flags, variables: std::env::vars_os().collect(), folder: PathBuf::new() }
    }

    fn variable(&self, name: &str) -> Option<PathBuf> {
        let text = self.variables.iter().find(|(variable, _)| variable == name).map(|(_, text)| text)?;
        (!text.is_empty()).then(|| PathBuf::from(text))
    }

    /// The file that was asked for; it has to be there.
    fn named(&self) -> Option<PathBuf> {
        self.file.clone().or_else(|| self.variable("DTORRENT_CONFIG"))
    }

    /// Where to look if none was asked for: the first that is there.
    fn places(&self) -> Vec<PathBuf> {
        let user = self.variable("XDG_CONFIG_HOME").or_else(|| self.variable("HOME").map(|home| home.join(".config")));
        let user = user.map(|folder| folder.join("dtorrent").join(FILE_NAME));
        let system = PathBuf::from("/etc/dtorrent").join(FILE_NAME);
        [self.folder.join(FILE_NAME)].into_iter().chain(user).chain([system]).collect()
    }

    fn find(&self) -> Option<PathBuf> {
        // What cannot even be looked at is taken for there: reading it says why not.
        self.named().or_else(|| self.places().into_iter().find(|path| path.try_exists().unwrap_or(true)))
    }
}

/// A config and where it came from.
#[derive(Clone, Debug)]
pub struct Loaded {
    pub config: Config,
    /// `None`: the environment said it all.
    pub file: Option<PathBuf>,
}

/// Finds, reads and checks the config.
///
/// # Errors
/// Everything that is wrong with it, at once.
pub fn load(sources: &Sources) -> Result<Loaded, ConfigErrors> {
    let path = sources.find();
    // Without the file the other layers are not read either: what they lack may well be in it.
    let file = path.as_deref().map(File::read).transpose().map_err(ConfigErrors)?;
    let config = read_layers(file.as_ref(), sources)?;
    Ok(Loaded { config, file: path })
}

/// Checks `bytes` as if they were the only source.
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
    let below = whole(&figment).into_dict().unwrap_or_default();
    let (layers, mut errors) = env::layers(&sources.variables, &below);
    for layer in layers.iter().chain(&sources.flags) {
        figment = figment.merge(layer);
    }
    let tree = whole(&figment);
    let context = Context::new(figment, file);
    let config = root::config(&Table::root(&context, &tree));
    errors.extend(context.into_errors());
    if errors.is_empty() && config.as_ref().is_some_and(|config| config.servers.is_empty()) {
        errors.push(nothing_to_monitor(file, sources));
    }
    errors.sort_by_key(|error| error.place.line().unwrap_or(usize::MAX));
    match config {
        Some(config) if errors.is_empty() => Ok(config),
        _ => Err(ConfigErrors(errors)),
    }
}

fn whole(figment: &Figment) -> Value {
    // The providers of this module never fail, and the path of nothing is everything.
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
            (Place::Nowhere, format!("no file was found (looked for {}), and no server is given", places.join(", ")))
        }
    };
    ConfigError { place, key: String::new(), wrong, right: right.to_owned() }
}
