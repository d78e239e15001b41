//! Aligned columns. Width is counted in characters: what is shown is names and numbers.

use crate::paint::{Colour, Paint};

#[derive(Clone, Debug, Default)]
pub struct Cell {
    text: String,
    colour: Colour,
    right: bool,
}

/// Text to the left.
pub fn text(text: impl ToString) -> Cell {
    Cell { text: text.to_string(), ..Cell::default() }
}

/// Numbers to the right.
pub fn number(number: impl ToString) -> Cell {
    Cell { text: number.to_string(), right: true, ..Cell::default() }
}

impl Cell {
    pub fn colour(self, colour: Colour) -> Self {
        Self { colour, ..self }
    }

    fn width(&self) -> usize {
        self.text.chars().count()
    }

    fn show(&self, width: usize, last: bool, paint: Paint) -> String {
        let painted = paint.apply(self.colour, &self.text);
        let room = " ".repeat(width - self.width());
        match (self.right, last) {
            (true, _) => room + &painted,
            (false, true) => painted,
            (false, false) => painted + &room,
        }
    }
}

/// `header` over `rows`; a column is aligned as its first row is.
pub fn with_header(header: &[&str], rows: Vec<Vec<Cell>>, paint: Paint) -> String {
    let aligned = |(i, title): (usize, &&str)| {
        let right = rows.first().and_then(|row| row.get(i)).is_some_and(|cell| cell.right);
        Cell { text: title.to_string(), colour: Colour::Faint, right }
    };
    let header = header.iter().enumerate().map(aligned).collect();
    columns([vec![header], rows].concat(), "", paint)
}

/// `rows`, each behind `indent`, two spaces between columns. Empty cells at a row's end take no room.
pub fn columns(rows: Vec<Vec<Cell>>, indent: &str, paint: Paint) -> String {
    let mut widths = Vec::new();
    for row in &rows {
        widths.resize(row.len().max(widths.len()), 0);
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.width().max(*width);
        }
    }
    let mut out = String::new();
    for row in &rows {
        let used = row.iter().rposition(|cell| !cell.text.is_empty()).map_or(0, |last| last + 1);
        let cells = row.iter().zip(&widths).take(used).enumerate();
        let shown: Vec<_> = cells.map(|(i, (cell, w))| cell.show(*w, i + 1 == used, paint)).collect();
        out += indent;
        out += &shown.join("  ");
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::paint::{COLOURED, PLAIN};

    #[test]
    fn columns_are_as_wide_as_their_widest_cell_and_lines_end_without_spaces() {
        let rows = vec![vec![text("a"), number(7), text("x")], vec![text("größer"), number(1234), text("")]];
        assert_eq!(
            with_header(&["NAME", "N", "NOTE"], rows, PLAIN),
            "NAME       N  NOTE\n\
             a          7  x\n\
             größer  1234\n"
        );
    }

    #[test]
    fn colour_takes_no_room() {
        let rows = vec![vec![text("up").colour(Colour::Good), text("x")], vec![text("down"), text("y")]];
        assert_eq!(columns(rows, "  ", COLOURED), "  \x1b[32mup\x1b[0m    x\n  down  y\n");
    }
}
