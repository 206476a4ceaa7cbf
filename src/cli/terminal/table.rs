//! Tables that fit a terminal: the least important columns are left out first, then the last one is cut. Pure.
//!
//! Widths are those of a terminal, where `ü` takes one column, `漢` two, and a combining mark none.

use anstyle::Style;
use unicode_width::{UnicodeWidthChar as _, UnicodeWidthStr as _};

use super::paint::{self, painted};

/// Blanks between two columns.
const GAP: usize = 2;
/// Minimum width of the last column; before it is cut further, another column is left out.
const LAST_MIN: usize = 16;

/// The alignment of a column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Align {
    /// Text.
    Left,
    /// Numbers.
    Right,
}

/// A column of a table.
#[derive(Clone, Copy, Debug)]
pub struct Column {
    /// Text of the first line, in capitals.
    pub heading: &'static str,
    /// Where a narrower cell is placed.
    pub align: Align,
    /// When the column is left out: 0 never, then the highest first.
    pub drop_order: u8,
}

impl Column {
    /// Returns a column that is aligned to the left.
    pub const fn left(heading: &'static str, drop_order: u8) -> Self {
        Self { heading, align: Align::Left, drop_order }
    }

    /// Returns a column that is aligned to the right.
    pub const fn right(heading: &'static str, drop_order: u8) -> Self {
        Self { heading, align: Align::Right, drop_order }
    }
}

/// A cell: a text without control characters, and its style.
#[derive(Clone, Debug, PartialEq)]
pub struct Cell {
    /// One line of text.
    pub text: String,
    /// Colour by meaning, see [`paint`].
    pub style: Style,
}

impl From<String> for Cell {
    fn from(text: String) -> Self {
        Self { text, style: paint::PLAIN }
    }
}

impl Cell {
    /// Returns a cell in a style.
    pub fn painted(text: impl Into<String>, style: Style) -> Self {
        Self { text: text.into(), style }
    }
}

/// Returns the lines of a table, the headings first. Columns without any text are left out.
pub fn table(columns: &[Column], rows: &[Vec<Cell>], width: Option<usize>) -> String {
    let widest = |place: usize| {
        let texts = rows.iter().map(|row| row[place].text.width());
        texts.max().filter(|widest| *widest > 0).map(|widest| widest.max(columns[place].heading.width()))
    };
    let last = columns.len() - 1;
    let mut shown: Vec<(usize, usize)> =
        (0..columns.len()).filter_map(|place| widest(place).map(|width| (place, width))).collect();
    if let Some(width) = width {
        // One column at a time, so that no more are left out than necessary.
        while needed(&shown, last) > width
            && let Some(first) = shown
                .iter()
                .filter(|(place, _)| columns[*place].drop_order > 0)
                .max_by_key(|(place, _)| columns[*place].drop_order)
        {
            let dropped = first.0;
            shown.retain(|(place, _)| *place != dropped);
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

/// Returns the width that the shown columns need at least.
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
        // No blanks at the end of a line.
        Align::Left if is_end => text,
        Align::Left => text + &space,
    }
}

/// Returns as much of a text as fits, with `…` in place of the rest.
pub fn cut(text: &str, columns: usize) -> String {
    if text.width() <= columns {
        return text.to_owned();
    }
    let mut cut = String::new();
    let mut used = 0;
    for c in text.chars() {
        let width = c.width().unwrap_or(0);
        // One column is left for `…`.
        if used + width + 1 > columns {
            break;
        }
        used += width;
        cut.push(c);
    }
    cut + "…"
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
    fn columns_are_under_their_headings_and_empty_ones_are_left_out() {
        let text = anstream::adapter::strip_str(&table(&COLUMNS, &rows(), None)).to_string();
        assert_eq!(
            text,
            "HASH         SIZE  NAME\n3f786850  4.2 GiB  Some long name of a torrent\n89e6c98d      1 B  漢字のなまえ\n"
        );
    }

    #[test]
    fn no_line_is_wider_than_the_terminal() {
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
    fn a_text_is_cut_before_a_wide_character_that_does_not_fit() {
        for (text, columns, expected) in [("abc", 3, "abc"), ("abcd", 3, "ab…"), ("漢字", 3, "漢…"), ("漢字", 2, "…")]
        {
            assert_eq!(cut(text, columns), expected, "{text} in {columns}");
        }
    }
}
