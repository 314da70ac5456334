//! `deny.toml`, as far as it is used here: tables, and keys with strings or lists of strings. Anything else in it is an error, so that no rule stands
//! there which is not looked at.

use anyhow::{Context, Result, bail, ensure};
use std::collections::BTreeMap;

/// Keys whose values are looked at or concern cargo-deny alone, and the values that this reader knows.
const KNOWN: &[(&str, &[&str])] = &[
    ("graph.all-features", &["true"]),
    ("graph.targets", &[]),
    ("advisories.yanked", &["deny"]),
    ("licenses.allow", &[]),
    ("licenses.exceptions.crate", &[]),
    ("licenses.exceptions.allow", &[]),
    ("bans.multiple-versions", &["deny"]),
    ("bans.wildcards", &["allow"]),
    ("bans.skip.crate", &[]),
    ("sources.unknown-registry", &["deny"]),
    ("sources.unknown-git", &["deny"]),
];

/// See the module.
#[derive(Debug, Default)]
pub struct Rules {
    /// Platforms whose dependencies count.
    pub targets: Vec<String>,
    allow: Vec<String>,
    /// Licences of one package.
    exceptions: Vec<(String, Vec<String>)>,
    /// Names, and what their versions begin with.
    skip: Vec<(String, String)>,
}

impl Rules {
    /// # Errors
    /// When a line is not of the known kind.
    pub fn parse(text: &str) -> Result<Self> {
        let mut rules = Self::default();
        for table in tables(text)? {
            let mut values = table.values;
            match table.name.as_str() {
                "licenses.exceptions" => {
                    let name = values.remove("crate").and_then(|mut names| names.pop()).context("an exception without `crate`")?;
                    rules.exceptions.push((name, values.remove("allow").context("an exception without `allow`")?));
                }
                "bans.skip" => {
                    let named = values.remove("crate").and_then(|mut names| names.pop()).context("a skip without `crate`")?;
                    let (name, version) = named.split_once('@').with_context(|| format!("`{named}`: write NAME@VERSION"))?;
                    rules.skip.push((name.into(), version.into()));
                }
                "graph" => rules.targets.extend(values.remove("targets").unwrap_or_default()),
                "licenses" => rules.allow.extend(values.remove("allow").unwrap_or_default()),
                _ => {}
            }
        }
        ensure!(!rules.allow.is_empty(), "deny.toml allows no licence at all");
        Ok(rules)
    }

    /// Whether a package may have this licence.
    pub fn allows(&self, package: &str, licence: &str) -> bool {
        let own = self.exceptions.iter().filter(|(name, _)| name == package).flat_map(|(_, allow)| allow);
        self.allow.iter().chain(own).any(|allowed| allowed == licence)
    }

    /// Whether this version may be there beside another.
    pub fn skips(&self, package: &str, version: &str) -> bool {
        let begins = |prefix: &str| version.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
        self.skip.iter().any(|(name, prefix)| name == package && begins(prefix))
    }
}

#[derive(Default)]
struct Table {
    name: String,
    values: BTreeMap<String, Vec<String>>,
}

fn tables(text: &str) -> Result<Vec<Table>> {
    let mut tables = vec![Table::default()];
    let mut lines = text.lines().enumerate().map(|(index, line)| (index + 1, line.split('#').next().unwrap_or_default().trim()));
    while let Some((number, line)) = lines.next() {
        let bare = line.trim_start_matches('[').trim_end_matches(']');
        if line.is_empty() {
            continue;
        } else if line.starts_with('[') && bare.len() + 2 <= line.len() && !bare.contains(['"', '=']) {
            tables.push(Table { name: bare.into(), values: BTreeMap::new() });
            continue;
        }
        let (key, value) = line.split_once('=').with_context(|| format!("deny.toml:{number}: not read here: {line}"))?;
        let mut value = value.trim().to_owned();
        while value.starts_with('[') && !value.ends_with(']') {
            value += lines.next().with_context(|| format!("deny.toml:{number}: a list without an end"))?.1;
        }
        let table = tables.last_mut().context("there is one")?;
        let values = strings(&value).with_context(|| format!("deny.toml:{number}"))?;
        let path = format!("{}.{}", table.name, key.trim());
        let known =
            KNOWN.iter().find(|(known, _)| *known == path).with_context(|| format!("deny.toml:{number}: {path} is not checked here"))?;
        let odd = values.iter().find(|value| !known.1.is_empty() && !known.1.contains(&value.as_str()));
        ensure!(odd.is_none(), "deny.toml:{number}: {path} = {odd:?} is not checked here");
        table.values.insert(key.trim().into(), values);
    }
    Ok(tables)
}

/// A string, `true` or `false`, or a list of strings.
fn strings(value: &str) -> Result<Vec<String>> {
    let list = value.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    let items = list.map_or(vec![value], |list| list.split(',').map(str::trim).filter(|item| !item.is_empty()).collect());
    let one = |item: &str| match item.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) {
        Some(text) if !text.contains(['"', '\\']) => Ok(text.to_owned()),
        None if ["true", "false"].contains(&item) => Ok(item.to_owned()),
        _ => bail!("not read here: {item}"),
    };
    items.into_iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_repositorys_rules_are_read() {
        let text = std::fs::read_to_string(crate::root().unwrap().join("deny.toml")).unwrap();
        let rules = Rules::parse(&text).unwrap();
        assert!(rules.allows("anything", "MIT") && !rules.allows("anything", "GPL-3.0") && !rules.allows("anything", "NCSA"));
        assert!(rules.allows("libfuzzer-sys", "NCSA"));
        assert!(rules.skips("syn", "2.0.119") && !rules.skips("syn", "20.0.0") && !rules.skips("other", "2.0.0"));
    }

    #[test]
    fn what_is_not_looked_at_is_no_rule() {
        for odd in [
            "[licenses]\nallow = [\"MIT\"]\nconfidence-threshold = \"0.9\"\n",
            "[licenses]\nallow = [\"MIT\"]\n[bans]\nmultiple-versions = \"warn\"\n",
            "[licenses]\nallow = [\"MIT\", { crate = \"x\" }]\n",
            "[licenses]\nallow = [\"MIT\"\n",
            "[licenses]\nallow = []\n",
            "[licenses]\nwhat\n",
        ] {
            assert!(Rules::parse(odd).is_err(), "{odd}");
        }
    }
}
