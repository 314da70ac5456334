//! Readings that remember say what readings of the whole say.

use super::*;
use crate::source::files::File;
use proptest::prelude::*;

fn tcp(name: &str, port: u16, weight: u32) -> String {
    format!(
        "---\napiVersion: splitter.dev/v1alpha1\nkind: TrafficSplit\nmetadata: {{name: {name}}}\nspec:\n  mode: tcp\n  frontends: \
         [{{address: 10.9.9.9, port: {port}}}]\n  versions: [{{name: v1, weight: {weight}, backends: [\"10.2.1.2:80\"]}}]\n"
    )
}

fn http(name: &str, port: u16) -> String {
    tcp(name, port, 1).replace("mode: tcp", "mode: http") + "  rules:\n    - {match: {path: /a}, version: v1}\n"
}

fn snapshot(files: &[String]) -> Snapshot {
    let file = |(index, text): (usize, &String)| File { name: format!("{index}.yaml"), content: text.clone().into_bytes() };
    Snapshot { files: files.iter().enumerate().map(file).collect(), errors: Vec::new() }
}

/// The text of everything: rules are equal whatever their lines are.
fn check(known: &mut Known, files: &[String]) -> Outcome {
    let (path, snapshot) = (Path::new("policies"), snapshot(files));
    let outcome = known.outcome(path, &snapshot);
    assert_eq!(format!("{outcome:#?}"), format!("{:#?}", super::outcome(path, &snapshot)), "{files:?}");
    outcome
}

/// Documents of all kinds, most of them fine.
fn document() -> impl Strategy<Value = String> {
    let number = 0..6u16;
    prop_oneof![
        6 => (number.clone(), number.clone(), 0..3u32).prop_map(|(name, port, weight)| tcp(&format!("s{name}"), 80 + port, weight)),
        3 => number.prop_map(|name| http(&format!("h{name}"), 90 + name)),
        1 => Just("---\n# nothing\n".to_owned()),
        1 => Just("---\n\n\n".to_owned()),
        1 => Just("---\nkind: TrafficSplitList\napiVersion: splitter.dev/v1alpha1\nitems: []\n".to_owned()),
        1 => prop::sample::select(vec![
            "...\n", "%YAML 1.2\n", "--- |\n x\n", "---\na: [1\n", "---\na: \"x\n", "--- {}\n", "---x: 1\n", "\t\n", "a: 1\r\n",
        ]).prop_map(str::to_owned),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_reading_that_remembers_says_the_same(
        files in prop::collection::vec(prop::collection::vec(document(), 0..4), 1..3),
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>(), prop::option::of(document())), 0..5),
    ) {
        let (mut files, mut known) = (files, Known::default());
        let texts = |files: &[Vec<String>]| files.iter().map(|documents| documents.concat()).collect::<Vec<_>>();
        check(&mut known, &texts(&files));
        for (file, at, edit) in edits {
            let (count, documents) = (files.len(), &mut files);
            let documents = &mut documents[file.index(count)];
            let at = at.index(documents.len() + 1);
            match edit {
                Some(document) => documents.insert(at, document),
                None if at < documents.len() => drop(documents.remove(at)),
                None => {}
            }
            check(&mut known, &texts(&files));
        }
    }
}

/// What did not change is the same object; what moved says where it is now.
#[test]
fn unchanged_documents_are_not_read_again() {
    let mut known = Known::default();
    let first = check(&mut known, &[tcp("a", 80, 1) + &http("b", 81) + &tcp("c", 82, 1)]).result.unwrap().services;
    let same = check(&mut known, &[tcp("a", 80, 1) + &http("b", 81) + &tcp("c", 82, 7)]).result.unwrap().services;
    assert!(Arc::ptr_eq(&first[0], &same[0]) && Arc::ptr_eq(&first[1], &same[1]));
    assert_eq!(same[2].versions[0].weight, 7);
    let moved = check(&mut known, &["# a comment\n\n".to_owned() + &tcp("a", 80, 1) + &http("b", 81)]).result.unwrap().services;
    assert_eq!((moved[0].origin.as_str(), moved[1].origin.as_str()), ("0.yaml:6:18", "0.yaml:14:18"));
    assert_eq!(moved[1].http.as_ref().unwrap().rules[0].line, first[1].http.as_ref().unwrap().rules[0].line + 2);
    // An error is not the end of what is known.
    assert!(check(&mut known, &["---\na: [\n".to_owned() + &tcp("a", 80, 1)]).result.is_err());
    let back = check(&mut known, &["# a comment\n\n".to_owned() + &tcp("a", 80, 1) + &http("b", 81)]).result.unwrap().services;
    assert!(Arc::ptr_eq(&moved[0], &back[0]) && Arc::ptr_eq(&moved[1], &back[1]));
}

/// Large readings are shared among threads, in order.
#[test]
fn many_documents_are_read_as_few_are() {
    let text: String = (0..3 * SHARE as u32).map(|i| tcp(&format!("s{i}"), 1 + i as u16, i % 7)).collect();
    let outcome = check(&mut Known::default(), &[text]);
    assert_eq!(outcome.result.unwrap().services.len(), 3 * SHARE);
    assert_eq!(outcome.warnings.len(), (3 * SHARE).div_ceil(7));
}

/// A document that has a warning is read again, so that the warning stays.
#[test]
fn warnings_stay() {
    let mut known = Known::default();
    for _ in 0..2 {
        assert_eq!(check(&mut known, &[tcp("a", 80, 0) + &tcp("b", 81, 1)]).warnings.len(), 1);
    }
}

/// An emptied folder is no empty policy, whatever was known before.
#[test]
fn nothing_is_never_an_empty_policy() {
    let mut known = Known::default();
    assert!(check(&mut known, &[]).result.is_err());
    assert_eq!(check(&mut known, &[tcp("a", 80, 1)]).result.unwrap().services.len(), 1);
    for nothing in [vec![], vec![String::new()], vec!["# a\n".to_owned(), "# b\n".to_owned()]] {
        assert!(check(&mut known, &nothing).result.is_err(), "{nothing:?}");
    }
}
