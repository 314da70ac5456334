//! Policies that are broken while the agent runs.

use crate::support::{Bed, Split, document, no_failures, run_on, share_of_v2, vip};
use splitter_lab::load::Plan;
use std::{fs, time::Duration};

#[test]
fn a_broken_policy_changes_nothing_and_a_repaired_one_is_taken() {
    let bed = Bed::new("policy", &[Split::tcp(90, 10)]);
    let path = bed.site.policy();
    let good = document(&bed.lab, &[Split::tcp(90, 10)]);
    let load = bed.start_load(Plan { rate: Some(1_000.0), ..Plan::http(vip(false)) });
    let breakages: [(&str, &dyn Fn()); 5] = [
        ("garbage", &|| bed.write_policy("\u{1}{{{ nothing: [\n")),
        ("an unknown field", &|| bed.write_policy(&good.replace("mode:", "mood:"))),
        ("a file cut short", &|| bed.write_policy(&good[..good.len() / 2])),
        ("an empty file", &|| bed.write_policy("")),
        ("no file", &|| fs::remove_file(&path).unwrap()),
    ];
    for (what, break_it) in breakages {
        let before = bed.status();
        break_it();
        let status = bed.wait(what, |status| status.desired.state == "rejected" && status.desired.read > before.desired.read);
        assert!(
            !status.desired.errors.is_empty() && status.desired.errors[0].contains("policy.yaml"),
            "{what}: {:?}",
            status.desired.errors
        );
        assert_eq!((status.applied.generation, status.applied.services), (before.applied.generation, 1), "{what}");
        assert_eq!(status.services[0].versions[1].weight, 10, "{what}");
        let table = bed.cli(&["status"]);
        assert!(table.contains("rejected"), "{what}: a person is not told:\n{table}");
    }
    run_on(Duration::from_secs(1));
    let changed = load.next_phase();
    bed.apply(&[Split::tcp(40, 60)]);
    let last = load.next_phase();
    run_on(Duration::from_secs(2));
    let phases = load.stop().unwrap();
    phases.iter().for_each(|phase| no_failures("during broken policies", phase));
    share_of_v2("broken policies", &phases[changed - 1], 0.1);
    share_of_v2("the repaired policy", &phases[last], 0.6);
    assert!(bed.status().desired.errors.is_empty());
}

#[test]
fn an_agent_that_starts_over_a_broken_policy_serves_the_last_good_one() {
    let mut bed = Bed::new("restored", &[Split::tcp(70, 30)]);
    bed.kill_agent();
    bed.write_policy("garbage: [\n");
    bed.agent = Some(bed.site.start(1).expect("the agent starts all the same"));
    let status = bed.wait("the policy is rejected", |status| status.desired.state == "rejected");
    assert_eq!(status.applied.services, 1);
    share_of_v2("the last good policy", &bed.clean(Plan::http(vip(false)), 800), 0.3);
}
