//! A table and its formats. A column is declared once, with its header and the content of its
//! cells.

use crate::evaluation::verdict::confidence_interval;
use crate::sweep::summary::csv;
use std::fmt::Write;

/// A table.
pub(super) struct Table {
    /// The name of its files.
    pub name: String,
    /// A description of its contents.
    pub caption: String,
    /// The names of its columns.
    pub header: Vec<String>,
    /// Its rows. The first cell of each is the row's name.
    pub rows: Vec<Row>,
    /// Its footnotes.
    pub notes: Notes,
}

/// A row of a table.
pub(super) struct Row {
    /// Its cells, one for each column of the table.
    pub cells: Vec<Cell>,
    /// Whether its figures are the paper's.
    pub of_paper: bool,
}

/// The footnotes of a table, numbered from 1.
#[derive(Default)]
pub(super) struct Notes(Vec<String>);

impl Notes {
    /// The number of a footnote. The same text has the same number.
    pub(super) fn number(&mut self, text: &str) -> usize {
        let known = self.0.iter().position(|note| note == text);
        1 + known.unwrap_or_else(|| {
            self.0.push(text.to_owned());
            self.0.len() - 1
        })
    }

    /// The footnotes with their numbers.
    pub(super) fn numbered(&self) -> impl Iterator<Item = (usize, &str)> {
        (1..).zip(self.0.iter().map(String::as_str))
    }

    /// Whether there are none.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// A cell of a table.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Cell {
    /// Its content.
    pub content: Content,
    /// The numbers of its footnotes.
    pub notes: Vec<usize>,
}

/// The content of a cell.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Content {
    /// Not known.
    Empty,
    /// Words.
    Text(String),
    /// A number, and how many decimals are shown.
    Number(f64, usize),
    /// An accuracy, from 0 to 1, and the number of points that it was measured on, if known.
    Share(f64, Option<usize>),
}

impl From<Content> for Cell {
    fn from(content: Content) -> Self {
        Self { content, notes: Vec::new() }
    }
}

/// A cell of words.
pub(super) fn text(text: impl ToString) -> Cell {
    Content::Text(text.to_string()).into()
}

/// A cell with a number.
pub(super) fn number(number: f64, decimals: usize) -> Cell {
    Content::Number(number, decimals).into()
}

/// A cell with an accuracy that was measured on an unknown number of points.
pub(super) fn share(share: f64) -> Cell {
    Content::Share(share, None).into()
}

/// A cell without content.
pub(super) fn empty() -> Cell {
    Content::Empty.into()
}

impl Content {
    /// The main value for people: accuracies in per cent.
    pub(super) fn shown(&self) -> String {
        match self {
            Self::Empty => String::new(),
            Self::Text(text) => text.clone(),
            Self::Number(number, decimals) => format!("{number:.decimals$}"),
            Self::Share(share, _) => format!("{:.2}", 100.0 * share),
        }
    }

    /// The interval of an accuracy and its number of points, for people.
    pub(super) fn certainty(&self) -> Option<[String; 2]> {
        let Self::Share(share, Some(points)) = self else { return None };
        let (low, high) = confidence_interval(*share, *points);
        Some([format!("{:.1} to {:.1}", 100.0 * low, 100.0 * high), format!("{points} points")])
    }

    /// Whether the cell is aligned to the right.
    pub(super) fn is_number(&self) -> bool {
        matches!(self, Self::Number(..) | Self::Share(..))
    }
}

/// Makes a cell from an item. It may add footnotes.
type MakeCell<'a, Item> = dyn Fn(&mut Notes, &Item) -> Cell + 'a;

/// A column of a table whose rows are made from items.
pub(super) struct Column<'a, Item> {
    header: String,
    cell: Box<MakeCell<'a, Item>>,
}

impl<'a, Item> Column<'a, Item> {
    /// A column with this header and these cells, which may add footnotes.
    pub(super) fn new(header: impl ToString, cell: impl Fn(&mut Notes, &Item) -> Cell + 'a) -> Self {
        Self { header: header.to_string(), cell: Box::new(cell) }
    }

    /// A column without footnotes.
    pub(super) fn plain(header: impl ToString, cell: impl Fn(&Item) -> Cell + 'a) -> Self {
        Self::new(header, move |_, item| cell(item))
    }
}

impl Table {
    /// A table with these columns and a row for each item.
    pub(super) fn new<Item>(
        name: &str,
        caption: &str,
        columns: &[Column<Item>],
        items: impl IntoIterator<Item = Item>,
    ) -> Self {
        let mut table = Self {
            name: name.to_owned(),
            caption: caption.to_owned(),
            header: columns.iter().map(|column| column.header.clone()).collect(),
            rows: Vec::new(),
            notes: Notes::default(),
        };
        for item in items {
            let cells = columns.iter().map(|column| (column.cell)(&mut table.notes, &item)).collect();
            table.rows.push(Row { cells, of_paper: false });
        }
        table
    }

    /// The table as Markdown, with its footnotes below it.
    pub(super) fn markdown(&self) -> String {
        let escape = |text: &str| text.replace('\\', "\\\\").replace('|', "\\|").replace('\n', " ");
        let line = |cells: Vec<String>| format!("| {} |\n", cells.join(" | "));
        let mut markdown = format!("**{}**\n\n", self.caption);
        markdown += &line(self.header.iter().map(|name| escape(name)).collect());
        let numeric = |column: usize| self.rows.iter().any(|row| row.cells[column].content.is_number());
        let rules = (0..self.header.len()).map(|column| if numeric(column) { "---:" } else { "---" });
        markdown += &line(rules.map(str::to_owned).collect());
        for row in &self.rows {
            let cell = |Cell { content, notes }: &Cell| {
                let mut cell = escape(&content.shown());
                if let Some(certainty) = content.certainty() {
                    let _ = write!(cell, " ({})", certainty.join("; "));
                }
                notes.iter().for_each(|note| cell += &format!(" [{note}]"));
                cell
            };
            markdown += &line(row.cells.iter().map(cell).collect());
        }
        for (number, note) in self.notes.numbered() {
            let _ = write!(markdown, "\n[{number}] {}\n", escape(note));
        }
        markdown
    }

    /// The table as comma-separated values. Accuracies are from 0 to 1, each measured one with its
    /// interval and number of points. The last column has the footnotes, if there are any.
    pub(super) fn csv(&self) -> String {
        let is_measured: Vec<_> = (0..self.header.len())
            .map(|column| {
                let is_measured = |row: &Row| matches!(row.cells[column].content, Content::Share(_, Some(_)));
                self.rows.iter().any(is_measured)
            })
            .collect();
        let mut header = Vec::new();
        for (name, is_measured) in self.header.iter().zip(&is_measured) {
            header.push(name.clone());
            if *is_measured {
                header.extend(["low", "high", "points"].map(|what| format!("{name}, {what}")));
            }
        }
        if !self.notes.is_empty() {
            header.push("notes".to_owned());
        }
        let mut lines = vec![header];
        for row in &self.rows {
            let mut line = Vec::new();
            for (cell, is_measured) in row.cells.iter().zip(&is_measured) {
                line.push(match &cell.content {
                    Content::Number(number, _) | Content::Share(number, _) => number.to_string(),
                    other => other.shown(),
                });
                if *is_measured {
                    line.extend(match cell.content {
                        Content::Share(share, Some(points)) => {
                            let (low, high) = confidence_interval(share, points);
                            [low.to_string(), high.to_string(), points.to_string()]
                        }
                        _ => Default::default(),
                    });
                }
            }
            if !self.notes.is_empty() {
                let numbers: Vec<_> = row.cells.iter().flat_map(|cell| &cell.notes).collect();
                let notes: Vec<_> =
                    numbers.into_iter().map(|number| self.notes.0[number - 1].as_str()).collect();
                line.push(notes.join("; "));
            }
            lines.push(line);
        }
        csv(&lines)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_formats_have_the_same_contents() {
        let columns = [
            Column::plain("run", |(name, _): &(&str, Option<f64>)| text(name)),
            Column::new("clean", |notes: &mut Notes, (_, clean): &(&str, Option<f64>)| {
                let Some(clean) = *clean else { return empty() };
                let note = notes.number("Why not.");
                assert_eq!((note, notes.number("Another."), notes.number("Why not.")), (1, 2, 1));
                Cell { content: Content::Share(clean, Some(100)), notes: vec![note] }
            }),
        ];
        let table = Table::new("t", "A table.", &columns, [("a|b, c", Some(0.92)), ("d", None)]);
        // Wilson's interval for 92 of 100: see the test of `confidence_interval`.
        assert_eq!(
            table.markdown(),
            "**A table.**\n\n| run | clean |\n| --- | ---: |\n| a\\|b, c | 92.00 (85.0 to 95.9; 100 points) [1] |\n\
             | d |  |\n\n[1] Why not.\n\n[2] Another.\n"
        );
        let csv = table.csv();
        let mut lines = csv.lines();
        assert_eq!(lines.next(), Some("run,clean,\"clean, low\",\"clean, high\",\"clean, points\",notes"));
        let line = lines.next().expect("a line");
        assert!(line.starts_with("\"a|b, c\",0.92,0.85") && line.ends_with(",100,Why not."), "{line}");
        assert_eq!(lines.next(), Some("d,,,,,"));
    }
}
