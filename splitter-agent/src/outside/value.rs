//! Numbers: an instant query of Prometheus, a command's output, CPU and memory of a cgroup v2.

use super::{OutsideError, http};
use serde_json::Value;
use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

/// CPU time is taken over this long.
const SPAN: Duration = Duration::from_millis(500);

/// The first sample of an instant query (Prometheus HTTP API, `/api/v1/query`).
pub async fn prometheus(url: &str, query: &str) -> Result<f64, OutsideError> {
    let address = format!("{}/api/v1/query?query={}", url.trim_end_matches('/'), encode(query));
    let (status, text) = http::get(&address).await?;
    let answer: Value = serde_json::from_str(&text).map_err(|_| OutsideError::Value(format!("{url} answered {status} and no JSON")))?;
    if answer["status"] != "success" {
        return Err(OutsideError::Value(format!("{url} refused the query: {}", answer["error"].as_str().unwrap_or("no reason given"))));
    }
    // A vector holds samples, a scalar is one.
    let data = &answer["data"];
    let sample = if data["resultType"] == "scalar" { &data["result"][1] } else { &data["result"][0]["value"][1] };
    // Which of several would be meant cannot be told, and their order is nobody's promise.
    if let (Some(all), false) = (data["result"].as_array(), data["resultType"] == "scalar")
        && all.len() > 1
    {
        return Err(OutsideError::Value(format!(
            "the query `{query}` gives {} series where one is wanted: {}; aggregate them, for example by sum(...), or select one by its labels",
            all.len(),
            series(all)
        )));
    }
    let value = sample.as_str().and_then(|text| text.parse::<f64>().ok()).filter(|value| value.is_finite());
    value.ok_or_else(|| OutsideError::Value(format!("the query `{query}` gives no number")))
}

/// The labels of some series, as Prometheus writes them.
fn series(all: &[Value]) -> String {
    const NAMED: usize = 5;
    let one = |sample: &Value| {
        let labels = sample["metric"].as_object().into_iter().flatten();
        let labels: Vec<String> =
            labels.clone().filter(|(name, _)| *name != "__name__").map(|(name, value)| format!("{name}={value}")).collect();
        format!("{}{{{}}}", sample["metric"]["__name__"].as_str().unwrap_or_default(), labels.join(","))
    };
    let named = all.iter().take(NAMED).map(one).collect::<Vec<_>>().join(", ");
    if all.len() > NAMED { format!("{named} and {} more", all.len() - NAMED) } else { named }
}

/// RFC 3986, 2.3: everything but unreserved characters.
fn encode(text: &str) -> String {
    let one = |byte: u8| {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }
    };
    text.bytes().map(one).collect()
}

pub fn first_number(output: &str) -> Result<f64, OutsideError> {
    let word = output.split_whitespace().next().unwrap_or_default();
    let value = word.parse::<f64>().ok().filter(|value| value.is_finite());
    value.ok_or_else(|| OutsideError::Value(format!("`{word}` is not a number")))
}

/// Share of one CPU that the cgroup used over the last half second, from `cpu.stat`.
pub async fn cgroup_cpu(path: &str) -> Result<f64, OutsideError> {
    let (began, before) = (Instant::now(), usage(path)?);
    tokio::time::sleep(SPAN).await;
    let after = usage(path)?;
    Ok(after.saturating_sub(before) as f64 / began.elapsed().as_micros().max(1) as f64)
}

/// Microseconds of CPU.
fn usage(path: &str) -> Result<u64, OutsideError> {
    let text = read(path, "cpu.stat")?;
    let value = text.lines().find_map(|line| line.strip_prefix("usage_usec ")?.trim().parse().ok());
    value.ok_or_else(|| OutsideError::Value(format!("{path}/cpu.stat has no usage_usec")))
}

/// `memory.current` over `memory.max`.
pub fn cgroup_memory(path: &str) -> Result<f64, OutsideError> {
    let number = |name: &str| -> Result<f64, OutsideError> {
        let text = read(path, name)?;
        text.trim().parse().map_err(|_| OutsideError::Value(format!("{path}/{name} is `{}`: no limit is set", text.trim())))
    };
    Ok(number("memory.current")? / number("memory.max")?.max(1.0))
}

fn read(path: &str, name: &str) -> Result<String, OutsideError> {
    let file = Path::new(path).join(name);
    fs::read_to_string(&file).map_err(|error| OutsideError::Value(format!("cannot read {}: {error}", file.display())))
}
