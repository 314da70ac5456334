//! Aligned tables and numbers with units.

use super::out::Style;

pub enum Align {
    Left,
    Right,
}

/// Rows of cells under a head; columns are as wide as their widest cell.
pub struct Table {
    head: Vec<(&'static str, Align)>,
    rows: Vec<Vec<(String, Style)>>,
}

impl Table {
    /// `<` before a title aligns left, `>` right.
    pub fn new(head: &[&'static str]) -> Self {
        let head = head.iter().map(|title| match title.split_at(1) {
            (">", title) => (title, Align::Right),
            (_, title) => (title, Align::Left),
        });
        Self { head: head.collect(), rows: Vec::new() }
    }

    pub fn row(&mut self, cells: impl IntoIterator<Item = (String, Style)>) {
        self.rows.push(cells.into_iter().collect());
    }

    pub fn render(&self, colour: bool) -> String {
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column)).map(|(text, _)| text.chars().count());
            cells.max().unwrap_or(0).max(self.head[column].0.chars().count())
        };
        let widths: Vec<_> = (0..self.head.len()).map(width).collect();
        let mut out = String::new();
        let mut line = |cells: &mut dyn Iterator<Item = (&str, Style)>| {
            let mut text = String::new();
            for (column, (cell, style)) in cells.enumerate() {
                let pad = " ".repeat(widths[column].saturating_sub(cell.chars().count()));
                let painted = style.paint(cell, colour);
                match self.head[column].1 {
                    Align::Left => text += &(painted + &pad),
                    Align::Right => text += &(pad + &painted),
                }
                text += "  ";
            }
            out.push_str(text.trim_end());
            out.push('\n');
        };
        line(&mut self.head.iter().map(|(title, _)| (*title, Style::Dim)));
        for row in &self.rows {
            line(&mut row.iter().map(|(text, style)| (text.as_str(), *style)));
        }
        out
    }
}

pub fn plain(text: impl Into<String>) -> (String, Style) {
    (text.into(), Style::Plain)
}

/// `12,345,678`.
pub fn count(value: u64) -> String {
    let digits = value.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// `1.5 MiB`.
pub fn bytes(value: f64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let (mut value, mut unit) = (value, 0);
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{value:.0} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

/// `95%`, `5.21%`, `0.01%`; `-` for none.
pub fn share(ratio: Option<f64>) -> String {
    let Some(ratio) = ratio else { return "-".to_owned() };
    let percent = ratio * 100.0;
    let text = format!("{percent:.2}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    format!("{text}%")
}

/// `850 us`, `12.3 ms`, `1.50 s`; `-` for none. From seconds.
pub fn seconds(value: Option<f64>) -> String {
    match value {
        None => "-".to_owned(),
        Some(v) if v < 0.001 => format!("{:.0} us", v * 1e6),
        Some(v) if v < 0.1 => format!("{:.2} ms", v * 1e3),
        Some(v) if v < 1.0 => format!("{:.0} ms", v * 1e3),
        Some(v) if v < 100.0 => format!("{v:.2} s"),
        Some(v) => age(v),
    }
}

/// `42s`, `5m12s`, `3h05m`, `2d04h`. From seconds.
pub fn age(value: f64) -> String {
    let s = value.max(0.0) as u64;
    match s {
        0..60 => format!("{s}s"),
        60..3600 => format!("{}m{:02}s", s / 60, s % 60),
        3600..86400 => format!("{}h{:02}m", s / 3600, s % 3600 / 60),
        _ => format!("{}d{:02}h", s / 86400, s % 86400 / 3600),
    }
}

/// Time since a moment of the same clock, both in Unix seconds; `-` when it never came, which is told as 0, or was noted before the clock was set.
pub fn since(now: f64, then: f64) -> String {
    const SET: f64 = 1e9;
    if then > 0.0 && (then >= SET || now < SET) { age(now - then) } else { "-".to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_align_and_lines_have_no_tail() {
        let mut table = Table::new(&["<NAME", ">COUNT"]);
        table.row([plain("a"), plain("1,000")]);
        table.row([plain("longer"), ("2".to_owned(), Style::Red)]);
        assert_eq!(table.render(false), "NAME    COUNT\na       1,000\nlonger      2\n");
        assert!(table.render(true).contains("\x1b[31m2\x1b[0m"));
    }

    #[test]
    fn numbers_read_well() {
        assert_eq!([count(0), count(999), count(1000), count(1234567)], ["0", "999", "1,000", "1,234,567"]);
        assert_eq!([bytes(0.0), bytes(1023.0), bytes(1536.0), bytes(5e9)], ["0 B", "1023 B", "1.5 KiB", "4.7 GiB"]);
        assert_eq!([share(None), share(Some(0.95)), share(Some(0.0001)), share(Some(1.0 / 3.0))], ["-", "95%", "0.01%", "33.33%"]);
        assert_eq!([share(Some(1.0)), share(Some(0.0)), share(Some(0.1))], ["100%", "0%", "10%"]);
        assert_eq!(
            [seconds(Some(0.00085)), seconds(Some(0.0123)), seconds(Some(0.5)), seconds(Some(2.0))],
            ["850 us", "12.30 ms", "500 ms", "2.00 s"]
        );
        assert_eq!([since(1_795_259_258.0, 0.0), since(100.0, 40.0), since(40.0, 100.0)], ["-", "1m00s", "0s"]);
        assert_eq!([age(5.9), age(312.0), age(11100.0), age(187200.0)], ["5s", "5m12s", "3h05m", "2d04h"]);
    }
}
