//! Numbers in human-readable form. Pure.

use std::time::Duration;

pub use crate::model::shown_bytes as bytes;
use crate::model::{Torrent, printable};

/// Returns a number of things in words: `1 file`, `2 files`.
pub fn count(number: u64, thing: &str) -> String {
    format!("{number} {thing}{}", if number == 1 { "" } else { "s" })
}

/// Returns the client's message about the error of a torrent, without control characters; `None` without an error.
pub fn error(torrent: &Torrent) -> Option<String> {
    let message = torrent.message.as_deref().map(|text| printable(text.as_bytes())).filter(|text| !text.is_empty());
    torrent.error.then(|| message.unwrap_or_else(|| "without a message".to_owned()))
}

/// Returns a rate as `1.2 MiB/s`; empty if it is 0 or unknown.
pub fn rate(bytes_per_second: Option<u64>) -> String {
    match bytes_per_second {
        None | Some(0) => String::new(),
        Some(rate) => format!("{}/s", bytes(rate)),
    }
}

/// Returns a duration in its two largest units, `3h12m`.
pub fn duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let parts = [(seconds / 86_400, "d"), (seconds / 3600 % 24, "h"), (seconds / 60 % 60, "m"), (seconds % 60, "s")];
    let first = parts.iter().position(|(count, _)| *count > 0).unwrap_or(3);
    parts[first..]
        .iter()
        .take(2)
        .filter(|(count, _)| *count > 0 || seconds == 0)
        .fold(String::new(), |text, (n, unit)| format!("{text}{n}{unit}"))
}

/// Returns a bar of so many columns, in eighths of a column, followed by the percentage.
pub fn progress(percent: f64, columns: usize) -> String {
    const EIGHTHS: [char; 8] = [' ', '▏', '▎', '▍', '▌', '▋', '▊', '▉'];
    let filled = (percent.clamp(0.0, 100.0) / 100.0 * columns as f64 * 8.0) as usize;
    let mut bar: String = "█".repeat(filled / 8);
    if filled / 8 < columns {
        bar.push(EIGHTHS[filled % 8]);
        bar.push_str(&" ".repeat(columns - filled / 8 - 1));
    }
    format!("{bar}{percent:6.1}%")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_three_digits_and_a_unit() {
        for (size, text) in [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "1.0 KiB"),
            (1024, "1.0 KiB"),
            (102_348, "99.9 KiB"),
            (102_400, "100 KiB"),
            (1_023_999, "1.0 MiB"),
            (4_509_715_661, "4.2 GiB"),
            (u64::MAX, "16384 PiB"),
        ] {
            assert_eq!(bytes(size), text, "{size}");
        }
        assert_eq!(
            (rate(None), rate(Some(0)), rate(Some(1024))),
            (String::new(), String::new(), "1.0 KiB/s".to_owned())
        );
    }

    #[test]
    fn durations_have_their_two_largest_parts() {
        for (seconds, text) in
            [(0, "0s"), (59, "59s"), (60, "1m"), (61, "1m1s"), (3600, "1h"), (11_525, "3h12m"), (86_400 * 9 + 1, "9d")]
        {
            assert_eq!(duration(Duration::from_secs(seconds)), text, "{seconds}");
        }
    }

    #[test]
    fn a_bar_is_as_wide_as_asked_and_full_only_at_the_end() {
        for (percent, text) in
            [(0.0, "        0.0%"), (50.0, "██▌    50.0%"), (99.9, "████▉  99.9%"), (100.0, "█████ 100.0%")]
        {
            assert_eq!(progress(percent, 5), text);
        }
    }
}
