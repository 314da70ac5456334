//! `splitter check`: reads a policy as the agent would.

use super::out;
use crate::certificates;
use anyhow::Result;
use serde::Serialize;
use splitter_policy::source::{self, Diagnostic, Outcome};
use std::{path::Path, process::ExitCode};

#[derive(Serialize)]
struct Report<'a> {
    ok: bool,
    services: usize,
    frontends: usize,
    versions: usize,
    backends: usize,
    errors: Vec<Finding<'a>>,
    warnings: Vec<Finding<'a>>,
}

#[derive(Serialize)]
struct Finding<'a> {
    path: &'a str,
    line: u32,
    column: u32,
    object: Option<&'a str>,
    message: &'a str,
}

impl<'a> From<&'a Diagnostic> for Finding<'a> {
    fn from(d: &'a Diagnostic) -> Self {
        Self { path: &d.path, line: d.at.line, column: d.at.column, object: d.object.as_deref(), message: &d.message }
    }
}

pub fn run(path: &Path, json: bool) -> Result<ExitCode> {
    let mut outcome = source::load(path);
    if let Ok(policy) = &outcome.result {
        let findings = certificates::findings(policy);
        if !findings.is_empty() {
            outcome.result = Err(findings);
        }
    }
    let report = report(&outcome);
    out::print(&if json { out::json(&report, true)? } else { text(&outcome, &report) })?;
    Ok(if report.ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn report(outcome: &Outcome) -> Report<'_> {
    let services = outcome.result.as_ref().map_or(&[][..], |p| &p.services);
    Report {
        ok: outcome.result.is_ok(),
        services: services.len(),
        frontends: services.iter().map(|s| s.frontends.len()).sum(),
        versions: services.iter().map(|s| s.versions.len()).sum(),
        backends: services.iter().flat_map(|s| &s.versions).map(|v| v.backends.len()).sum(),
        errors: outcome.result.as_ref().err().into_iter().flatten().map(Finding::from).collect(),
        warnings: outcome.warnings.iter().map(Finding::from).collect(),
    }
}

fn text(outcome: &Outcome, report: &Report<'_>) -> String {
    let mut lines = Vec::new();
    for warning in &outcome.warnings {
        let object = warning.object.as_ref().map(|o| format!("{o}: ")).unwrap_or_default();
        lines.push(format!("{}:{}:{}: warning: {object}{}", warning.path, warning.at.line, warning.at.column, warning.message));
    }
    match &outcome.result {
        Err(errors) => lines.extend(errors.iter().map(ToString::to_string)),
        Ok(_) => lines.push(format!(
            "ok: {}, {}, {}, {}",
            plural(report.services, "service"),
            plural(report.frontends, "frontend"),
            plural(report.versions, "version"),
            plural(report.backends, "backend")
        )),
    }
    // Names and texts of a policy that may come from anywhere.
    lines.iter().map(|line| out::printable(line) + "\n").collect()
}

pub fn plural(count: usize, what: &str) -> String {
    if count == 1 { format!("1 {what}") } else { format!("{} {what}s", super::table::count(count as u64)) }
}
