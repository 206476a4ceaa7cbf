//! The table that `make bench` prints: a figure, its baseline, and its bar.

use std::time::Duration;

/// A measured line.
pub struct Line {
    pub what: String,
    /// Figure of the bridge, with its unit.
    pub figure: String,
    /// Figure of the baseline in the same run.
    pub baseline: String,
    /// Value compared with the bar, mostly figure ÷ baseline.
    pub measured: Measured,
    /// Reason why the value misses its bar, in one line.
    pub reason: &'static str,
}

/// A number and its bar.
#[derive(Clone, Copy)]
pub struct Measured {
    pub value: f64,
    pub bar: Bar,
    pub unit: &'static str,
}

#[derive(Clone, Copy)]
pub enum Bar {
    AtMost(f64),
    AtLeast(f64),
    /// For comparison only; never fails.
    None,
}

impl Measured {
    pub fn at_most(value: f64, bar: f64, unit: &'static str) -> Self {
        Self { value, bar: Bar::AtMost(bar), unit }
    }

    pub fn at_least(value: f64, bar: f64, unit: &'static str) -> Self {
        Self { value, bar: Bar::AtLeast(bar), unit }
    }

    pub fn snapshot(value: f64, unit: &'static str) -> Self {
        Self { value, bar: Bar::None, unit }
    }

    /// Returns whether the value meets the bar; `None` without a bar.
    fn is_met(&self) -> Option<bool> {
        match self.bar {
            Bar::AtMost(bar) => Some(self.value <= bar),
            Bar::AtLeast(bar) => Some(self.value >= bar),
            Bar::None => None,
        }
    }
}

/// Formats a number with three significant digits.
pub fn short(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 0.1 => format!("{value:.2}"),
        _ => format!("{value:.4}"),
    }
}

pub fn millis(time: Duration) -> String {
    format!("{} ms", short(time.as_secs_f64() * 1_000.0))
}

pub fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

/// Prints all lines as a Markdown table, and below it why some miss their bar. Returns the number of those.
pub fn print(lines: &[Line]) -> usize {
    let header = ["", "bridge", "baseline", "measured", "bar", ""].map(str::to_owned);
    let mut rows = vec![header];
    let mut shorts = Vec::new();
    for Line { what, figure, baseline, measured, reason } in lines {
        let bar = match measured.bar {
            Bar::AtMost(bar) => format!("≤ {bar}{}", measured.unit),
            Bar::AtLeast(bar) => format!("≥ {bar}{}", measured.unit),
            Bar::None => "–".to_owned(),
        };
        let verdict = match measured.is_met() {
            Some(true) => "ok".to_owned(),
            Some(false) => {
                shorts.push(format!(
                    "{}. {what}: {}",
                    shorts.len() + 1,
                    if reason.is_empty() { "reason unknown" } else { reason }
                ));
                format!("SHORT ({})", shorts.len())
            }
            None => String::new(),
        };
        let value = format!("{}{}", short(measured.value), measured.unit);
        rows.push([what.clone(), figure.clone(), baseline.clone(), value, bar, verdict]);
    }
    let widths: Vec<usize> =
        (0..6).map(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0)).collect();
    for (place, row) in rows.iter().enumerate() {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        println!("| {} |", cells.join(" | "));
        if place == 0 {
            let rules: Vec<String> = widths.iter().map(|width| "-".repeat((*width).max(3))).collect();
            println!("| {} |", rules.join(" | "));
        }
    }
    println!();
    for short in &shorts {
        println!("{short}");
    }
    shorts.len()
}
