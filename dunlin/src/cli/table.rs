//! Tables for people: aligned columns, numbers to the right. What stands in them
//! came from other machines and does not command the terminal.

use std::fmt;

use super::printable;

/// Rows of cells under headings.
pub(super) struct Table {
    headings: Vec<&'static str>,
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(super) fn new(headings: &[&'static str]) -> Self {
        Self {
            headings: headings.to_vec(),
            rows: Vec::new(),
        }
    }

    /// Adds a row, with a cell for each heading. An empty cell becomes `-`.
    pub(super) fn row<const N: usize>(&mut self, cells: [&dyn fmt::Display; N]) {
        let cell = |cell: &dyn fmt::Display| match printable(&cell.to_string()) {
            text if text.is_empty() => "-".to_owned(),
            text => text.replace(['\n', '\t'], " "),
        };
        self.rows.push(cells.into_iter().map(cell).collect());
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let column = |i: usize| self.rows.iter().map(move |row| row[i].as_str());
        let is_number = |text: &str| text == "-" || text.bytes().all(|byte| byte.is_ascii_digit());
        let columns: Vec<(usize, bool)> = self
            .headings
            .iter()
            .enumerate()
            .map(|(i, heading)| {
                let widths = column(i).chain([*heading]).map(|text| text.chars().count());
                let numbers = column(i).all(is_number) && column(i).any(|text| text != "-");
                (widths.max().unwrap_or_default(), numbers)
            })
            .collect();
        let headings: Vec<String> = self.headings.iter().map(ToString::to_string).collect();
        for row in std::iter::once(&headings).chain(&self.rows) {
            let cells: Vec<String> = row
                .iter()
                .zip(&columns)
                .map(|(cell, (width, right))| {
                    if *right {
                        format!("{cell:>width$}")
                    } else {
                        format!("{cell:<width$}")
                    }
                })
                .collect();
            writeln!(f, "{}", cells.join("  ").trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::Table;

    #[test]
    fn columns_are_aligned_and_numbers_stand_right() {
        let mut table = Table::new(&["node", "shards", "zone"]);
        table.row([&"a", &512, &""]);
        table.row([&"long-\u{1b}[31m", &7, &"ü"]);
        table.row([&"c", &"", &"x\ny"]);
        assert_eq!(
            table.to_string(),
            "node             shards  zone\n\
             a                   512  -\n\
             long-\\u{1b}[31m       7  ü\n\
             c                     -  x y\n"
        );
    }
}
