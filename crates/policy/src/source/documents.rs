//! The examples of the policy's reference, and of the README, are read as policies, and written as what they are.

use super::{
    Diagnostic,
    tests::{read, warnings},
    write::tests::again,
};

const REFERENCE: &str = include_str!("../../../../docs/policy.md");
const README: &str = include_str!("../../../../README.md");

/// Fields that an example of `spec` may leave out.
const BASE: [(&str, &str); 3] = [
    ("frontends", "  frontends: [{address: 10.9.9.9, port: 80}]\n"),
    ("mode", "  mode: http\n"),
    (
        "versions",
        "  versions:\n    - {name: v1, weight: 95, backends: [\"10.2.1.2:8080\"]}\n    - {name: v2, weight: 5, backends: [\"10.2.2.2:8080\"]}\n",
    ),
];

/// Fenced blocks: what stands behind the fence, and the text.
fn blocks(document: &'static str) -> Vec<(&'static str, &'static str)> {
    let parts: Vec<&str> = document.split("```").collect();
    parts.iter().skip(1).step_by(2).filter_map(|block| block.split_once('\n')).collect()
}

fn whole(example: &str) -> String {
    if example.contains("apiVersion:") {
        return example.to_owned();
    }
    let mut text = "apiVersion: splitter.dev/v1alpha1\nkind: TrafficSplit\nmetadata: {name: example}\nspec:\n".to_owned();
    let given = |field: &str| example.lines().any(|line| line.starts_with(&format!("{field}:")));
    BASE.iter().filter(|(field, _)| !given(field)).for_each(|(_, default)| text += default);
    example.lines().for_each(|line| text += &format!("  {line}\n"));
    text
}

fn errors(text: &str) -> Vec<Diagnostic> {
    read(&[("p.yaml", text)]).result.err().unwrap_or_default()
}

#[test]
fn examples_are_right() {
    let yaml = |document| blocks(document).into_iter().filter(|(kind, _)| *kind == "yaml").collect::<Vec<_>>();
    let (examples, first) = (yaml(REFERENCE), yaml(README));
    assert!(examples.len() >= 7 && first.len() == 1, "{examples:?} {first:?}");
    let examples = examples.into_iter().chain(first);
    for (_, example) in examples {
        let found = errors(&whole(example));
        assert!(found.is_empty(), "{example}\n{found:?}");
        assert!(again(&whole(example)).is_some(), "it is written as what it is: {example}");
    }
}

#[test]
fn wrong_examples_get_the_error_that_follows() {
    let blocks = blocks(REFERENCE);
    let wrong: Vec<_> = blocks.windows(2).filter(|pair| pair[0].0 == "yaml wrong").collect();
    assert!(!wrong.is_empty());
    for pair in wrong {
        assert_eq!(pair[1].0, "text");
        let found: Vec<String> = errors(&whole(pair[0].1)).into_iter().map(|error| error.message).collect();
        assert_eq!(found, [pair[1].1.trim_end()]);
    }
}

#[test]
fn the_whole_policy_is_not_warned_of() {
    let (_, first) = blocks(REFERENCE)[0];
    assert_eq!(warnings(first), [""; 0]);
}
