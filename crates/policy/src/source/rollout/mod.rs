//! The field `rollout` of a TrafficSplit -> model: its fields, defaults and limits.
//!
//! Gates that ask others are in `gates`. Knows nothing of how a rollout runs.

mod gates;
#[cfg(test)]
mod tests;

pub use gates::{EVERY_USUAL, FAILURES, SHARE};

use super::{
    At,
    fields::{Context, Fields, kind, suggestion},
    network,
    yaml::{Kind, Node},
};
use crate::model::{ALL, FAILING, Freeze, Hook, Judge, Mode, Pace, Pause, Ppm, Rollout, SplitBy, Version};
use jiff::{civil::Date, tz::TimeZone};
use std::{collections::BTreeMap, time::Duration};

const FIELDS: &[&str] = &[
    "canary",
    "baseline",
    "strategy",
    "steps",
    "pace",
    "dwell",
    "watch",
    "watchAfter",
    "progressDeadline",
    "minSamples",
    "warmUp",
    "falseAlarm",
    "gates",
    "judge",
    "retries",
    "coolDown",
    "freeze",
    "hooks",
];
/// 1%, 5%, 10%, 50%, 100%.
pub const STEPS: [Ppm; 5] = [10_000, 50_000, 100_000, 500_000, ALL];
pub const WATCH_AFTER: Duration = Duration::from_secs(600);
pub const MIN_SAMPLES: u64 = 100;
pub const WARM_UP: Duration = Duration::from_secs(10);
pub const FALSE_ALARM: Ppm = 10_000;
pub const COOL_DOWN: Duration = Duration::from_secs(300);
/// Of hooks, and of gates that ask others.
pub const TIMEOUT: Duration = Duration::from_secs(5);
pub const DAYS: [&str; 7] = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];

/// `None` when something is wrong; it is reported. `split_by`: of the service.
pub fn decode(node: &Node<'_>, versions: &[Version], split_by: &SplitBy, context: &mut Context<'_>) -> Option<Rollout> {
    let before = context.report.errors.len();
    let fields = context.fields(node, "spec.rollout", FIELDS)?;
    let canary = context
        .required(&fields, "canary", "spec.rollout.canary", "canary: v2")
        .and_then(|node| version(node, "spec.rollout.canary", versions, context));
    let baseline = match fields.optional("baseline") {
        Some(node) => version(node, "spec.rollout.baseline", versions, context),
        None => canary.and_then(|canary| heaviest_other(versions, canary)),
    };
    if let (Some(canary), Some(baseline)) = (canary, baseline)
        && canary == baseline
    {
        context.error(node.at, "spec.rollout.canary and baseline are the same version; name two");
    }
    if canary.is_some() && versions.len() < 2 {
        context.error(node.at, "a rollout needs a second version to compare with and to go back to; add it to spec.versions");
    }
    let blue_green = fields
        .optional("strategy")
        .and_then(|node| context.word(node, "spec.rollout.strategy", &[("steps", false), ("blueGreen", true)]))
        .unwrap_or(false);
    let (steps, pauses) = steps(&fields, blue_green, context);
    let pace = fields
        .optional("pace")
        .and_then(|node| context.word(node, "spec.rollout.pace", &[("fixed", Pace::Fixed), ("adaptive", Pace::Adaptive)]))
        .unwrap_or_default();
    let dwell = time(&fields, "dwell", "spec.rollout.dwell", context).unwrap_or(dwell(pace));
    let judge = fields.optional("judge").and_then(|node| {
        context.word(node, "spec.rollout.judge", &[("drawn", Judge::Drawn), ("ruled", Judge::Ruled), ("all", Judge::All)])
    });
    let watch = time(&fields, "watch", "spec.rollout.watch", context).unwrap_or(dwell);
    let deadline = time(&fields, "progressDeadline", "spec.rollout.progressDeadline", context).filter(|deadline| !deadline.is_zero());
    if let (Some(deadline), Some(node)) = (deadline, fields.optional("progressDeadline"))
        && deadline <= dwell.max(watch)
    {
        context.error(node.at, "spec.rollout.progressDeadline must be longer than `dwell` and `watch`, or no step could ever end in time");
    }
    let gates = gates::decode(fields.optional("gates"), is_sticky(split_by), context);
    let rollout = Rollout {
        canary: canary.unwrap_or(0),
        baseline: baseline.unwrap_or(0),
        steps,
        pauses,
        pace,
        dwell,
        watch,
        watch_after: time(&fields, "watchAfter", "spec.rollout.watchAfter", context).unwrap_or(WATCH_AFTER),
        progress_deadline: deadline,
        min_samples: number(&fields, "minSamples", "spec.rollout.minSamples", u32::MAX, context).map_or(MIN_SAMPLES, u64::from),
        warm_up: time(&fields, "warmUp", "spec.rollout.warmUp", context).unwrap_or(WARM_UP),
        false_alarm: share(&fields, "falseAlarm", "spec.rollout.falseAlarm", 1, ALL / 2, context).unwrap_or(FALSE_ALARM),
        gates,
        judge: judge.unwrap_or_default(),
        retries: number(&fields, "retries", "spec.rollout.retries", 100, context).unwrap_or(0),
        cool_down: time(&fields, "coolDown", "spec.rollout.coolDown", context).unwrap_or(COOL_DOWN),
        freeze: list(&fields, "freeze", "spec.rollout.freeze", context, freeze),
        hooks: list(&fields, "hooks", "spec.rollout.hooks", context, hook),
    };
    (context.report.errors.len() == before).then_some(rollout)
}

/// Warns of what can never tell anything. `ruled`: a rule sends requests to the canary.
pub fn doubts(rollout: &Rollout, at: At, ruled: bool, mode: Mode, context: &mut Context<'_>) {
    if rollout.judge == Judge::Ruled && !ruled {
        context.warn(
            at,
            "spec.rollout.judge is `ruled`, but no rule sends anything to the canary: nothing is judged; add a rule, or remove `judge`",
        );
    }
    let relative = rollout.gates.error_rate.as_ref().is_some_and(|gate| gate.max.is_none());
    if rollout.judge == Judge::Ruled && relative {
        context
            .warn(at, "with `judge: ruled` the baseline has few requests to compare with: add a limit, for example `errorRate: {max: 5%}`");
    }
    if !mode.reads_requests() && rollout.gates.error_rate.as_ref().is_some_and(|gate| gate.codes != [FAILING]) {
        context.warn(at, "spec.rollout.gates.errorRate.codes does nothing without `mode: http`: no answer is read; remove it");
    }
}

fn version(node: &Node<'_>, what: &str, versions: &[Version], context: &mut Context<'_>) -> Option<usize> {
    let name = context.string(node, what)?;
    let index = versions.iter().position(|version| version.name == name);
    if index.is_none() && versions.iter().all(|version| !version.name.is_empty()) {
        let known: Vec<_> = versions.iter().map(|version| version.name.as_str()).collect();
        context.error(node.at, format!("there is no version `{name}`; {}", suggestion(name, &known)));
    }
    index
}

/// How long a step lasts at least.
pub const fn dwell(pace: Pace) -> Duration {
    match pace {
        Pace::Adaptive => Duration::from_secs(10),
        Pace::Fixed => Duration::from_secs(300),
    }
}

/// Whoever draws by a key may have a few heavy clients on one side: there the share is judged only when asked for.
pub const fn is_sticky(split_by: &SplitBy) -> bool {
    !matches!(split_by, SplitBy::Connection | SplitBy::Request)
}

/// What a canary is compared with. Of equal ones the first.
pub fn heaviest_other(versions: &[Version], canary: usize) -> Option<usize> {
    let others = versions.iter().enumerate().filter(|(index, _)| *index != canary);
    others.rev().max_by_key(|(_, version)| version.weight).map(|(index, _)| index)
}

fn steps(fields: &Fields<'_>, blue_green: bool, context: &mut Context<'_>) -> (Vec<Ppm>, BTreeMap<usize, Pause>) {
    let (mut found, mut pauses) = (Vec::new(), BTreeMap::new());
    let Some(node) = fields.optional("steps") else { return (if blue_green { vec![ALL] } else { STEPS.to_vec() }, pauses) };
    if blue_green {
        context.error(node.at, "spec.rollout.steps has no meaning with `strategy: blueGreen`, which goes from 0 to 100%; remove one");
    }
    let items = context.list(node, "spec.rollout.steps").unwrap_or_default();
    for (index, item) in items.iter().enumerate() {
        let what = format!("spec.rollout.steps[{index}]");
        if matches!(item.kind, Kind::Map(_)) {
            let pause = pause(item, &what, context);
            match found.len().checked_sub(1) {
                None => context.error(item.at, "a pause stands after the step that it ends; the first step is a share such as 1%"),
                Some(step) if pauses.contains_key(&step) => context.error(item.at, "one pause follows another; remove one"),
                Some(step) => drop(pauses.insert(step, pause)),
            }
            continue;
        }
        let Some(step) = percent(item, &what, 1, ALL, context) else { continue };
        if found.last().is_some_and(|last| *last >= step) {
            context.error(item.at, "steps must rise; sort them, for example [1%, 5%, 10%, 50%, 100%]");
        }
        found.push(step);
    }
    if items.is_empty() || items.len() > 100 {
        context.error(node.at, "spec.rollout.steps must have 1 to 100 steps, for example [1%, 5%, 10%, 50%, 100%]");
    }
    (found, pauses)
}

/// `pause: {}` or `pause: {duration: 10m}`.
fn pause(item: &Node<'_>, what: &str, context: &mut Context<'_>) -> Pause {
    let before = context.report.errors.len();
    let fields = context.fields(item, what, &["pause"]).filter(|_| context.report.errors.len() == before);
    let Some(fields) = fields else { return Pause::default() };
    let node = context.required(&fields, "pause", &format!("{what}.pause"), "pause: {}");
    let fields = node.and_then(|node| context.fields(node, &format!("{what}.pause"), &["duration"]));
    let duration = fields.and_then(|fields| timeout(&fields, "duration", &format!("{what}.pause.duration"), context));
    Pause { duration }
}

/// A duration above zero.
fn timeout(fields: &Fields<'_>, name: &str, what: &str, context: &mut Context<'_>) -> Option<Duration> {
    let found = time(fields, name, what, context)?;
    if found.is_zero() {
        let node = fields.optional(name)?;
        context.error(node.at, format!("{what} must be more than 0s; write for example 5s"));
        return None;
    }
    Some(found)
}

/// A duration; `0s` means none.
fn time(fields: &Fields<'_>, name: &str, what: &str, context: &mut Context<'_>) -> Option<Duration> {
    let node = fields.optional(name)?;
    let Kind::Scalar { text, .. } = &node.kind else {
        context.error(node.at, format!("{what} must be a duration such as 30s, not {}", kind(node)));
        return None;
    };
    if text == "0s" {
        return Some(Duration::ZERO);
    }
    network::duration(text).map_err(|message| context.error(node.at, message)).ok()
}

fn number(fields: &Fields<'_>, name: &str, what: &str, max: u32, context: &mut Context<'_>) -> Option<u32> {
    fields.optional(name).and_then(|node| context.number(node, what, 0, max))
}

fn share(fields: &Fields<'_>, name: &str, what: &str, min: Ppm, max: Ppm, context: &mut Context<'_>) -> Option<Ppm> {
    fields.optional(name).and_then(|node| percent(node, what, min, max, context))
}

/// `5%`, `0.1%`: at most four decimals.
fn percent(node: &Node<'_>, what: &str, min: Ppm, max: Ppm, context: &mut Context<'_>) -> Option<Ppm> {
    let text = match &node.kind {
        Kind::Scalar { text, .. } => text.as_ref(),
        _ => "",
    };
    let found = text.strip_suffix('%').and_then(|digits| decimal(digits, 4));
    match found.and_then(|ppm| Ppm::try_from(ppm).ok()).filter(|ppm| (min..=max).contains(ppm)) {
        Some(ppm) => Some(ppm),
        None => {
            let range = format!("from {}% to {}%", f64::from(min) / 1e4, f64::from(max) / 1e4);
            context.error(node.at, format!("{what} must be a percentage {range} such as 5% or 0.1%, not {}", kind(node)));
            None
        }
    }
}

/// A decimal number times ten to the power of `places`; `None` when it is none, or has more places.
fn decimal(text: &str, places: usize) -> Option<u64> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
    if whole.is_empty() || whole.len() > 12 || fraction.len() > places || !digits(whole) || !digits(fraction) {
        return None;
    }
    let fraction = format!("{fraction:0<places$}");
    format!("{whole}{fraction}").parse().ok()
}

fn list<T>(
    fields: &Fields<'_>,
    name: &str,
    what: &str,
    context: &mut Context<'_>,
    one: impl Fn(&Node<'_>, &str, &mut Context<'_>) -> Option<T>,
) -> Vec<T> {
    let Some(node) = fields.optional(name) else { return Vec::new() };
    let items = context.list(node, what).unwrap_or_default();
    items.iter().enumerate().filter_map(|(index, item)| one(item, &format!("{what}[{index}]"), context)).collect()
}

fn freeze(node: &Node<'_>, what: &str, context: &mut Context<'_>) -> Option<Freeze> {
    let fields = context.fields(node, what, &["days", "from", "to", "dates", "zone"])?;
    let mut days = Vec::new();
    if let Some(node) = fields.optional("days") {
        let words: Vec<(&'static str, u8)> = DAYS.into_iter().zip(0..).collect();
        for (index, item) in context.list(node, &format!("{what}.days")).unwrap_or_default().iter().enumerate() {
            days.extend(context.word(item, &format!("{what}.days[{index}]"), &words));
        }
    }
    let zone = fields.optional("zone").and_then(|node| zone(node, &format!("{what}.zone"), context));
    let dates = fields.optional("dates");
    let has_dates = dates.is_some();
    let dates = dates.and_then(|node| self::dates(node, &format!("{what}.dates"), context));
    // Dates alone are whole days.
    let whole = has_dates && fields.optional("from").is_none() && fields.optional("to").is_none();
    let mut minutes = |name: &str, example: &str| {
        let field = format!("{what}.{name}");
        if whole {
            return Some(0);
        }
        let node = context.required(&fields, name, &field, example)?;
        let Kind::Scalar { text, .. } = &node.kind else {
            context.error(node.at, format!("{field} must be a time of day such as \"22:00\", not {}", kind(node)));
            return None;
        };
        let found = text.split_once(':').and_then(|(hours, minutes)| {
            let two = |text: &str, max: u16| text.parse::<u16>().ok().filter(|value| *value < max && text.len() == 2);
            Some(two(hours, 24)? * 60 + two(minutes, 60)?)
        });
        if found.is_none() {
            context.error(node.at, format!("{field} must be a time of day such as \"22:00\", not `{text}`"));
        }
        found
    };
    let (from, to) = (minutes("from", "from: \"22:00\""), minutes("to", "to: \"06:00\""));
    Some(Freeze { days, from: from?, to: to?, dates, zone })
}

/// `2026-12-24..2027-01-02`, both days in it; or one day.
fn dates(node: &Node<'_>, what: &str, context: &mut Context<'_>) -> Option<[(i16, i8, i8); 2]> {
    let text = if let Kind::Scalar { text, .. } = &node.kind { text.as_ref() } else { "" };
    let (first, last) = text.split_once("..").unwrap_or((text, text));
    // Only this form: the library's parser also takes times and weeks.
    let date = |text: &str| text.trim().parse::<Date>().ok().filter(|date| date.to_string() == text.trim());
    match (date(first), date(last)) {
        (Some(first), Some(last)) if first <= last => Some([first, last].map(|date| (date.year(), date.month(), date.day()))),
        (Some(_), Some(_)) => {
            context.error(node.at, format!("{what} `{text}` ends before it begins; write the earlier day first"));
            None
        }
        _ => {
            context.error(node.at, format!("{what} must be days such as 2026-12-24..2027-01-02, not {}", kind(node)));
            None
        }
    }
}

/// A name of the IANA time zone database that this machine has.
fn zone(node: &Node<'_>, what: &str, context: &mut Context<'_>) -> Option<String> {
    let name = context.string(node, what)?;
    match TimeZone::get(name) {
        Ok(_) => Some(name.to_owned()),
        Err(_) if jiff::tz::db().is_definitively_empty() => {
            let why = "this machine has no time zone database";
            context.error(node.at, format!("{what} `{name}`: {why}; install the package tzdata (/usr/share/zoneinfo), or write UTC"));
            None
        }
        Err(_) => {
            context.error(
                node.at,
                format!("{what} `{name}` is not a time zone that this machine knows; write an IANA name such as Europe/Berlin"),
            );
            None
        }
    }
}

fn hook(node: &Node<'_>, what: &str, context: &mut Context<'_>) -> Option<Hook> {
    let fields = context.fields(node, what, &["webhook", "command", "timeout"])?;
    let timeout = timeout(&fields, "timeout", &format!("{what}.timeout"), context).unwrap_or(TIMEOUT);
    match (fields.optional("webhook"), fields.optional("command")) {
        (Some(url), None) => Some(Hook::Webhook { url: gates::url(url, &format!("{what}.webhook"), context)?, timeout }),
        (None, Some(run)) => Some(Hook::Command { run: gates::words(run, &format!("{what}.command"), context)?, timeout }),
        _ => {
            context.error(node.at, format!("{what} must have either `webhook: URL` or `command: [PROGRAM, ARGUMENT]`"));
            None
        }
    }
}
