//! Every target on its seeds and on what has broken it once, without an engine.

use super::Target;
use std::{fs, path::Path};

/// Feeds a folder to a target; how many files it holds.
fn feed(target: &Target, folder: &str) -> usize {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder).join(target.name);
    let Ok(entries) = fs::read_dir(&folder) else { return 0 };
    let mut paths: Vec<_> = entries.map(|entry| entry.expect("an entry").path()).collect();
    paths.sort();
    for path in &paths {
        println!("{}", path.display());
        (target.run)(&fs::read(path).expect("it reads"));
    }
    paths.len()
}

#[test]
fn seeds_and_cases_pass() {
    for target in Target::ALL {
        assert!(feed(target, "seeds") > 0, "{} has no seeds", target.name);
        feed(target, "cases");
        (target.run)(b"");
    }
}

#[test]
fn every_folder_has_its_target() {
    for folder in ["seeds", "cases"] {
        for entry in fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(folder)).expect("a folder") {
            let name = entry.expect("an entry").file_name();
            assert!(Target::ALL.iter().any(|target| *target.name == *name), "no target {}", name.display());
        }
    }
}
