//! Aligned columns, and colours where a terminal shows them.

use std::fmt::Write;

/// What a colour says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tone {
    /// As it should be.
    Good,
    /// Worth a look.
    Doubtful,
    /// Not as it should be.
    Bad,
    /// A heading.
    Strong,
    /// Nothing.
    Plain,
}

/// Whether colours are shown.
#[derive(Clone, Copy, Debug)]
pub struct Palette {
    /// They are.
    pub colours: bool,
}

impl Palette {
    /// A text in a tone.
    pub fn paint(self, tone: Tone, text: &str) -> String {
        let code = match tone {
            Tone::Good => "32",
            Tone::Doubtful => "33",
            Tone::Bad => "31;1",
            Tone::Strong => "1",
            Tone::Plain => return text.to_owned(),
        };
        if self.colours { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// One cell.
pub struct Cell {
    text: String,
    tone: Tone,
}

impl Cell {
    /// In a tone.
    pub fn toned(tone: Tone, text: impl Into<String>) -> Self {
        Self { text: text.into(), tone }
    }

    /// What it says.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// In which tone.
    pub const fn tone(&self) -> Tone {
        self.tone
    }
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self::toned(Tone::Plain, text)
    }
}

/// Where a column's cells stand.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Texts.
    Left,
    /// Numbers.
    Right,
}

/// Rows under a heading.
pub struct Table {
    columns: Vec<(&'static str, Side)>,
    rows: Vec<Row>,
}

struct Row {
    cells: Vec<Cell>,
    /// Sentences under it, each of which begins below a column.
    remarks: Vec<(usize, Cell)>,
}

impl Table {
    /// No rows yet.
    pub fn new(columns: &[(&'static str, Side)]) -> Self {
        Self { columns: columns.to_vec(), rows: Vec::new() }
    }

    /// One more row: a cell for each column.
    pub fn row(&mut self, cells: impl IntoIterator<Item = Cell>) {
        self.rows.push(Row { cells: cells.into_iter().collect(), remarks: Vec::new() });
    }

    /// A sentence more about the last row, on a line of its own under that row's cell number
    /// `column`; it widens no column.
    pub fn remark(&mut self, column: usize, sentence: Cell) {
        if let Some(row) = self.rows.last_mut() {
            row.remarks.push((column, sentence));
        }
    }

    /// A sentence between rows, which begins below a column; it widens none.
    pub fn sentence(&mut self, column: usize, sentence: Cell) {
        self.rows.push(Row { cells: Vec::new(), remarks: vec![(column, sentence)] });
    }

    /// Lines without blanks at their ends.
    pub fn render(&self, palette: Palette) -> String {
        let mut widths: Vec<usize> = self.columns.iter().map(|(head, _)| head.len()).collect();
        for row in &self.rows {
            for (width, cell) in widths.iter_mut().zip(&row.cells) {
                *width = (*width).max(cell.text.chars().count());
            }
        }
        let heading: Vec<Cell> =
            self.columns.iter().map(|(head, _)| Cell::toned(Tone::Strong, *head)).collect();
        let heading = Row { cells: heading, remarks: Vec::new() };
        let mut text = String::new();
        for row in std::iter::once(&heading).chain(&self.rows) {
            let mut line = String::new();
            for ((cell, width), (_, side)) in row.cells.iter().zip(&widths).zip(&self.columns) {
                let blanks = " ".repeat(width - cell.text.chars().count());
                let painted = palette.paint(cell.tone, &cell.text);
                let (before, after) = match side {
                    Side::Left => ("", &*blanks),
                    Side::Right => (&*blanks, ""),
                };
                // Writing to a String can't fail.
                let _ = write!(line, "{before}{painted}{after}  ");
            }
            if !row.cells.is_empty() {
                text.push_str(line.trim_end());
                text.push('\n');
            }
            for (column, sentence) in &row.remarks {
                let indent: usize = widths.iter().take(*column).map(|width| width + 2).sum();
                let _ = writeln!(
                    text,
                    "{:indent$}{}",
                    "",
                    palette.paint(sentence.tone, &sentence.text)
                );
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remarks_stand_in_their_order() {
        let mut table = Table::new(&[("NAME", Side::Left), ("N", Side::Right)]);
        table.row(["a".into(), "1".into()]);
        table.remark(1, "first".into());
        table.remark(0, "second".into());
        table.sentence(1, "third".into());
        table.row(["b".into(), "2".into()]);
        let text = table.render(Palette { colours: false });
        assert_eq!(text, "NAME  N\na     1\n      first\nsecond\n      third\nb     2\n");
    }

    #[test]
    fn a_remark_stands_under_its_row_and_widens_nothing() {
        let mut table = Table::new(&[("NAME", Side::Left), ("N", Side::Right), ("X", Side::Left)]);
        table.row(["a".into(), "1".into(), "down".into()]);
        table.remark(1, "a sentence longer than any column".into());
        table.row(["b".into(), "7".into(), "up".into()]);
        assert_eq!(
            table.render(Palette { colours: false }),
            "NAME  N  X\na     1  down\n      a sentence longer than any column\nb     7  up\n"
        );
    }

    #[test]
    fn columns_line_up_with_and_without_colours() {
        let mut table = Table::new(&[("NAME", Side::Left), ("N", Side::Right), ("X", Side::Left)]);
        table.row(["a".into(), "100".into(), Cell::toned(Tone::Bad, "down")]);
        table.row(["longer".into(), "7".into(), "".into()]);
        assert_eq!(
            table.render(Palette { colours: false }),
            "NAME      N  X\na       100  down\nlonger    7\n"
        );
        assert!(table.render(Palette { colours: true }).contains(
            "\n\
            a       100  \x1b[31;1mdown\x1b[0m\n"
        ));
    }
}
