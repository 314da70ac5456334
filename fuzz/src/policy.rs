//! A policy's text, and behind a zero byte the text that the same file has later.
//!
//! Every finding names this file and a place in it. Reading what was read before, and what has changed, gives what reading it anew gives. A policy is written as
//! what is read as the same. A policy that
//! is accepted can be planned for the kernel, for any path MTU, and its rules fit the kernel's tables.

use splitter_datapath::plan::{self, Generations, Ids, Previous};
use splitter_policy::{
    model::{Policy, Service},
    source::{self, Diagnostic, Outcome, Rereader},
};

const NAME: &str = "p.yaml";
/// Longer texts say nothing more.
const LIMIT: usize = 16 << 10;

/// See the module.
pub fn run(input: &[u8]) {
    let input = &input[..input.len().min(LIMIT)];
    let mut rereader = Rereader::default();
    let mut numbers = (Ids::new(1_000, 1_000, [], &[]), Generations::default());
    let mut before = Vec::new();
    for text in input.split(|byte| *byte == 0).take(3) {
        let outcome = source::read(NAME, text);
        assert_eq!(rereader.read(NAME, text), outcome, "read again, after another text");
        assert_eq!(rereader.read(NAME, text), outcome, "the same text, read again");
        findings(text, &outcome);
        if let Ok(policy) = &outcome.result {
            written(policy);
            before = planned(policy, &mut numbers, &before);
        }
    }
}

fn findings(text: &[u8], outcome: &Outcome) {
    let text = String::from_utf8_lossy(text);
    let all: Vec<&Diagnostic> = outcome.warnings.iter().chain(outcome.result.as_ref().err().into_iter().flatten()).collect();
    assert!(outcome.result.is_ok() || !all.is_empty(), "refused, and nobody knows why");
    // YAML also breaks lines at a CR alone, which what is said of bytes that are no text does not.
    let lines = text.split(['\n', '\r']).count();
    let widest = text.split('\n').map(|line| line.chars().count()).max().unwrap_or(0);
    for found in all {
        assert!(found.path == NAME && !found.message.is_empty(), "{found:?}");
        let (line, column) = (found.at.line as usize, found.at.column as usize);
        assert!((1..=lines + 1).contains(&line), "{found} in {lines} lines");
        assert!((1..=widest + 1).contains(&column), "{found} in lines of {widest}");
    }
}

/// What is written of a policy is read as the same one, but for places.
fn written(policy: &Policy) {
    let text = source::write(policy.services.iter().map(AsRef::as_ref));
    let again = source::read(NAME, text.as_bytes()).result;
    let placeless = |policy: &Policy| -> Vec<Service> {
        policy.services.iter().map(|service| Service { origin: String::new(), ..Service::clone(service) }).collect()
    };
    let again = again.unwrap_or_else(|errors| panic!("{errors:?}\n{text}"));
    assert_eq!(placeless(&again), placeless(policy), "{text}");
}

type Before = Vec<(u32, Previous)>;

/// Plans every service twice, as a reconcile does that changes nothing, and on top of what was there.
fn planned(policy: &Policy, (ids, generations): &mut (Ids, Generations), before: &Before) -> Before {
    let mut now = Vec::new();
    for service in &policy.services {
        for mtu in [1500, 68] {
            let known = |id: u32| before.iter().find(|(known, _)| *known == id).map(|(_, previous)| previous.clone());
            // The maps' numbers may run out; then nothing is planned.
            let Ok(image) = plan::plan(service, mtu, ids, generations, known) else { continue };
            assert_eq!(usize::from(image.record.version_count), service.versions.len());
            assert!(image.record.versions.windows(2).all(|pair| pair[0].end <= pair[1].end || pair[1].end == 0), "{:?}", image.record);
            now.push((image.id, Previous::from(&image)));
        }
    }
    now
}
