//! docs/verifier-budget.json: what each kernel program may cost. `programs.NAME.instructions` counts its own, `stack` the bytes of its
//! longest chain of calls; `verified.SERIES` are the instructions that the verifier of that kernel walked.

use crate::root;
use anyhow::{Context, Result, ensure};
use serde_json::{Map, Value, json};
use std::{fs, path::PathBuf};

pub const FILE: &str = "docs/verifier-budget.json";
/// Growth beyond the recorded figure that fails.
const TOLERANCE: f64 = 1.10;
/// Half of what the verifier walks before it refuses a program (`BPF_COMPLEXITY_LIMIT_INSNS`): the rest is for kernels that walk more.
const MOST: u64 = 500_000;

pub struct Budget {
    document: Value,
}

impl Budget {
    pub fn read() -> Result<Budget> {
        let text = fs::read_to_string(path()?).with_context(|| format!("no {FILE}; `cargo xtask verifier --update` writes it"))?;
        Ok(Budget { document: serde_json::from_str(&text).with_context(|| format!("{FILE} is not JSON"))? })
    }

    /// The recorded figures, or none yet.
    pub fn read_or_empty() -> Result<Budget> {
        if path()?.exists() { Budget::read() } else { Ok(Budget { document: json!({"programs": {}}) }) }
    }

    pub fn write(&self) -> Result<()> {
        let path = path()?;
        fs::write(&path, serde_json::to_string_pretty(&self.document)? + "\n").with_context(|| format!("cannot write {}", path.display()))
    }

    /// Forgets programs that there are no more.
    pub fn retain(&mut self, is_there: impl Fn(&str) -> bool) {
        if let Some(programs) = self.document["programs"].as_object_mut() {
            programs.retain(|name, _| is_there(name));
        }
    }

    /// Records a figure of a program, named as in the file: `["instructions"]`, `["verified", "6.1"]`.
    pub fn set(&mut self, program: &str, figure: &[&str], value: u64) {
        let mut place = &mut self.document["programs"][program];
        for name in figure {
            if !place.is_object() {
                *place = Value::Object(Map::new());
            }
            place = &mut place[*name];
        }
        *place = value.into();
    }

    fn figure(&self, program: &str, figure: &[&str]) -> Option<u64> {
        figure.iter().fold(&self.document["programs"][program], |place, name| &place[*name]).as_u64()
    }

    /// Whether any program has figures of this kernel.
    pub fn knows(&self, series: &str) -> bool {
        self.document["programs"]
            .as_object()
            .is_some_and(|programs| programs.keys().any(|name| self.figure(name, &["verified", series]).is_some()))
    }

    /// Why a figure is too large, or has no budget.
    pub fn complaint(&self, program: &str, figure: &[&str], value: u64) -> Option<String> {
        let name = figure.join(" on ");
        match self.figure(program, figure) {
            None => Some(format!("{program}: {name} ({value}) has no budget in {FILE}")),
            Some(limit) if value as f64 > limit as f64 * TOLERANCE => {
                Some(format!("{program}: {name} grew from {limit} to {value}, more than 10%"))
            }
            Some(_) => None,
        }
    }
}

/// Why a kernel walks too far, whatever its budget.
pub fn too_far(program: &str, series: &str, walked: u64) -> Option<String> {
    (walked >= MOST).then(|| format!("{program}: the verifier of {series} walks {walked} instructions, {MOST} are half of its limit"))
}

fn path() -> Result<PathBuf> {
    Ok(root()?.join(FILE))
}

/// The first two numbers of a kernel's release.
///
/// # Errors
/// When it does not begin with them.
pub fn series(release: &str) -> Result<String> {
    let numbers: Vec<&str> = release.split(|c: char| !c.is_ascii_digit()).take(2).collect();
    ensure!(numbers.len() == 2 && numbers.iter().all(|number| !number.is_empty()), "odd kernel release {release:?}");
    Ok(numbers.join("."))
}

/// The same of the running kernel.
pub fn own_series() -> Result<String> {
    series(&fs::read_to_string("/proc/sys/kernel/osrelease")?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn budget() -> Budget {
        Budget { document: json!({"programs": {"tc": {"instructions": 100, "verified": {"6.1": 1000}}}}) }
    }

    #[test]
    fn growth_beyond_a_tenth_and_missing_budgets_fail() {
        let budget = budget();
        assert_eq!(budget.complaint("tc", &["instructions"], 110), None);
        assert_eq!(budget.complaint("tc", &["verified", "6.1"], 900), None);
        let grown = budget.complaint("tc", &["verified", "6.1"], 1101).unwrap();
        assert!(grown.contains("tc: verified on 6.1 grew from 1000 to 1101"), "{grown}");
        assert!(budget.complaint("tc", &["verified", "6.12"], 1).unwrap().contains("no budget"));
        assert!(budget.complaint("xdp", &["instructions"], 1).unwrap().contains("no budget"));
        assert!(budget.knows("6.1") && !budget.knows("6.12"));
    }

    #[test]
    fn half_of_the_limit_is_the_most() {
        assert_eq!(too_far("tc", "6.1", 499_999), None);
        assert!(too_far("tc", "6.1", 500_000).unwrap().contains("6.1 walks 500000"));
    }

    #[test]
    fn figures_are_set_beside_the_others() {
        let mut budget = budget();
        budget.set("tc", &["verified", "6.12"], 7);
        budget.set("new", &["verified", "6.1"], 8);
        budget.set("old", &["verified"], 9);
        budget.set("old", &["verified", "6.1"], 10);
        budget.retain(|name| name != "new");
        let expected = json!({"programs": {
            "tc": {"instructions": 100, "verified": {"6.1": 1000, "6.12": 7}},
            "old": {"verified": {"6.1": 10}},
        }});
        assert_eq!(budget.document, expected);
    }

    #[test]
    fn a_series_is_two_numbers() {
        assert_eq!(series("6.12.117+deb12-cloud-amd64").unwrap(), "6.12");
        assert_eq!(series("6.18.44-fc-v657\n").unwrap(), "6.18");
        assert!(series("mainline").is_err());
    }
}
