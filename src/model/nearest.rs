//! Hints at the name that a typing error was meant to be. Pure.

/// Maximum number of known names that a hint is searched in, and of bytes of the written one: it comes from outside, and
/// the comparison takes time in proportion to both.
const COMPARED_MAX: usize = 1000;
const WRITTEN_BYTES_MAX: usize = 64;

/// Returns the known name that differs the least from `written`, by at most two typing errors.
pub(crate) fn nearest<'a>(written: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    if written.len() > WRITTEN_BYTES_MAX {
        return None;
    }
    let distance = |known: &&str| strsim::levenshtein(known, written);
    let near = known.into_iter().take(COMPARED_MAX).filter(|known| distance(known) <= 2.min(known.len() / 2));
    near.min_by_key(distance)
}

/// Returns what to write instead of an unknown name: the nearest, and the names that exist.
pub(crate) fn known_names<'a>(written: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    let known: Vec<&str> = known.into_iter().collect();
    let nearest = nearest(written, known.iter().copied());
    let nearest = nearest.map_or(String::new(), |name| format!("did you mean `{name}`? "));
    let list = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
    format!("{nearest}known: {list}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_typing_error_is_near_and_another_word_is_not() {
        for (known, written, near) in [
            ("password", "pasword", true),
            ("password", "passwrod", true),
            ("interval", "intervall", true),
            ("url", "uri", true),
            ("url", "log", false),
            ("timeout", "sweep", false),
        ] {
            assert_eq!(nearest(written, [known]).is_some(), near, "{known} {written}");
        }
        assert_eq!(nearest("home1", ["home", "home2", "attic"]), Some("home"));
        assert_eq!(nearest(&"x".repeat(WRITTEN_BYTES_MAX + 1), ["x"]), None);
    }

    #[test]
    fn a_hint_names_what_exists() {
        assert_eq!(known_names("hom", ["attic", "home"]), "did you mean `home`? known: attic, home");
        assert_eq!(known_names("cellar", ["attic", "home"]), "known: attic, home");
        assert_eq!(known_names("cellar", []), "known: none");
    }
}
