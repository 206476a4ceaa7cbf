//! The keys of a config.

use std::collections::BTreeSet;

use dtorrent::config::keys::{Form, ROOT, Section};

/// Returns every key of the config, with `*` for the name of a server, broker or webhook: `servers.*.url`.
pub fn keys() -> BTreeSet<String> {
    fn collect(section: &Section, path: &str, keys: &mut BTreeSet<String>) {
        keys.extend(section.names().iter().map(|name| format!("{path}{name}")));
        for key in section.iter() {
            match key.form {
                Form::Section(below) => collect(below, &format!("{path}{}.", key.name), keys),
                Form::Named(forms) => {
                    forms.iter().for_each(|form| collect(form, &format!("{path}{}.*.", key.name), keys))
                }
                _ => {}
            }
        }
    }
    let mut keys = BTreeSet::new();
    collect(&ROOT, "", &mut keys);
    keys
}
