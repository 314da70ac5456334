//! Figures: samples to rows, ratios to baselines, rows to a table. Pure.

use serde::Serialize;
use serde_json::Value;
use std::{collections::BTreeMap, io::Write};

/// Values of repeated measurements of one thing.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Samples(Vec<f64>);

impl Samples {
    pub fn push(&mut self, value: f64) {
        self.0.push(value);
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The value that a share `q` (0..=1) of the samples does not exceed; NaN without samples.
    pub fn quantile(&self, q: f64) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let rank = (q * sorted.len() as f64).ceil().max(1.0) as usize;
        sorted.get(rank - 1).copied().unwrap_or(f64::NAN)
    }

    /// Value by value over those of another series measured in turns with this one.
    pub fn ratios(&self, baseline: &Samples) -> Samples {
        Samples(self.0.iter().zip(&baseline.0).map(|(ours, theirs)| ours / theirs).collect())
    }

    pub fn median(&self) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        match (sorted.len(), sorted.len() / 2) {
            (0, _) => f64::NAN,
            (n, middle) if n % 2 == 1 => sorted[middle],
            (_, middle) => (sorted[middle - 1] + sorted[middle]) / 2.0,
        }
    }
}

impl From<Vec<f64>> for Samples {
    fn from(values: Vec<f64>) -> Samples {
        Samples(values)
    }
}

/// One figure of one subject.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    pub case: &'static str,
    pub subject: String,
    /// With its unit: `ns_per_packet`, `cli_round_trip_ms_p50`.
    pub metric: String,
    pub value: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub baseline: Option<String>,
    /// To the baseline's value of the same metric.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ratio: Option<f64>,
    /// Smallest and largest of the samples.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub samples: Option<usize>,
    /// What else belongs to it.
    #[serde(flatten)]
    pub more: BTreeMap<&'static str, Value>,
}

/// The rows of one case, as they come.
#[derive(Debug)]
pub struct Rows {
    case: &'static str,
    rows: Vec<Row>,
}

impl Rows {
    pub fn new(case: &'static str) -> Rows {
        Rows { case, rows: Vec::new() }
    }

    pub fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// Adds a figure. The ratio is taken where the baseline has the same metric and is not zero.
    pub fn add(&mut self, subject: &str, metric: &str, value: f64, baseline: Option<&str>) -> &mut Row {
        let of = |name: &&str| self.rows.iter().find(|row| row.subject == *name && row.metric == metric).map(|row| row.value);
        let ratio = baseline.as_ref().and_then(of).filter(|base| *base != 0.0).map(|base| value / base);
        self.push(subject, metric, value, baseline.zip(ratio))
    }

    /// The same with a ratio that was taken elsewhere.
    fn push(&mut self, subject: &str, metric: &str, value: f64, ratio: Option<(&str, f64)>) -> &mut Row {
        let row = Row {
            case: self.case,
            subject: subject.into(),
            metric: metric.into(),
            value: rounded(value),
            baseline: ratio.map(|(baseline, _)| baseline.into()),
            ratio: ratio.map(|(_, ratio)| rounded(ratio)),
            min: None,
            max: None,
            samples: None,
            more: BTreeMap::new(),
        };
        let ratio = row.ratio.map_or(String::new(), |ratio| format!("  {ratio:.3}x of {}", row.baseline.as_deref().unwrap_or_default()));
        say(format_args!("  {:14} {:28} {:32} {:>12}{ratio}", row.case, row.subject, row.metric, number(row.value)));
        self.rows.push(row);
        let last = self.rows.len() - 1;
        &mut self.rows[last]
    }

    /// The same for the median of samples.
    pub fn add_median(&mut self, subject: &str, metric: &str, samples: &Samples, baseline: Option<&str>) -> &mut Row {
        self.add(subject, metric, samples.median(), baseline).spread(samples)
    }

    /// The median of samples, and of the ratios of each of them to the baseline's.
    pub fn add_paired(&mut self, subject: &str, metric: &str, samples: &Samples, ratios: Option<(&str, Samples)>) -> &mut Row {
        let ratio = ratios.as_ref().map(|(baseline, ratios)| (*baseline, ratios.median()));
        self.push(subject, metric, samples.median(), ratio).spread(samples)
    }

    /// Median and 99th percentile as two rows, `METRIC_p50` and `METRIC_p99`.
    pub fn add_quantiles(&mut self, subject: &str, metric: &str, samples: &Samples, baseline: Option<&str>) {
        self.add_median(subject, &format!("{metric}_p50"), samples, baseline);
        self.add(subject, &format!("{metric}_p99"), samples.quantile(0.99), baseline).samples = Some(samples.len());
    }
}

impl Row {
    fn spread(&mut self, samples: &Samples) -> &mut Row {
        (self.min, self.max, self.samples) =
            (Some(rounded(samples.quantile(0.0))), Some(rounded(samples.quantile(1.0))), Some(samples.len()));
        self
    }
}

/// A line of progress. That nobody reads it is no reason to stop half-way with a network standing.
pub fn say(text: std::fmt::Arguments) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// The name under which a subject is measured a second time: what the two differ by is the noise of the run.
pub fn again(subject: &str) -> String {
    format!("{subject}-again")
}

/// By metric the largest deviation from 1 of a ratio of a subject to itself.
pub fn noise(rows: &[Row]) -> BTreeMap<String, f64> {
    let mut noise = BTreeMap::new();
    for row in rows {
        if let (Some(baseline), Some(ratio)) = (&row.baseline, row.ratio)
            && row.subject == again(baseline)
        {
            let deviation: &mut f64 = noise.entry(row.metric.clone()).or_default();
            *deviation = deviation.max(rounded((ratio - 1.0).abs()));
        }
    }
    noise
}

/// Four significant digits, never fewer than the whole part.
pub fn rounded(value: f64) -> f64 {
    if value == 0.0 || !value.is_finite() {
        return value;
    }
    let digits = (3 - value.abs().log10().floor() as i32).max(0);
    let scale = 10f64.powi(digits);
    (value * scale).round() / scale
}

fn number(value: f64) -> String {
    if value.abs() >= 1000.0 { format!("{value:.0}") } else { format!("{value}") }
}

/// For people: one line a row.
pub fn table(rows: &[Row]) -> String {
    let head = ["SUBJECT", "METRIC", "VALUE", "RATIO", "BASELINE"].map(String::from);
    let cells = rows.iter().map(|row| {
        let ratio = row.ratio.map_or(String::new(), |ratio| format!("{ratio:.3}"));
        [row.subject.clone(), row.metric.clone(), number(row.value), ratio, row.baseline.clone().unwrap_or_default()]
    });
    let lines: Vec<[String; 5]> = std::iter::once(head).chain(cells).collect();
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..5).map(width).collect();
    let mut text = rows.first().map_or(String::new(), |row| format!("{}\n", row.case));
    for [subject, metric, value, ratio, baseline] in &lines {
        let (s, m, v, r) = (widths[0], widths[1], widths[2], widths[3]);
        let line = format!("  {subject:s$}  {metric:m$}  {value:>v$}  {ratio:>r$}  {baseline}");
        text += line.trim_end();
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_quantiles() {
        let odd = Samples::from(vec![9.0, 1.0, 5.0]);
        assert_eq!((odd.median(), odd.quantile(0.0), odd.quantile(0.5), odd.quantile(1.0)), (5.0, 1.0, 5.0, 9.0));
        assert_eq!(Samples::from(vec![1.0, 2.0, 3.0, 10.0]).median(), 2.5);
        let hundred = Samples::from((1..=100).map(f64::from).collect::<Vec<_>>());
        assert_eq!((hundred.quantile(0.99), hundred.len()), (99.0, 100));
        assert!(Samples::default().median().is_nan() && Samples::default().quantile(0.5).is_nan() && Samples::default().is_empty());
    }

    #[test]
    fn ratios_need_the_same_metric_of_the_baseline() {
        let mut rows = Rows::new("l4");
        rows.add("plain", "rps", 200.0, None);
        assert_eq!(rows.add("ours", "rps", 210.0, Some("plain")).ratio, Some(1.05));
        let other = rows.add("ours", "cpu_us", 5.0, Some("plain")).clone();
        assert_eq!((other.ratio, other.baseline), (None, None));
        rows.add("plain", "late", 0.0, None);
        assert_eq!(rows.add("ours", "late", 3.0, Some("plain")).ratio, None);
    }

    #[test]
    fn paired_ratios_do_not_see_a_drift() {
        let (ours, theirs) = (Samples::from(vec![110.0, 55.0, 220.0]), Samples::from(vec![100.0, 50.0, 100.0]));
        assert_eq!(ours.ratios(&theirs), Samples::from(vec![1.1, 1.1, 2.2]));
        let mut rows = Rows::new("l4");
        let row = rows.add_paired("ours", "rps", &ours, Some(("plain", ours.ratios(&theirs))));
        assert_eq!((row.value, row.ratio, row.baseline.as_deref(), row.min), (110.0, Some(1.1), Some("plain"), Some(55.0)));
    }

    #[test]
    fn rows_as_json() {
        let mut rows = Rows::new("program-cost");
        rows.add("reference", "ns_per_packet", 70.0, None);
        let row = rows.add_median("tc", "ns_per_packet", &Samples::from(vec![71.26, 70.0, 84.123]), Some("reference"));
        row.more.insert("flows", 1000.into());
        let json = serde_json::to_string(&rows.rows()[1]).unwrap();
        let expected = r#"{"case":"program-cost","subject":"tc","metric":"ns_per_packet","value":71.26,"baseline":"reference","ratio":1.018,"min":70.0,"max":84.12,"samples":3,"flows":1000}"#;
        assert_eq!(json, expected);
        let plain = serde_json::to_value(&rows.rows()[0]).unwrap();
        assert_eq!(plain.as_object().unwrap().len(), 4);
    }

    #[test]
    fn noise_is_a_subject_against_itself() {
        let mut rows = Rows::new("l4");
        rows.add("plain", "rps", 100.0, None);
        rows.add("plain-again", "rps", 97.0, Some("plain"));
        rows.add("ours", "rps", 150.0, Some("plain"));
        assert_eq!(noise(rows.rows()), BTreeMap::from([("rps".to_owned(), 0.03)]));
    }

    #[test]
    fn four_digits() {
        assert_eq!([71.2649, 0.0123456, 12345.6, 0.0, -1.00049].map(rounded), [71.26, 0.01235, 12346.0, 0.0, -1.0]);
        assert!(rounded(f64::NAN).is_nan());
    }

    #[test]
    fn a_table_lines_up() {
        let mut rows = Rows::new("l4");
        rows.add("plain", "rps", 100.0, None);
        rows.add("ours", "rps", 150.0, Some("plain"));
        let expected = "l4\n  SUBJECT  METRIC  VALUE  RATIO  BASELINE\n  plain    rps       100\n  ours     rps       150  1.500  plain\n";
        assert_eq!(table(rows.rows()), expected);
    }
}
