//! Tables that fit: the least important columns go first, and the last one is cut. Pure.
//!
//! Widths are those of a terminal, where `ü` has one column, `漢` two, and a combining mark none.

use anstyle::Style;
use unicode_width::{UnicodeWidthChar as _, UnicodeWidthStr as _};

use super::paint::{self, painted};

/// Between two columns.
const GAP: usize = 2;
/// The last column is not cut below this; rather another column goes.
const LAST_MIN: usize = 16;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Align {
    Left,
    Right,
}

/// A column: its heading, and when it goes. 0 stays, then the higher the sooner.
#[derive(Clone, Copy, Debug)]
pub struct Column {
    pub heading: &'static str,
    pub align: Align,
    pub goes: u8,
}

impl Column {
    pub const fn left(heading: &'static str, goes: u8) -> Self {
        Self { heading, align: Align::Left, goes }
    }

    pub const fn right(heading: &'static str, goes: u8) -> Self {
        Self { heading, align: Align::Right, goes }
    }
}

/// A text, already printable, and how it is painted.
#[derive(Clone, Debug, PartialEq)]
pub struct Cell {
    pub text: String,
    pub style: Style,
}

impl From<String> for Cell {
    fn from(text: String) -> Self {
        Self { text, style: paint::PLAIN }
    }
}

impl Cell {
    pub fn painted(text: impl Into<String>, style: Style) -> Self {
        Self { text: text.into(), style }
    }
}

/// The lines of a table, headings first. Columns in which nothing stands are left out.
pub fn table(columns: &[Column], rows: &[Vec<Cell>], width: Option<usize>) -> String {
    let widest = |place: usize| {
        let texts = rows.iter().map(|row| row[place].text.width());
        texts.max().filter(|widest| *widest > 0).map(|widest| widest.max(columns[place].heading.width()))
    };
    let last = columns.len() - 1;
    let mut shown: Vec<(usize, usize)> =
        (0..columns.len()).filter_map(|place| widest(place).map(|width| (place, width))).collect();
    if let Some(width) = width {
        while needed(&shown, last) > width
            && let Some(first) =
                shown.iter().filter(|(place, _)| columns[*place].goes > 0).max_by_key(|(place, _)| columns[*place].goes)
        {
            let goes = first.0;
            shown.retain(|(place, _)| *place != goes);
        }
        let others: usize = shown.iter().filter(|(place, _)| *place != last).map(|(_, width)| width + GAP).sum();
        if let Some((_, of_last)) = shown.iter_mut().find(|(place, _)| *place == last) {
            *of_last = (*of_last).min(width.saturating_sub(others).max(1));
        }
    }
    let headings: Vec<Cell> = columns.iter().map(|column| Cell::painted(column.heading, paint::HEAD)).collect();
    let line = |row: &Vec<Cell>| {
        let cells = shown.iter().map(|(place, width)| {
            let is_end = shown.last().is_some_and(|(end, _)| end == place);
            padded(&row[*place], columns[*place].align, *width, is_end)
        });
        cells.collect::<Vec<_>>().join(&" ".repeat(GAP)) + "\n"
    };
    std::iter::once(&headings).chain(rows).map(line).collect()
}

/// The columns that it takes at least.
fn needed(shown: &[(usize, usize)], last: usize) -> usize {
    let least = |(place, width): &(usize, usize)| if *place == last { (*width).min(LAST_MIN) } else { *width };
    shown.iter().map(least).sum::<usize>() + GAP * shown.len().saturating_sub(1)
}

fn padded(cell: &Cell, align: Align, width: usize, is_end: bool) -> String {
    let text = cut(&cell.text, width);
    let space = " ".repeat(width.saturating_sub(text.width()));
    let text = if cell.style == paint::PLAIN { text } else { painted(cell.style, &text) };
    match align {
        Align::Right => space + &text,
        Align::Left if is_end => text,
        Align::Left => text + &space,
    }
}

/// As much of a text as fits, with `…` where the rest was.
pub fn cut(text: &str, columns: usize) -> String {
    if text.width() <= columns {
        return text.to_owned();
    }
    let mut kept = String::new();
    let mut used = 0;
    for letter in text.chars() {
        let width = letter.width().unwrap_or(0);
        if used + width + 1 > columns {
            break;
        }
        used += width;
        kept.push(letter);
    }
    kept + "…"
}

#[cfg(test)]
mod tests {
    use super::*;

    const COLUMNS: [Column; 4] =
        [Column::left("HASH", 1), Column::right("SIZE", 2), Column::left("LABEL", 3), Column::left("NAME", 0)];

    fn rows() -> Vec<Vec<Cell>> {
        let row = |hash: &str, size: &str, name: &str| {
            [hash, size, "", name].map(|text| Cell::from(text.to_owned())).to_vec()
        };
        vec![row("3f786850", "4.2 GiB", "Some long name of a torrent"), row("89e6c98d", "1 B", "漢字のなまえ")]
    }

    #[test]
    fn columns_stand_under_their_headings_and_empty_ones_are_left_out() {
        let text = anstream::adapter::strip_str(&table(&COLUMNS, &rows(), None)).to_string();
        assert_eq!(
            text,
            "HASH         SIZE  NAME\n3f786850  4.2 GiB  Some long name of a torrent\n89e6c98d      1 B  漢字のなまえ\n"
        );
    }

    #[test]
    fn whatever_the_width_no_line_is_wider() {
        for width in 1..60 {
            let text = anstream::adapter::strip_str(&table(&COLUMNS, &rows(), Some(width))).to_string();
            for line in text.lines() {
                assert!(line.width() <= width.max(2), "{width}: {line}");
            }
        }
        let narrow = anstream::adapter::strip_str(&table(&COLUMNS, &rows(), Some(20))).to_string();
        assert_eq!(narrow, "NAME\nSome long name of a…\n漢字のなまえ\n");
    }

    #[test]
    fn a_text_is_cut_where_a_wide_letter_would_not_fit() {
        for (text, columns, expected) in [("abc", 3, "abc"), ("abcd", 3, "ab…"), ("漢字", 3, "漢…"), ("漢字", 2, "…")]
        {
            assert_eq!(cut(text, columns), expected, "{text} in {columns}");
        }
    }
}
