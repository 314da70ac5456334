//! What a terminal showed, as an SVG: each line that ever stood in a row is one text, shown while it stood there.

use anyhow::{Context, Result, ensure};
use std::{collections::BTreeMap, fmt::Write, num::NonZero};

/// Seconds between two looks at the terminal, and seconds that the last one stays before all begins anew.
const STEP: f64 = 0.5;
const HOLD: f64 = 6.0;
/// Of a cell and of the picture's margins, in pixels.
const CELL: (f64, f64) = (7.25, 16.0);
const MARGIN: (f64, f64) = (14.0, 40.0);

/// A piece of a line in one style.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Run {
    bold: bool,
    /// Index of a colour, or none.
    colour: Option<u8>,
    text: String,
}

type Line = Vec<Run>;

pub struct Film {
    size: (u16, u16),
    /// What each row showed, at each step.
    frames: Vec<Vec<Line>>,
}

impl Film {
    /// `output`, `times`: what script(1) logs in its classic format: a line of its own and the output; delays in seconds, and how many bytes came after each.
    pub fn of(output: &[u8], times: &str, size: (u16, u16)) -> Result<Film> {
        let begin = output.iter().position(|byte| *byte == b'\n').context("script(1) logged nothing")? + 1;
        let [rows, columns] = [size.0, size.1].map(NonZero::new);
        let (rows, columns) = rows.zip(columns).context("a terminal has rows and columns")?;
        let (mut rest, mut parser, mut frames) = (&output[begin..], vt100::Parser::new(rows, columns, 0), Vec::new());
        let mut time = 0.0;
        for line in times.lines() {
            let words: Vec<f64> = line.split_whitespace().map_while(|word| word.parse().ok()).collect();
            let [delay, count] = words[..] else { continue };
            time += delay;
            while (frames.len() as f64) * STEP < time {
                frames.push(lines(parser.screen()));
            }
            let count = (count as usize).min(rest.len());
            parser.process(&rest[..count]);
            rest = &rest[count..];
        }
        frames.push(lines(parser.screen()));
        ensure!(frames.len() > 1, "nothing moved on the terminal");
        Ok(Film { size, frames })
    }

    pub fn svg(&self, title: &str) -> String {
        let (width, height) = (f64::from(self.size.1) * CELL.0 + 2.0 * MARGIN.0, f64::from(self.size.0) * CELL.1 + MARGIN.1 + MARGIN.0);
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.0} {height:.0}\" font-family=\"ui-monospace, 'DejaVu Sans Mono', Menlo, Consolas, monospace\" font-size=\"12\">\n\
             <title>{title}, recorded</title>\n\
             <style>text {{ fill: #d0d7de; white-space: pre }} .b {{ font-weight: 700; fill: #ffffff }} .c1 {{ fill: #ff7b72 }} .c2 {{ fill: #56d364 }}</style>\n\
             <rect width=\"100%\" height=\"100%\" rx=\"8\" fill=\"#0d1117\"/>\n\
             <text x=\"{}\" y=\"22\" style=\"fill: #8b949e\">{title}</text>\n",
            MARGIN.0
        );
        // Each line of each row, with the steps at which it came and went.
        let mut shown: BTreeMap<(usize, &Line), Vec<(usize, usize)>> = BTreeMap::new();
        for (at, frame) in self.frames.iter().enumerate() {
            for (row, line) in frame.iter().enumerate().filter(|(_, line)| !line.is_empty()) {
                let spans = shown.entry((row, line)).or_default();
                match spans.last_mut() {
                    Some((_, end)) if *end == at => *end = at + 1,
                    _ => spans.push((at, at + 1)),
                }
            }
        }
        for ((row, line), spans) in shown {
            self.text(&mut svg, row, line, &spans);
        }
        svg + "</svg>\n"
    }

    fn text(&self, svg: &mut String, row: usize, line: &Line, spans: &[(usize, usize)]) {
        let (last, total) = (self.frames.len(), self.frames.len() as f64 * STEP + HOLD);
        // What stands at the end stays, also for viewers that show no motion.
        let stays = spans.last().is_some_and(|(_, end)| *end == last);
        let y = MARGIN.1 + (row as f64 + 0.75) * CELL.1;
        // Writing to a string cannot fail.
        let _ = write!(svg, "<text x=\"{}\" y=\"{y}\"{}>", MARGIN.0, if stays { "" } else { " visibility=\"hidden\"" });
        if spans != [(0, last)] {
            let (mut values, mut times) = (vec!["hidden"], vec![0.0]);
            for (begin, end) in spans {
                values.push("visible");
                times.push(*begin as f64 * STEP / total);
                if *end < last {
                    values.push("hidden");
                    times.push(*end as f64 * STEP / total);
                }
            }
            if times[1] == 0.0 {
                values.remove(0);
                times.remove(0);
            }
            let times: Vec<String> = times.iter().map(|time| format!("{time:.4}")).collect();
            let _ = write!(
                svg,
                "<animate attributeName=\"visibility\" values=\"{}\" keyTimes=\"{}\" dur=\"{total}s\" calcMode=\"discrete\" repeatCount=\"indefinite\"/>",
                values.join(";"),
                times.join(";")
            );
        }
        for run in line {
            let class = match (run.bold, run.colour) {
                (true, _) => " class=\"b\"".into(),
                (_, Some(colour)) => format!(" class=\"c{colour}\""),
                _ => String::new(),
            };
            let _ = write!(svg, "<tspan{class}>{}</tspan>", escaped(&run.text));
        }
        svg.push_str("</text>\n");
    }
}

/// What stands in each row, without blanks at its end.
fn lines(screen: &vt100::Screen) -> Vec<Line> {
    let (rows, columns) = screen.size();
    let (rows, columns) = (rows.get(), columns.get());
    let line = |row| {
        let mut line: Line = Vec::new();
        for cell in (0..columns).filter_map(|column| screen.cell(row, column)) {
            let colour = match cell.fgcolor() {
                vt100::Color::Idx(colour @ 1..=2) => Some(colour),
                _ => None,
            };
            let text = if cell.has_contents() { cell.contents() } else { " " };
            match line.last_mut() {
                Some(run) if run.bold == cell.bold() && run.colour == colour => run.text.push_str(text),
                _ => line.push(Run { bold: cell.bold(), colour, text: text.into() }),
            }
        }
        while let Some(run) = line.last_mut() {
            run.text.truncate(run.text.trim_end().len());
            if !run.text.is_empty() {
                break;
            }
            line.pop();
        }
        line
    };
    (0..rows).map(line).collect()
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_shown_while_it_stands() {
        // A line that is written over after a second, beside one that stays.
        let pieces: [(f64, &str); 3] =
            [(0.1, "one\r\n\x1b[1mtw<o\x1b[0m\r\n"), (1.0, "\x1b[2A\x1b[J\x1b[32mnew\x1b[0m\r\n"), (1.0, "end\r\n")];
        let output = format!("Script started\n{}", pieces.map(|(_, text)| text).concat());
        let times: String = pieces.iter().map(|(delay, text)| format!("{delay} {}\n", text.len())).collect();
        let film = Film::of(output.as_bytes(), &times, (4, 20)).unwrap();
        assert_eq!(film.frames.len(), 6, "looks at 0, 0.5, 1, 1.5 and 2 s, and at the end");
        let svg = film.svg("$ x");
        // Six steps of half a second, six seconds of rest.
        let line = |text: &str| svg.lines().find(|line| line.contains(text)).unwrap_or_else(|| panic!("no {text} in {svg}")).to_owned();
        assert!(
            line(">one<").contains("visibility=\"hidden\"")
                && line(">one<").contains("hidden;visible;hidden\" keyTimes=\"0.0000;0.0556;0.1667\"")
        );
        assert!(line("tw&lt;o").contains("class=\"b\""));
        assert!(line(">new<").contains("class=\"c2\"") && line(">new<").contains("hidden;visible\" keyTimes=\"0.0000;0.1667\" dur=\"9s\""));
        assert!(!line(">end<").contains("visibility=\"hidden\""), "what stands at the end is seen without motion");
    }

    #[test]
    fn nothing_recorded_is_an_error() {
        assert!(Film::of(b"", "", (4, 20)).is_err());
        assert!(Film::of(b"Script started\n", "", (4, 20)).is_err());
    }
}
