//! The public API that version numbers refer to, in `tests/golden/api.txt`.
//!
//! `BLESS=1` rewrites the file; a person reads the difference, and the changelog states what users of the library have
//! to do. The list is read from the source, so that it needs no nightly compiler: every public item of the rooms below,
//! and items of their private modules that `pub use` exports, without bodies and comments. Macros are listed unexpanded.

#![allow(clippy::unwrap_used)] // a test that panics has failed, which is what it is for

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use quote::{ToTokens, quote};
use syn::{Attribute, Fields, ImplItem, Item, Signature, TraitItem, UseTree, Visibility};

/// The rooms under semantic versioning, as in `src/lib.rs` and docs/library.md. The others may change with any version.
const ROOMS: [&str; 6] = ["clients", "manager", "model", "port", "schema", "testing"];

/// Modules in them that are public only for benches and tests of the rTorrent adapter, and for simulated clients.
const INSIDE: [&str; 5] = [
    "clients::rtorrent::calls",
    "clients::rtorrent::jsonrpc",
    "clients::rtorrent::transport",
    "clients::rtorrent::xmlrpc",
    "testing::simulator",
];

const GOLDEN: &str = "tests/golden/api.txt";

#[test]
fn public_items_match_the_golden_file() {
    let mut surface = Surface::default();
    for room in ROOMS {
        surface.room = room;
        surface.types.clear();
        let file = source_of(Path::new("src"), room);
        // Types first, because their methods may be in other files.
        for wants in [Wants::Types, Wants::All] {
            surface.read(&file, room, None, wants);
        }
    }
    let lines = surface.lines.into_iter().filter(|line| !INSIDE.iter().any(|inside| line.starts_with(inside)));
    let text = lines.collect::<Vec<_>>().join("\n") + "\n";
    if std::env::var_os("BLESS").is_some() {
        fs::write(GOLDEN, &text).unwrap();
    }
    let golden = fs::read_to_string(GOLDEN).unwrap_or_default();
    let (now, was): (BTreeSet<&str>, BTreeSet<&str>) = (text.lines().collect(), golden.lines().collect());
    let (gone, new): (Vec<_>, Vec<_>) = (was.difference(&now).collect(), now.difference(&was).collect());
    assert!(gone.is_empty() && new.is_empty(), "gone: {gone:#?}\nnew: {new:#?}\nBLESS=1 rewrites {GOLDEN}");
}

/// Public types without `#[non_exhaustive]`: complete by their nature, or built by users of the library.
#[test]
fn extensible_types_are_non_exhaustive() {
    let golden = fs::read_to_string(GOLDEN).unwrap();
    let has_public_fields = |name: &str| golden.lines().any(|line| line.starts_with(&format!("{name}.")));
    let closed: BTreeSet<&str> = golden
        .lines()
        .filter(|line| !line.contains("#[non_exhaustive]"))
        .filter_map(|line| {
            line.split_once(": enum").or(line.split_once(": struct").filter(|(name, _)| has_public_fields(name)))
        })
        .map(|(name, _)| name)
        .collect();
    let expected: BTreeSet<&str> = CLOSED.iter().copied().collect();
    let too_many: Vec<_> = closed.difference(&expected).collect();
    let too_few: Vec<_> = expected.difference(&closed).collect();
    assert!(too_many.is_empty() && too_few.is_empty(), "closed, and not in the list: {too_many:#?}; {too_few:#?}");
}

const CLOSED: &[&str] = &[
    // Settings: a new field does not break code that uses `new` or `..Parts::default()`.
    "clients::exec::settings::Settings",
    "clients::rtorrent::settings::Settings",
    "model::Holders",
    "model::Limits",
    "model::PageBytes",
    "model::Parts",
    "testing::conformance::Options",
    // Complete by their nature.
    "model::Change",
    "port::CommandDigest",
    "model::Epoch",
    "model::EventId",
    "model::InfoHash",
    "model::RemainingFile",
    "model::OneOrMore",
    "model::Page",
    "model::Part",
    "model::Rev",
    "model::Seq",
    "port::CommandAddress",
    "port::JournalPosition",
    "port::ReplyTo",
    // Reports of the bridge about itself, read as JSON.
    "model::Check",
    "model::Health",
    "model::HooksHealth",
    "model::Info",
    "model::ReportLimits",
    "model::ServerHealth",
    "model::SinkHealth",
    // Arguments and results of a custom store, sink or command source.
    "model::ChangeSet",
    "model::Committed",
    "model::Completion",
    "model::DiffState",
    "model::Hook",
    "clients::rtorrent::signal_file::Received",
    "model::HookSignals",
    "model::JournalEntry",
    "model::NewEvent",
    "model::RunState",
    "model::ServerState",
    "model::SnapshotTorrent",
    "port::Connected",
    "port::EventOrdering",
    "port::Incoming",
    "port::JournalUsage",
    "port::LinkLimits",
    "port::Loaded",
    "port::LoggedCommand",
    "port::LoggedResult",
    "port::Recorded",
    "port::RefusedFilter",
    "port::ResultBacklog",
    "port::RetainedScan",
    "port::SinkProgress",
    "port::SinkState",
    "port::UnsentResult",
    "port::ServerView",
];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Wants {
    Types,
    All,
}

#[derive(Default)]
struct Surface {
    room: &'static str,
    /// Public paths of the room's public types, by their paths in the source.
    types: BTreeMap<String, String>,
    lines: BTreeSet<String>,
}

fn source_of(folder: &Path, module: &str) -> PathBuf {
    let file = folder.join(format!("{module}.rs"));
    if file.is_file() { file } else { folder.join(module).join("mod.rs") }
}

impl Surface {
    /// Reads the public items of a file under `path`: those with these names, or all.
    fn read(&mut self, file: &Path, path: &str, names: Option<&BTreeSet<String>>, wants: Wants) {
        let source = fs::read_to_string(file).unwrap();
        let parsed = syn::parse_file(&source).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        let folder = match file.file_stem().is_some_and(|stem| stem == "mod") {
            true => file.parent().unwrap().to_owned(),
            false => file.with_extension(""),
        };
        let mut given: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for item in &parsed.items {
            if let Item::Use(item) = item
                && is_public(&item.vis)
            {
                collect(&item.tree, &mut Vec::new(), &mut given);
            }
        }
        let is_given =
            |name: &syn::Ident| names.is_none_or(|names| names.contains(&name.to_string()) || names.contains("*"));
        for item in &parsed.items {
            match item {
                Item::Mod(item) if is_test(&item.attrs) || item.content.is_some() => {}
                Item::Mod(item) => {
                    let name = item.ident.to_string();
                    let below = source_of(&folder, &name);
                    if is_public(&item.vis) && names.is_none() {
                        self.read(&below, &format!("{path}::{name}"), None, wants);
                    } else {
                        let given = given.get(&name).cloned().unwrap_or_default();
                        self.read(&below, path, Some(&given), wants);
                    }
                }
                Item::Struct(item) if is_public(&item.vis) && is_given(&item.ident) => {
                    self.add_type(path, &item.ident, "struct", &item.attrs);
                    self.add_fields(&format!("{path}::{}", item.ident), &item.fields, false);
                }
                Item::Enum(item) if is_public(&item.vis) && is_given(&item.ident) => {
                    self.add_type(path, &item.ident, "enum", &item.attrs);
                    for variant in &item.variants {
                        let name = format!("{path}::{}::{}", item.ident, variant.ident);
                        self.lines.insert(name.clone());
                        self.add_fields(&name, &variant.fields, true);
                    }
                }
                Item::Trait(item) if is_public(&item.vis) && is_given(&item.ident) => {
                    self.add_type(path, &item.ident, "trait", &item.attrs);
                    for method in &item.items {
                        let TraitItem::Fn(method) = method else { continue };
                        let what = if method.default.is_some() { "has a default" } else { "is to be written" };
                        self.lines.insert(format!("{path}::{}::{} ({what})", item.ident, signature(&method.sig)));
                    }
                }
                Item::Fn(item) if is_public(&item.vis) && is_given(&item.sig.ident) => {
                    self.lines.insert(format!("{path}::{}{}", signature(&item.sig), marks(&item.attrs)));
                }
                Item::Type(item) if is_public(&item.vis) && is_given(&item.ident) => {
                    self.lines.insert(format!("{path}::{}: type = {}", item.ident, text(&item.ty)));
                }
                Item::Const(item) if is_public(&item.vis) && is_given(&item.ident) => {
                    self.lines.insert(format!("{path}::{}: const {}", item.ident, text(&item.ty)));
                }
                Item::Macro(item) if !item.mac.path.is_ident("proptest") && !is_test(&item.attrs) => {
                    self.add_macro(path, item, is_given);
                }
                Item::Impl(item) if wants == Wants::All && !is_test(&item.attrs) => self.add_impl(item),
                _ => {}
            }
        }
        let elsewhere = given.iter().filter(|(from, _)| from.contains("::"));
        for (from, names) in elsewhere.filter(|_| names.is_none()) {
            self.lines.extend(names.iter().map(|name| format!("{path}::{name}: use {from}")));
        }
    }

    fn add_type(&mut self, path: &str, name: &syn::Ident, what: &str, attributes: &[Attribute]) {
        let name = name.to_string();
        self.lines.insert(format!("{path}::{name}: {what}{}", marks(attributes)));
        self.types.insert(name.clone(), format!("{path}::{name}"));
    }

    fn add_fields(&mut self, of: &str, fields: &Fields, all: bool) {
        for (place, field) in fields.iter().enumerate().filter(|(_, field)| all || is_public(&field.vis)) {
            let name = field.ident.as_ref().map_or_else(|| place.to_string(), ToString::to_string);
            self.lines.insert(format!("{of}.{name}: {}", text(&field.ty)));
        }
    }

    /// Lists a macro, one part a line, so that a difference is small.
    fn add_macro(&mut self, path: &str, item: &syn::ItemMacro, is_given: impl Fn(&syn::Ident) -> bool) {
        let tokens = text(&item.mac.tokens);
        if let Some(name) = &item.ident {
            if tokens.contains("pub ") {
                self.lines.insert(format!("{path}: macro {name} {tokens}"));
            }
            return;
        }
        let name = text(&item.mac.path);
        self.lines.extend(tokens.split(", ").map(|part| format!("{path}: {name}! {}", part.trim())));
        let made =
            tokens.split(|c: char| !c.is_alphanumeric()).filter_map(|word| syn::parse_str::<syn::Ident>(word).ok());
        let made: Vec<String> = made.filter(is_given).map(|name| name.to_string()).collect();
        self.types.extend(made.into_iter().map(|name| (name.clone(), format!("{path}::{name}"))));
    }

    fn add_impl(&mut self, item: &syn::ItemImpl) {
        let syn::Type::Path(of) = &*item.self_ty else { return };
        let Some(last) = of.path.segments.last() else { return };
        let Some(path) = self.types.get(&last.ident.to_string()).cloned() else { return };
        if let Some((_, made_of, _)) = &item.trait_ {
            self.lines.insert(format!("{path}: impl {}{}", text(made_of), marks(&item.attrs)));
            return;
        }
        for member in &item.items {
            match member {
                ImplItem::Fn(method) if is_public(&method.vis) => {
                    self.lines.insert(format!("{path}::{}{}", signature(&method.sig), marks(&method.attrs)));
                }
                ImplItem::Const(constant) if is_public(&constant.vis) => {
                    self.lines.insert(format!("{path}::{}: const {}", constant.ident, text(&constant.ty)));
                }
                _ => {}
            }
        }
    }
}

fn is_public(visibility: &Visibility) -> bool {
    matches!(visibility, Visibility::Public(_))
}

fn is_test(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| text(attribute) == "#[cfg(test)]")
}

/// Returns the re-exports of each module.
fn collect(tree: &UseTree, path: &mut Vec<String>, given: &mut BTreeMap<String, BTreeSet<String>>) {
    let mut add = |path: &[String], name: String| {
        let from = path.strip_prefix(&["self".to_owned()]).unwrap_or(path).join("::");
        given.entry(from).or_default().insert(name);
    };
    match tree {
        UseTree::Path(tree) => {
            path.push(tree.ident.to_string());
            collect(&tree.tree, path, given);
            path.pop();
        }
        UseTree::Group(group) => group.items.iter().for_each(|tree| collect(tree, path, given)),
        UseTree::Name(name) => add(path, name.ident.to_string()),
        UseTree::Rename(name) => add(path, name.ident.to_string()),
        UseTree::Glob(_) => add(path, "*".to_owned()),
    }
}

/// Returns the attributes that are part of the public API.
fn marks(attributes: &[Attribute]) -> String {
    let felt =
        |attribute: &&Attribute| ["cfg", "derive", "non_exhaustive"].iter().any(|name| attribute.path().is_ident(name));
    attributes.iter().filter(felt).map(|attribute| format!(" {}", text(attribute))).collect()
}

fn signature(signature: &Signature) -> String {
    let (name, generics) = (&signature.ident, &signature.generics);
    let (inputs, output, bounds) = (&signature.inputs, &signature.output, &signature.generics.where_clause);
    let is_async = &signature.asyncness;
    let is_const = &signature.constness;
    text(&quote!(#name #generics (#inputs) #output #bounds #is_const #is_async))
}

/// Returns tokens as source text with the usual spaces.
fn text(tokens: &impl ToTokens) -> String {
    let mut text = tokens.to_token_stream().to_string();
    for (from, to) in [
        (" :: ", "::"),
        (":: ", "::"),
        (" ::", "::"),
        (" < ", "<"),
        ("< ", "<"),
        (" <", "<"),
        (" >", ">"),
        (" ,", ","),
        (",)", ")"),
        (" :", ":"),
        ("& ", "&"),
        ("# [", "#["),
        (" (", "("),
        ("( ", "("),
        (" )", ")"),
        (" [", "["),
        (" ]", "]"),
        ("->(", "-> ("),
        (" ;", ";"),
        (" !", "!"),
        (" ?", "?"),
        (" .", "."),
    ] {
        text = text.replace(from, to);
    }
    text.replace("->", " -> ").replace("  ", " ").replace('\n', " ")
}
