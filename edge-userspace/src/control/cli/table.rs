//! Text tables: columns as wide as their widest cell, numbers to the right. On a terminal that is too narrow, the columns
//! that matter least stand below their row, behind their titles: names and addresses stay whole and can be copied.

use unicode_width::UnicodeWidthStr as _;

use super::style::{Colour, paint, printable};

/// Stands for a missing value.
pub(super) const NONE: &str = "-";

/// One column.
pub(super) struct Column {
    title: &'static str,
    right: bool,
    optional: bool,
    detail: bool,
}

impl Column {
    /// Text, to the left.
    pub(super) const fn text(title: &'static str) -> Self {
        Self { title, right: false, optional: false, detail: false }
    }

    /// A number, to the right.
    pub(super) const fn number(title: &'static str) -> Self {
        Self { title, right: true, optional: false, detail: false }
    }

    /// Shown only where some row has a value.
    pub(super) const fn optional(self) -> Self {
        Self { optional: true, ..self }
    }

    /// The first to stand below the row where the terminal is narrow.
    pub(super) const fn detail(self) -> Self {
        Self { detail: true, ..self }
    }
}

/// One cell.
pub(super) struct Cell {
    text: String,
    colour: Option<Colour>,
}

impl Cell {
    /// A cell in a colour.
    pub(super) fn coloured(text: impl Into<String>, colour: Colour) -> Self {
        Self { text: text.into(), colour: Some(colour) }
    }

    /// A cell that may have no value.
    pub(super) fn or_none(text: Option<impl ToString>) -> Self {
        text.map_or_else(|| NONE.to_owned(), |text| text.to_string()).into()
    }

    /// A cell of several values, with a word for none.
    pub(super) fn list<T: ToString>(values: &[T], none: &str) -> Self {
        match values {
            [] => none.to_owned(),
            values => values.iter().map(ToString::to_string).collect::<Vec<_>>().join(","),
        }
        .into()
    }
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self { text: printable(&text.into()).into_owned(), colour: None }
    }
}

/// A table, filled row by row.
pub(super) struct Table {
    columns: Vec<Column>,
    rows: Vec<Vec<Cell>>,
}

impl Table {
    /// An empty table.
    pub(super) fn new(columns: impl Into<Vec<Column>>) -> Self {
        Self { columns: columns.into(), rows: Vec::new() }
    }

    /// Adds a row with a cell for each column.
    pub(super) fn row(&mut self, cells: impl Into<Vec<Cell>>) {
        let cells = cells.into();
        debug_assert_eq!(cells.len(), self.columns.len());
        self.rows.push(cells);
    }

    /// The lines, the titles first. Where they are wider than `width` columns, details, then columns from the right,
    /// stand below their row, each value behind its title; nothing is cut. Without a width each row is one line.
    pub(super) fn lines(&self, colours: bool, width: Option<usize>) -> Vec<String> {
        let mut shown: Vec<_> = (self.columns.iter().enumerate())
            .filter(|(nth, column)| !column.optional || self.rows.iter().any(|row| row[*nth].text != NONE))
            .map(|(nth, column)| {
                let widest = self.rows.iter().map(|row| row[nth].text.width()).max().unwrap_or(0);
                (nth, column, widest.max(column.title.len()))
            })
            .collect();
        let below = width.map(|width| overflow(&mut shown, width)).unwrap_or_default();
        let line = |cells: &[Cell]| {
            let mut line = String::new();
            for &(nth, column, width) in &shown {
                let Cell { text, colour } = &cells[nth];
                let gap = " ".repeat(width - text.width());
                let text = if colours { paint(text, *colour) } else { text.clone() };
                if !line.is_empty() {
                    line.push_str(GAP);
                }
                let (before, after) = if column.right { (&*gap, "") } else { ("", &*gap) };
                line.extend([before, &text, after]);
            }
            line.truncate(line.trim_end().len());
            line
        };
        let titles: Vec<_> =
            self.columns.iter().map(|column| Cell::coloured(column.title, Colour::Dim)).collect();
        let mut lines = vec![line(&titles)];
        for row in &self.rows {
            lines.push(line(row));
            let rest = below.iter().filter(|(nth, ..)| row[*nth].text != NONE);
            let room = width.unwrap_or(usize::MAX).saturating_sub(INDENT.len());
            let rest: Vec<_> = rest
                .map(|(nth, column, _)| {
                    let item = format!("{} {}", column.title.to_lowercase(), row[*nth].text);
                    // A short value stays in one line.
                    if visible(&item) < room.min(UNBROKEN) { item.replace(' ', UNBREAKABLE) } else { item }
                })
                .collect();
            if !rest.is_empty() {
                let rest = rest.join(", ");
                lines.extend(
                    wrapped(&rest, room).map(|line| format!("{INDENT}{}", line.replace(UNBREAKABLE, " "))),
                );
            }
        }
        lines
    }
}

/// Between two columns.
const GAP: &str = "  ";
/// Before what stands below its row.
const INDENT: &str = "    ";

/// Below a row, a value shorter than this many columns is not broken.
const UNBROKEN: usize = 40;
/// A space that is not broken at, until the lines are made.
const UNBREAKABLE: &str = "\u{a0}";

/// Takes out the columns that do not fit: details first, then from the right. The first column always stays.
fn overflow<'a>(
    columns: &mut Vec<(usize, &'a Column, usize)>,
    width: usize,
) -> Vec<(usize, &'a Column, usize)> {
    let mut below = Vec::new();
    let taken = |columns: &[(usize, &Column, usize)]| {
        columns.iter().map(|(_, _, wide)| wide + GAP.len()).sum::<usize>().saturating_sub(GAP.len())
    };
    while columns.len() > 1 && taken(columns) > width {
        let last = columns.len() - 1;
        let out =
            columns.iter().rposition(|(_, column, _)| column.detail).filter(|&nth| nth > 0).unwrap_or(last);
        below.push(columns.remove(out));
    }
    below.sort_unstable_by_key(|(nth, ..)| *nth);
    below
}

/// The text in lines of at most `width` columns, broken at spaces; a longer word has a line of its own.
pub(super) fn wrapped(text: &str, width: usize) -> impl Iterator<Item = String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split(' ') {
        match lines.last_mut() {
            Some(line) if visible(line) + 1 + visible(word) <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines.into_iter()
}

/// The columns that a text takes; its colours take none.
fn visible(text: &str) -> usize {
    anstream::adapter::strip_str(text).map(str::width).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let columns = [Column::text("HOST"), Column::text("ALPN").optional(), Column::number("BYTES")];
        Table::new(columns)
    }

    #[test]
    fn columns_are_aligned_and_empty_optional_ones_left_out() {
        let mut table = table();
        table.row(["a.example".into(), NONE.into(), "7 B".into()]);
        table.row(["b".into(), NONE.into(), "1.0 KiB".into()]);
        assert_eq!(
            table.lines(false, None),
            ["HOST         BYTES", "a.example      7 B", "b          1.0 KiB"]
        );
        table.row([Cell::coloured("c", Colour::Red), "h2".into(), "0 B".into()]);
        assert_eq!(table.lines(false, None)[3], "c          h2        0 B");
        assert_eq!(table.lines(true, None)[3], "\x1b[31mc\x1b[0m          h2        0 B");
    }

    #[test]
    fn nothing_shown_can_steer_the_terminal() {
        let mut table = table();
        table.row(["\x1b[2Jx".into(), NONE.into(), "0".into()]);
        assert!(!table.lines(false, None).concat().contains('\x1b'));
    }

    #[test]
    fn details_give_way_first_and_wide_characters_count_twice() {
        let columns = [
            Column::text("HOST"),
            Column::text("LISTENER").detail(),
            Column::text("TO"),
            Column::number("UP"),
        ];
        let mut table = Table::new(columns);
        table.row(["\u{65e5}\u{672c}.example".into(), "https".into(), "192.0.2.1:443".into(), "7 B".into()]);
        table.row(["a.example".into(), "https".into(), "192.0.2.1:443".into(), "1 B".into()]);
        assert_eq!(
            table.lines(false, Some(34)),
            [
                "HOST          TO              UP",
                "\u{65e5}\u{672c}.example  192.0.2.1:443  7 B",
                "    listener https",
                "a.example     192.0.2.1:443  1 B",
                "    listener https",
            ]
        );
    }

    #[test]
    fn columns_that_do_not_fit_stand_below_their_row_and_nothing_is_cut() {
        let columns =
            [Column::text("TO"), Column::text("STATE"), Column::number("WEIGHT"), Column::text("LAST ERROR")];
        let mut table = Table::new(columns);
        table.row([
            "192.0.2.1:443".into(),
            "up".into(),
            "1".into(),
            "9s ago: connection refused by home".into(),
        ]);
        table.row(["192.0.2.2:443".into(), "up".into(), "1".into(), NONE.into()]);
        assert_eq!(
            table.lines(false, Some(30)),
            [
                "TO             STATE  WEIGHT",
                "192.0.2.1:443  up          1",
                "    last error 9s ago:",
                "    connection refused by home",
                "192.0.2.2:443  up          1",
            ]
        );
        let narrow = table.lines(false, Some(5));
        assert_eq!(narrow[..2], ["TO", "192.0.2.1:443"], "the first column is always there");
        assert!(table.lines(false, Some(200))[1].ends_with("by home"), "all fits");
        assert!(table.lines(false, None).iter().all(|line| !line.starts_with(' ')));
    }
}
