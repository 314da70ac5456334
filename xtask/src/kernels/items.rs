//! What the full run tests in each guest: names of the root tests of `splitter-agent/tests`, by what they show. Few and broad ones: each start of an agent
//! has some forty programs verified, which takes a translated processor twenty seconds.

/// A behaviour, and the test that shows it.
#[derive(Debug)]
pub struct Item {
    pub what: &'static str,
    /// Test program (`splitter-agent/tests/NAME`), and its test.
    pub program: &'static str,
    pub test: &'static str,
    /// Kernels that have what it needs; empty: all.
    pub only: &'static [&'static str],
}

const fn item(what: &'static str, program: &'static str, test: &'static str) -> Item {
    Item { what, program, test, only: &[] }
}

/// Kernels with TCX (6.6), and with a word on whether XDP can transmit (6.3).
const NEW: &[&str] = &["6.12"];

pub const ITEMS: &[Item] = &[
    item("maps, by single calls and in batches", "datapath", "maps_behave_as_their_model_in_memory"),
    item("L4: TCP and UDP, IPv4 and IPv6, by weight", "netns", "split::connections_are_split_by_weight"),
    item("L4: rules by network", "netns", "split::source_networks_choose_the_version"),
    item("L4: weight changes on live connections and load", "netns", "weights::weights_change_under_load_without_a_failed_request"),
    item("L4: SIGKILL and upgrade in place, open connections and load", "faults", "agent::an_upgrade_replaces_the_programs_in_place"),
    item("http: tags switch versions on kept and new connections, IPv4 and IPv6", "http", "tags::each_request_goes_where_its_tag_says"),
    item("http: rules of every kind", "http", "tags::every_kind_of_rule_decides"),
    item("http: weight change with requests in flight", "http", "agent::a_weight_change_never_touches_a_request_in_flight"),
    item("http: SIGKILL and restart, open connections and load", "http", "agent::a_killed_agent_is_missed_by_no_request"),
    item("rollout: a good canary is promoted", "rollout", "judged::a_good_canary_gets_everything_and_no_request_fails"),
    item("rollout: a bad canary is taken back", "rollout", "judged::a_canary_that_refuses_is_taken_back_at_once"),
    item("XDP: generic forwards past the stack", "netns", "xdp::generic_xdp_forwards_what_is_plain"),
    Item { only: NEW, ..item("XDP: native transmits where it can", "netns", "xdp::native_xdp_transmits_where_the_kernel_says_it_can") },
    item("XDP: http by generic and native", "http", "hooks::xdp_splits_as_tc_does"),
    item("clsact: serves, restarts, leaves nothing", "netns", "clsact::clsact_serves_survives_and_leaves_nothing"),
    Item { only: NEW, ..item("TCX takes clsact's place, and back", "netns", "clsact::an_agent_that_needs_no_clsact_takes_its_place") },
    item("detach leaves no trace", "netns", "traces::detach_leaves_no_trace"),
];

/// The items of a kernel.
pub fn of(series: &str) -> impl Iterator<Item = &'static Item> {
    ITEMS.iter().filter(move |item| item.only.is_empty() || item.only.contains(&series))
}

/// Test programs that are needed, each once.
pub fn programs() -> Vec<&'static str> {
    let mut programs: Vec<&str> = ITEMS.iter().map(|item| item.program).collect();
    programs.sort_unstable();
    programs.dedup();
    programs
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    /// A test that is renamed must be renamed here: else the guest finds none, and says so only after minutes.
    #[test]
    fn every_test_is_there() {
        let root = crate::root().unwrap();
        for Item { what, program, test, .. } in ITEMS {
            let (module, name) = test.split_once("::").unwrap_or(("main", test));
            let path = root.join(format!("splitter-agent/tests/{program}/{module}.rs"));
            let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{what}: {}: {error}", path.display()));
            assert!(text.contains(&format!("#[test]\nfn {name}()")), "{what}: {} has no test {name}", path.display());
        }
    }

    #[test]
    fn kernels_are_asked_for_what_they_have() {
        let of = |series| super::of(series).count();
        assert_eq!(of("6.12"), ITEMS.len());
        assert_eq!(of("6.1"), ITEMS.len() - 2);
    }
}
