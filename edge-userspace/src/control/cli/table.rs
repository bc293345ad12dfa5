//! Text tables: columns as wide as their widest cell, numbers to the right.

use super::style::{Colour, paint, printable};

/// Stands for a missing value.
pub(super) const NONE: &str = "-";

/// One column.
pub(super) struct Column {
    title: &'static str,
    right: bool,
    optional: bool,
}

impl Column {
    /// Text, to the left.
    pub(super) const fn text(title: &'static str) -> Self {
        Self { title, right: false, optional: false }
    }

    /// A number, to the right.
    pub(super) const fn number(title: &'static str) -> Self {
        Self { title, right: true, optional: false }
    }

    /// Shown only where some row has a value.
    pub(super) const fn optional(self) -> Self {
        Self { optional: true, ..self }
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

    /// The lines, the titles first.
    pub(super) fn lines(&self, colours: bool) -> Vec<String> {
        let shown: Vec<_> = (self.columns.iter().enumerate())
            .filter(|(nth, column)| !column.optional || self.rows.iter().any(|row| row[*nth].text != NONE))
            .map(|(nth, column)| {
                let widest = self.rows.iter().map(|row| row[nth].text.chars().count()).max().unwrap_or(0);
                (nth, column, widest.max(column.title.len()))
            })
            .collect();
        let line = |cells: &[Cell]| {
            let mut line = String::new();
            for &(nth, column, width) in &shown {
                let Cell { text, colour } = &cells[nth];
                let gap = " ".repeat(width - text.chars().count());
                let text = if colours { paint(text, *colour) } else { text.clone() };
                if !line.is_empty() {
                    line.push_str("  ");
                }
                let (before, after) = if column.right { (&*gap, "") } else { ("", &*gap) };
                line.extend([before, &text, after]);
            }
            line.truncate(line.trim_end().len());
            line
        };
        let titles: Vec<_> =
            self.columns.iter().map(|column| Cell::coloured(column.title, Colour::Dim)).collect();
        std::iter::once(&titles).chain(&self.rows).map(|cells| line(cells)).collect()
    }
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
        assert_eq!(table.lines(false), ["HOST         BYTES", "a.example      7 B", "b          1.0 KiB"]);
        table.row([Cell::coloured("c", Colour::Red), "h2".into(), "0 B".into()]);
        assert_eq!(table.lines(false)[3], "c          h2        0 B");
        assert_eq!(table.lines(true)[3], "\x1b[31mc\x1b[0m          h2        0 B");
    }

    #[test]
    fn nothing_shown_can_steer_the_terminal() {
        let mut table = table();
        table.row(["\x1b[2Jx".into(), NONE.into(), "0".into()]);
        assert!(!table.lines(false).concat().contains('\x1b'));
    }
}
