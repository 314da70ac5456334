//! `rollout` -> YAML.

use super::{
    duration,
    tree::{Map, Tree, list, one, text, texts, word},
};
use crate::{
    model::{
        Check, ErrorRate, External, Freeze, Gates, Hook, Judge, Latency, Measure, Number, Pace, Ppm, Rollout, Service, ShareMismatch,
        SplitBy,
    },
    source::rollout::{self as read, DAYS, STEPS},
};
use std::time::Duration;

pub fn rollout(rollout: &Rollout, service: &Service) -> Tree {
    let name = |index: usize| service.versions.get(index).map(|version| text(&version.name));
    let unless = |time: Duration, default: Duration| (time != default).then(|| duration(time));
    let mut fields = Map::default();
    fields.put("canary", name(rollout.canary));
    let heaviest = read::heaviest_other(&service.versions, rollout.canary);
    fields.put("baseline", name(rollout.baseline).filter(|_| heaviest != Some(rollout.baseline)));
    let steps = rollout.steps.iter().enumerate().flat_map(|(index, step)| {
        let pause = rollout.pauses.get(&index).map(|pause| {
            let mut inner = Map::default();
            inner.put("duration", pause.duration.map(duration));
            one("pause", inner.into())
        });
        std::iter::once(percent(*step)).chain(pause)
    });
    fields.put("steps", list(steps).filter(|_| rollout.steps != STEPS || !rollout.pauses.is_empty()));
    fields.put("pace", (rollout.pace == Pace::Adaptive).then(|| word("adaptive")));
    fields.put("dwell", unless(rollout.dwell, read::dwell(rollout.pace)));
    fields.put("watch", unless(rollout.watch, rollout.dwell));
    fields.put("watchAfter", unless(rollout.watch_after, read::WATCH_AFTER));
    fields.put("progressDeadline", rollout.progress_deadline.map(duration));
    fields.put("minSamples", (rollout.min_samples != read::MIN_SAMPLES).then(|| word(rollout.min_samples)));
    fields.put("warmUp", unless(rollout.warm_up, read::WARM_UP));
    fields.put("falseAlarm", (rollout.false_alarm != read::FALSE_ALARM).then(|| percent(rollout.false_alarm)));
    fields.put("gates", gates(&rollout.gates, &service.split_by));
    fields.put(
        "judge",
        match rollout.judge {
            Judge::Drawn => None,
            Judge::Ruled => Some(word("ruled")),
            Judge::All => Some(word("all")),
        },
    );
    fields.put("retries", (rollout.retries > 0).then(|| word(rollout.retries)));
    fields.put("coolDown", unless(rollout.cool_down, read::COOL_DOWN));
    fields.put("freeze", list(rollout.freeze.iter().map(freeze)));
    fields.put("hooks", list(rollout.hooks.iter().map(hook)));
    fields.into()
}

fn freeze(freeze: &Freeze) -> Tree {
    let time = |minutes: u16| text(format_args!("{:02}:{:02}", minutes / 60, minutes % 60));
    let mut fields = Map::default();
    fields.put("days", list(freeze.days.iter().filter_map(|day| DAYS.get(usize::from(*day))).map(word)));
    let dates = freeze.dates.map(|dates| {
        let [first, last] = dates.map(|(year, month, day)| format!("{year:04}-{month:02}-{day:02}"));
        word(if first == last { first } else { format!("{first}..{last}") })
    });
    if dates.is_none() || (freeze.from, freeze.to) != (0, 0) {
        fields.put("from", time(freeze.from));
        fields.put("to", time(freeze.to));
    }
    fields.put("dates", dates);
    fields.put("zone", freeze.zone.as_ref().map(text));
    fields.into()
}

fn hook(hook: &Hook) -> Tree {
    let mut fields = Map::default();
    let timeout = match hook {
        Hook::Webhook { url, timeout } => {
            fields.put("webhook", text(url));
            timeout
        }
        Hook::Command { run, timeout } => {
            fields.put("command", texts(run));
            timeout
        }
    };
    fields.put("timeout", (*timeout != read::TIMEOUT).then(|| duration(*timeout)));
    fields.into()
}

fn gates(gates: &Gates, split_by: &SplitBy) -> Option<Tree> {
    let mut fields = Map::default();
    fields.put(
        "errorRate",
        match &gates.error_rate {
            None => Some(word("off")),
            Some(gate) => Some(error_rate(gate)).filter(|_| *gate != ErrorRate::default()),
        },
    );
    let mut latency: Vec<Tree> = gates.latency.iter().map(self::latency).collect();
    let only = if latency.len() == 1 { latency.pop() } else { None };
    fields.put("latency", only.or_else(|| list(latency)));
    fields.put("share", share(gates.share.as_ref(), read::is_sticky(split_by)));
    let places = places(&gates.external);
    for (place, field) in LISTS.into_iter().enumerate() {
        let of_place = gates.external.iter().zip(&places).filter(|(_, at)| **at == place);
        fields.put(field, list(of_place.map(|(gate, _)| external(gate, place))));
    }
    (!fields.is_empty()).then(|| fields.into())
}

fn share(gate: Option<&ShareMismatch>, sticky: bool) -> Option<Tree> {
    match gate {
        None => (!sticky).then(|| word("off")),
        Some(gate) if *gate == read::SHARE => sticky.then(|| Map::default().into()),
        Some(gate) => Some(one("tolerance", percent(gate.tolerance))),
    }
}

fn error_rate(gate: &ErrorRate) -> Tree {
    let default = ErrorRate::default();
    let unless = |part: Ppm, default: Ppm| (part != default).then(|| percent(part));
    let mut fields = Map::default();
    fields.put("max", gate.max.map(percent));
    fields.put("maxIncrease", unless(gate.max_increase, default.max_increase));
    fields.put("margin", unless(gate.margin, default.margin));
    fields.put("ignoreBelow", unless(gate.ignore_below, default.ignore_below));
    fields.put("unanswered", (gate.unanswered != default.unanswered).then(|| duration(gate.unanswered)));
    let codes = gate.codes.iter().map(|[first, last]| if first == last { word(first) } else { word(format_args!("{}xx", first / 100)) });
    fields.put("codes", list(codes).filter(|_| gate.codes != default.codes));
    fields.into()
}

fn latency(gate: &Latency) -> Tree {
    let mut fields = Map::default();
    fields.put("measure", (gate.measure == Measure::Connect).then(|| word("connect")));
    fields.put("quantile", word(decimal(i64::from(gate.quantile), 6)));
    fields.put("max", gate.max.map(duration));
    fields.put("maxIncrease", gate.max_increase.map(percent));
    fields.into()
}

/// Lists of gates that ask others, in the order in which they are read.
const LISTS: [&str; 5] = ["saturation", "probes", "prometheus", "webhooks", "commands"];
const PROBES: usize = 1;
const COMMANDS: usize = 4;

/// In which list each gate stands. A command can be a probe too: it is one when something follows that is read before commands.
fn places(gates: &[External]) -> Vec<usize> {
    let mut places = vec![COMMANDS; gates.len()];
    let mut bound = COMMANDS;
    for (place, gate) in places.iter_mut().zip(gates).rev() {
        *place = match &gate.check {
            Check::Value { from: Number::Prometheus { .. }, .. } => 2,
            Check::Value { .. } => 0,
            Check::Http { .. } => PROBES,
            Check::Webhook { .. } => 3,
            Check::Command { .. } if bound < COMMANDS => PROBES,
            Check::Command { .. } => COMMANDS,
        };
        bound = *place;
    }
    places
}

fn external(gate: &External, place: usize) -> Tree {
    let mut fields = Map::default();
    fields.put("name", text(&gate.name));
    match &gate.check {
        Check::Webhook { url } => fields.put("url", text(url)),
        Check::Command { run } => fields.put(if place == PROBES { "command" } else { "run" }, texts(run)),
        Check::Value { from, min, max } => value(from, *min, *max, &mut fields),
        Check::Http { method, path, headers, body, status, contains } => {
            fields.put("path", text(path));
            fields.put("method", (method != "GET").then(|| text(method)));
            let headers: Vec<_> = headers.iter().map(|(name, value)| (name.clone(), text(value))).collect();
            fields.put("headers", (!headers.is_empty()).then_some(Tree::Map(headers)));
            fields.put("body", (!body.is_empty()).then(|| text(body)));
            fields.put("status", (*status != 200).then(|| word(status)));
            fields.put("contains", contains.as_ref().map(text));
        }
    }
    fields.put("every", (gate.every != read::EVERY_USUAL).then(|| duration(gate.every)));
    fields.put("timeout", (gate.timeout != read::TIMEOUT).then(|| duration(gate.timeout)));
    fields.put("failures", (gate.failures != read::FAILURES[place]).then(|| word(gate.failures)));
    fields.into()
}

fn value(from: &Number, min: Option<i64>, max: Option<i64>, fields: &mut Map) {
    // Of saturation a share, of a query a number; both in thousandths.
    let share = max.map(|max| word(format_args!("{}%", decimal(max, 1))));
    match from {
        Number::Prometheus { url, query } => {
            fields.put("url", text(url));
            fields.put("query", text(query));
            fields.put("min", min.map(|min| word(decimal(min, 3))));
            fields.put("max", max.map(|max| word(decimal(max, 3))));
        }
        Number::Command { run } => {
            fields.put("command", texts(run));
            fields.put("max", share);
        }
        Number::CgroupCpu { path } => {
            fields.put("cgroup", text(path));
            fields.put("max", share);
        }
        Number::CgroupMemory { path } => {
            fields.put("cgroup", text(path));
            fields.put("resource", word("memory"));
            fields.put("max", share);
        }
    }
}

/// `5%`, `0.1%`.
fn percent(part: Ppm) -> Tree {
    word(format_args!("{}%", decimal(i64::from(part), 4)))
}

/// A number of units of a decimal place.
fn decimal(value: i64, places: u32) -> String {
    let unit = 10u64.pow(places);
    let (sign, size) = (if value < 0 { "-" } else { "" }, value.unsigned_abs());
    let fraction = format!("{:0>width$}", size % unit, width = places as usize);
    let fraction = fraction.trim_end_matches('0');
    let dot = if fraction.is_empty() { "" } else { "." };
    format!("{sign}{}{dot}{fraction}", size / unit)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ALL;

    #[test]
    fn numbers_have_no_more_digits_than_they_need() {
        assert_eq!([decimal(990_000, 6), decimal(500_000, 6), decimal(1, 6)], ["0.99", "0.5", "0.000001"]);
        assert_eq!([decimal(-1_500, 3), decimal(10_500, 3), decimal(0, 3), decimal(800, 1)], ["-1.5", "10.5", "0", "80"]);
        assert_eq!([percent(ALL), percent(5_000), percent(1)], ["100%", "0.5%", "0.0001%"].map(word));
    }
}
