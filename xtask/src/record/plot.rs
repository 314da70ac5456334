//! `docs/numbers.svg`: CPU of a request over plain routing, by `bench/results/http.json`.

use crate::{root, step};
use anyhow::{Context, Result};
use serde_json::Value;
use std::{fmt::Write, fs};

/// Rows of the benchmark, and what people call them.
const CASES: [(&str, &str); 4] = [
    ("keepalive_small", "kept connections, small responses"),
    ("by_request_5_percent", "5% to the canary, request by request"),
    ("keepalive_1mb", "responses of 1 MB"),
    ("new_connection", "a new connection each"),
];
/// Subjects, and their colours.
const SUBJECTS: [(&str, &str, &str); 3] =
    [("splitter", "Splitter", "#0969da"), ("haproxy", "HAProxy", "#8c959f"), ("nginx", "nginx", "#afb8c1")];
/// Pixels: of a bar, of one times plain routing, where bars begin.
const BAR: f64 = 14.0;
const UNIT: f64 = 200.0;
const LEFT: f64 = 260.0;

pub fn run() -> Result<()> {
    let target = root()?.join("docs/numbers.svg");
    fs::write(&target, svg(&results()?)?).with_context(|| format!("cannot write {}", target.display()))?;
    step::say(format_args!("{}", target.display()));
    Ok(())
}

fn results() -> Result<Value> {
    let path = root()?.join("bench/results/http.json");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}; `cargo xtask bench http` makes it", path.display()))?;
    serde_json::from_str(&text).with_context(|| format!("{} is no JSON", path.display()))
}

fn svg(results: &Value) -> Result<String> {
    let rows = results["rows"].as_array().context("bench/results/http.json has no rows")?;
    let ratio = |case: &str, subject: &str| {
        let metric = format!("{case}_cpu_us_per_request");
        let row = rows.iter().find(|row| row["metric"] == metric.as_str() && row["subject"] == subject);
        row.and_then(|row| row["ratio"].as_f64()).with_context(|| format!("bench/results/http.json has no {metric} of {subject}"))
    };
    let block = BAR * SUBJECTS.len() as f64 + 16.0;
    let height = 44.0 + block * CASES.len() as f64 + 30.0;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 860 {height:.0}\" font-family=\"ui-sans-serif, system-ui, sans-serif\" font-size=\"13\">\n\
         <title>CPU of a request over plain routing</title>\n<style>text {{ fill: #24292f }} .soft {{ fill: #57606a; font-size: 12px }}</style>\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n\
         <text x=\"14\" y=\"24\" font-weight=\"600\">CPU of a request, plain routing = 1 (less is better)</text>\n"
    );
    for (i, (case, title)) in CASES.iter().enumerate() {
        let top = 44.0 + block * i as f64;
        // Writing to a string cannot fail.
        let _ = writeln!(svg, "<text x=\"{}\" y=\"{:.0}\" text-anchor=\"end\">{title}</text>", LEFT - 10.0, top + 1.5 * BAR + 4.0);
        for (j, (subject, name, colour)) in SUBJECTS.iter().enumerate() {
            let (value, y) = (ratio(case, subject)?, top + BAR * j as f64);
            let width = value * UNIT;
            let _ = writeln!(svg, "<rect x=\"{LEFT}\" y=\"{y}\" width=\"{width:.1}\" height=\"{}\" fill=\"{colour}\"/>", BAR - 2.0);
            let _ =
                writeln!(svg, "<text x=\"{:.1}\" y=\"{:.0}\" class=\"soft\">{name} {value:.2}</text>", LEFT + width + 6.0, y + BAR - 4.0);
        }
    }
    let (x, bottom) = (LEFT + UNIT, height - 24.0);
    let _ = writeln!(svg, "<path d=\"M{x},36 V{bottom}\" stroke=\"#24292f\" stroke-dasharray=\"3 3\"/>");
    let _ = writeln!(svg, "<text x=\"{x}\" y=\"{}\" text-anchor=\"middle\" class=\"soft\">plain routing</text>", height - 8.0);
    Ok(svg + "</svg>\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_plot_in_the_docs_is_of_the_results() {
        let kept = fs::read_to_string(root().unwrap().join("docs/numbers.svg")).unwrap();
        assert_eq!(kept, svg(&results().unwrap()).unwrap(), "run `cargo xtask plot`");
    }

    #[test]
    fn a_row_that_is_missing_is_named() {
        let error = svg(&serde_json::json!({"rows": []})).unwrap_err();
        assert_eq!(error.to_string(), "bench/results/http.json has no keepalive_small_cpu_us_per_request of splitter");
    }
}
