//! The user and the password of a peer: in keys of their own, or in its URL.
//!
//! A login is taken out of a URL before anything else is made of that, because URLs are shown in logs, in `check` and
//! with the health of a sink (I14).

use std::cmp::Ordering;

use percent_encoding::percent_decode_str;
use secrecy::{ExposeSecret as _, SecretString};

use super::read::{Fault, Table};
use super::secret::{note_secret, secret, warn_of_readers};

/// The user and the password in a URL, decoded.
#[derive(Clone, Debug)]
pub struct UrlLogin {
    user: String,
    password: Option<SecretString>,
}

impl UrlLogin {
    /// Returns the only word of a login without a password.
    pub fn word(&self) -> Option<SecretString> {
        self.password.is_none().then(|| self.user.as_str().into())
    }

    /// Whether both log in alike.
    pub fn is_same(&self, other: &Self) -> bool {
        let password = |login: &Self| login.password.as_ref().map(|password| password.expose_secret().to_owned());
        (&self.user, password(self)) == (&other.user, password(other))
    }
}

/// Takes the login out of a URL.
///
/// The text is not parsed otherwise: what is no URL comes back unchanged, for its own error.
///
/// # Errors
/// The login cannot be told from the rest, or is not UTF-8 when it is decoded. Errors never repeat the text.
fn split(text: &str) -> Result<(String, Option<UrlLogin>), Fault> {
    let Some((scheme, rest)) = text.split_once("://") else { return Ok((text.to_owned(), None)) };
    let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    let Some((login, host)) = authority.rsplit_once('@') else {
        // `user:pa/ss@host`, where the part before the slash reads as a host with a port.
        let is_port = |port: &str| port.is_empty() || port.bytes().all(|byte| byte.is_ascii_digit());
        let is_cut = authority.rsplit_once(':').is_some_and(|(host, port)| !host.ends_with(']') && !is_port(port));
        if is_cut && path.contains('@') {
            let right = "write `/` as %2F, `?` as %3F and `#` as %23, or use `username` and `password_file`";
            return Err(Fault::new("contains a login with `/`, `?` or `#`", right));
        }
        return Ok((text.to_owned(), None));
    };
    let (user, password) = login.split_once(':').map_or((login, None), |(user, password)| (user, Some(password)));
    let decoded = |text: &str| match percent_decode_str(text).decode_utf8() {
        Ok(text) => Ok(text.into_owned()),
        Err(_) => Err(Fault::new("contains a login that is not UTF-8", "write it in `username` and `password_file`")),
    };
    let password = password.filter(|password| !password.is_empty()).map(decoded).transpose()?;
    let login = UrlLogin { user: decoded(user)?, password: password.map(SecretString::from) };
    let is_given = !login.user.is_empty() || login.password.is_some();
    Ok((format!("{scheme}://{host}{path}"), is_given.then_some(login)))
}

/// Returns a URL without its login, which goes to `login`; see [`split`].
pub fn take_login(text: &str, login: &mut Option<UrlLogin>) -> Result<String, Fault> {
    let (text, found) = split(text)?;
    *login = found;
    Ok(text)
}

/// Reads `username` and `password`, one or both of which may be in the `url` instead.
pub fn login(table: &Table<'_>, in_url: Option<UrlLogin>) -> (Option<String>, Option<SecretString>) {
    let (user, password) = in_url.map_or((None, None), |login| (Some(login.user), login.password));
    if let Some(password) = &password {
        if let Some(config) = table.file_with("url") {
            warn_of_readers(table, "url", &config);
        }
        note_secret(table, "url", password.expose_secret());
    }
    let username = one_of(table, &["username"], table.text("username"), user.filter(|user| !user.is_empty()));
    let password = one_of(table, &["password", "password_file"], secret(table, "password"), password);
    if let (Some(username), Some(password)) = (&username, &password) {
        table.mask(|mask| mask.add_login(username, password.expose_secret()));
    }
    if password.is_some() && username.is_none() && !table.has("username") {
        table.missing("username", "a password goes with a username: write both");
    }
    (username, password)
}

/// Returns what is given. Both at once are an error, unless one comes from a higher layer: that one wins.
fn one_of<T>(table: &Table<'_>, keys: &[&str], in_keys: Option<T>, in_url: Option<T>) -> Option<T> {
    if in_keys.is_none() || in_url.is_none() {
        return in_keys.or(in_url);
    }
    let (rank, key) = keys.iter().filter_map(|key| Some((table.rank(key)?, *key))).max_by_key(|(rank, _)| *rank)?;
    match Some(rank).cmp(&table.rank("url")) {
        Ordering::Less => in_url,
        Ordering::Equal => {
            table.fault(key, Fault::new("and the login in `url` are both given", "keep one of them"));
            None
        }
        Ordering::Greater => in_keys,
    }
}
