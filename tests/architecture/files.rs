//! Which source file uses which, read from the code.
//!
//! A path is followed to the file that defines its item, also through re-exports: a module that re-exports items of its
//! own submodules is a facade and does not use them. Code under `#[cfg(test)]` is skipped, because tests may use any
//! room. A method call names no file, so it is not detected.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use quote::ToTokens;
use syn::{Attribute, Item, Visibility};

/// The segments of a path.
type Segments = Vec<String>;

/// A source file, and what it uses.
#[derive(Default)]
struct Module {
    file: PathBuf,
    /// Where the module is in the crate.
    path: Segments,
    /// Names that the file defines.
    defined: BTreeSet<String>,
    /// Names that the file imports or re-exports, and their paths.
    imported: BTreeMap<String, Segments>,
    /// Modules that the file imports or re-exports with a glob.
    globs: Vec<Segments>,
    /// Paths that the file names, except re-exports of its own submodules.
    used: BTreeSet<Segments>,
}

/// The source files of the crate.
pub struct Files {
    modules: BTreeMap<Segments, Module>,
}

impl Files {
    /// Reads the library in `lib.rs` with all its modules, and the binary in `main.rs`.
    pub fn read(src: &Path) -> Self {
        let mut files = Self { modules: BTreeMap::new() };
        files.read_module(&src.join("lib.rs"), src, Vec::new());
        // The binary has no modules. The name sets it apart from the library.
        files.read_module(&src.join("main.rs"), src, vec!["main".to_owned()]);
        files
    }

    /// Returns, for each file, the files that it uses, with the paths by which it does.
    pub fn uses(&self) -> BTreeMap<&Path, BTreeMap<&Path, BTreeSet<String>>> {
        let mut uses: BTreeMap<&Path, BTreeMap<&Path, BTreeSet<String>>> = BTreeMap::new();
        for module in self.modules.values() {
            let of_file = uses.entry(&module.file).or_default();
            for path in &module.used {
                if let Some(target) = self.file_of(path, 0).filter(|target| *target != module.file) {
                    of_file.entry(target).or_default().insert(path.join("::"));
                }
            }
        }
        uses
    }

    fn read_module(&mut self, file: &Path, folder: &Path, path: Segments) {
        let text = fs::read_to_string(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        let syntax = syn::parse_file(&text).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        let mut module = Module { file: file.to_owned(), path: path.clone(), ..Module::default() };
        // Items may be used above their definition.
        syntax.items.iter().for_each(|item| module.declare(item));
        syntax.items.iter().for_each(|item| module.note_item(item, 0));
        for item in &syntax.items {
            if let Item::Mod(child) = item
                && child.content.is_none()
                && !is_test(&child.attrs)
            {
                let name = child.ident.to_string();
                let child_folder = folder.join(&name);
                let flat = folder.join(format!("{name}.rs"));
                let child_file = if flat.is_file() { flat } else { child_folder.join("mod.rs") };
                self.read_module(&child_file, &child_folder, [&path[..], &[name]].concat());
            }
        }
        self.modules.insert(path, module);
    }

    /// Returns the file that defines what a path names, or `None` if it is not of this crate.
    fn file_of(&self, path: &[String], depth: usize) -> Option<&Path> {
        // Two modules may import all names of each other.
        if depth > 8 {
            return None;
        }
        let known = (0..=path.len()).rev().find(|length| self.modules.contains_key(&path[..*length]))?;
        let module = &self.modules[&path[..known]];
        let Some(name) = path.get(known) else { return Some(&module.file) };
        if module.defined.contains(name) {
            return Some(&module.file);
        }
        if let Some(origin) = module.imported.get(name) {
            let whole = [origin, &path[known + 1..]].concat();
            return if whole == path { None } else { self.file_of(&whole, depth + 1) };
        }
        module.globs.iter().find_map(|glob| self.file_of(&[glob, &path[known..]].concat(), depth + 1))
    }
}

impl Module {
    /// Records what an item defines or imports.
    fn declare(&mut self, item: &Item) {
        if is_test(attributes(item)) {
            return;
        }
        let name = match item {
            Item::Const(item) => Some(&item.ident),
            Item::Enum(item) => Some(&item.ident),
            Item::Fn(item) => Some(&item.sig.ident),
            Item::Static(item) => Some(&item.ident),
            Item::Struct(item) => Some(&item.ident),
            Item::Trait(item) => Some(&item.ident),
            Item::Type(item) => Some(&item.ident),
            Item::Macro(item) => item.ident.as_ref(),
            Item::Mod(item) if item.content.is_some() => Some(&item.ident),
            Item::Use(item) => {
                let is_handed_on = !matches!(item.vis, Visibility::Inherited);
                let tokens = tokens_of(&item.tree);
                for import in paths_in(&tokens) {
                    self.import(&import, is_handed_on);
                }
                None
            }
            _ => None,
        };
        self.defined.extend(name.map(|name| name.to_string()));
    }

    fn import(&mut self, import: &NamedPath, is_handed_on: bool) {
        let Some(path) = self.absolute(&import.segments, 0) else { return };
        if import.is_glob {
            self.globs.push(path.clone());
        } else if let Some(name) = import.alias.as_ref().or(import.segments.last()) {
            self.imported.insert(name.clone(), path.clone());
        }
        let is_of_child = path.len() > self.path.len() && path.starts_with(&self.path);
        if !(is_handed_on && is_of_child) {
            self.used.insert(path);
        }
    }

    /// Records the paths in an item. `depth`: number of inline modules around it.
    fn note_item(&mut self, item: &Item, inner: usize) {
        match item {
            item if is_test(attributes(item)) => {}
            // At the top of the file `declare` has read it.
            Item::Use(_) if inner == 0 => {}
            Item::Mod(module) => {
                let items = module.content.iter().flat_map(|(_, items)| items);
                items.for_each(|item| self.note_item(item, inner + 1));
            }
            _ => {
                for NamedPath { segments, .. } in paths_in(&tokens_of(item)) {
                    // A plain identifier may be a variable that is called like a submodule. If it names something
                    // from another file, it is imported.
                    if segments.len() > 1 || self.imported.contains_key(&segments[0]) {
                        self.used.extend(self.absolute(&segments, inner));
                    }
                }
            }
        }
    }

    /// Returns a path from the root of the crate, or `None` if it leads out of the crate.
    fn absolute(&self, segments: &[String], inner: usize) -> Option<Segments> {
        let (first, rest) = segments.split_first()?;
        match first.as_str() {
            "crate" => Some(rest.to_vec()),
            "dtorrent" if self.path == ["main"] => Some(rest.to_vec()),
            "self" => Some([&self.path[..], rest].concat()),
            "super" => {
                let supers = segments.iter().take_while(|segment| *segment == "super").count();
                // In an inline module the first `super` leads to the file itself.
                let base = self.path.len().checked_sub(supers.saturating_sub(inner))?;
                Some([&self.path[..base], &segments[supers..]].concat())
            }
            name => match self.imported.get(name) {
                Some(origin) => Some([origin, rest].concat()),
                // A submodule, something defined in the file, or something that a glob may bring in.
                None => Some([&self.path[..], segments].concat()),
            },
        }
    }
}

fn attributes(item: &Item) -> &[Attribute] {
    match item {
        Item::Const(item) => &item.attrs,
        Item::Enum(item) => &item.attrs,
        Item::Fn(item) => &item.attrs,
        Item::Impl(item) => &item.attrs,
        Item::Macro(item) => &item.attrs,
        Item::Mod(item) => &item.attrs,
        Item::Static(item) => &item.attrs,
        Item::Struct(item) => &item.attrs,
        Item::Trait(item) => &item.attrs,
        Item::Type(item) => &item.attrs,
        Item::Use(item) => &item.attrs,
        _ => &[],
    }
}

fn is_test(attributes: &[Attribute]) -> bool {
    attributes
        .iter()
        .any(|attribute| attribute.path().is_ident("cfg") && tokens_of(attribute).iter().any(|token| token == "test"))
}

/// A path in the code. In a `use` it may have an alias, or end with `*`.
#[derive(Debug, PartialEq)]
struct NamedPath {
    segments: Segments,
    alias: Option<String>,
    is_glob: bool,
}

/// Returns every path in the code, groups such as `a::{b, c::d}` taken apart. A plain identifier is a path too.
fn paths_in(tokens: &[String]) -> Vec<NamedPath> {
    let mut paths = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        match is_identifier(&tokens[at]) {
            true => at = read_path(tokens, at, Vec::new(), &mut paths),
            false => at += 1,
        }
    }
    paths
}

/// Reads the path that begins at a token, below `prefix`; returns where it ends.
fn read_path(tokens: &[String], mut at: usize, prefix: Segments, paths: &mut Vec<NamedPath>) -> usize {
    let token = |at: usize| tokens.get(at).map_or("", String::as_str);
    let mut path = NamedPath { segments: prefix, alias: None, is_glob: false };
    loop {
        match token(at) {
            "*" => path.is_glob = true,
            // `a::{self}` is `a`.
            "self" if !path.segments.is_empty() => {}
            name => path.segments.push(name.to_owned()),
        }
        at += 1;
        if token(at) != "::" {
            break;
        }
        at += 1;
        if token(at) == "{" {
            at += 1;
            while !matches!(token(at), "}" | "") {
                match token(at) {
                    "," => at += 1,
                    _ => at = read_path(tokens, at, path.segments.clone(), paths),
                }
            }
            return at + 1;
        }
        // A turbofish, `a::<B>`, ends the path.
        if !(is_identifier(token(at)) || token(at) == "*") {
            break;
        }
    }
    if token(at) == "as" {
        path.alias = Some(token(at + 1).to_owned());
        at += 2;
    }
    paths.push(path);
    at
}

fn is_identifier(token: &str) -> bool {
    token.starts_with(|first: char| first.is_alphabetic() || first == '_')
}

/// Splits code into identifiers and punctuation. Literals are left out, `::` is one token.
fn tokens_of(code: &impl ToTokens) -> Vec<String> {
    let text = code.to_token_stream().to_string();
    let mut tokens = Vec::new();
    let mut rest = text.as_str();
    while let Some(first) = rest.chars().next() {
        let is_word = |c: char| c.is_alphanumeric() || c == '_';
        let length = match first {
            '"' => string_length(rest, 1),
            'b' | 'c' if rest[1..].starts_with('"') => 1 + string_length(&rest[1..], 1),
            'r' | 'b' if raw_string_length(rest).is_some() => raw_string_length(rest).unwrap_or(1),
            '\'' => char_length(rest),
            ':' if rest.starts_with("::") => 2,
            first if is_word(first) => rest.find(|c| !is_word(c)).unwrap_or(rest.len()),
            first => first.len_utf8(),
        };
        let (token, after) = rest.split_at(length.min(rest.len()));
        if !token.starts_with(['"', '\'']) && !token.contains('"') && !token.trim().is_empty() {
            tokens.push(token.to_owned());
        }
        rest = after;
    }
    tokens
}

/// Returns the length of a string literal whose content begins at `start`.
fn string_length(text: &str, start: usize) -> usize {
    let mut is_escaped = false;
    let end = text[start..].find(|c| {
        let is_end = c == '"' && !is_escaped;
        is_escaped = c == '\\' && !is_escaped;
        is_end
    });
    end.map_or(text.len(), |end| start + end + 1)
}

/// Returns the length of a raw string literal, `r#"…"#` or `br"…"`; `None` if it is none.
fn raw_string_length(text: &str) -> Option<usize> {
    let after = text.strip_prefix('b').unwrap_or(text).strip_prefix('r')?;
    let hashes = after.len() - after.trim_start_matches('#').len();
    let content = after[hashes..].strip_prefix('"')?;
    let end = format!("\"{}", "#".repeat(hashes));
    Some(text.len() - content.len() + content.find(&end)? + end.len())
}

/// Returns the length of a character literal or a lifetime.
fn char_length(text: &str) -> usize {
    let mut characters = text.char_indices().skip(1);
    match (characters.next(), characters.next()) {
        (Some((_, '\\')), Some((second, _))) => {
            text[second + 1..].find('\'').map_or(text.len(), |end| second + end + 2)
        }
        (Some(_), Some((second, '\''))) => second + 1,
        _ => 1,
    }
}

#[test]
fn paths_are_read_from_code_of_any_form() {
    let code = r##"
        fn f<'a>(x: &'a super::A) -> crate::b::B<c::C> {
            use self::d::{self, E as F, g::{H, *}};
            tracing::info!(text = %crate::i::j("k::l", 'm', r#"n::"o"#), '\'', b"p::q\"");
            v.collect::<Vec<r::S>>()
        }
    "##;
    let code: syn::File = syn::parse_str(code).unwrap();
    let paths: Vec<String> = paths_in(&tokens_of(&code))
        .into_iter()
        .filter(|path| path.segments.len() > 1)
        .map(|path| path.segments.join("::") + if path.is_glob { "::*" } else { "" })
        .collect();
    let expected = [
        "super::A",
        "crate::b::B",
        "c::C",
        "self::d",
        "self::d::E",
        "self::d::g::H",
        "self::d::g::*",
        "tracing::info",
        "crate::i::j",
        "r::S",
    ];
    assert_eq!(paths, expected);
}
