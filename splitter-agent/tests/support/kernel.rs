//! Programs and maps in the kernel: whose they are, and whether they still live.

use aya::{maps::loaded_maps, programs::loaded_programs};
use std::{collections::BTreeSet, fs, path::Path};

/// Ids of a kind (`prog_id`, `map_id`) that a process holds.
pub fn held(pid: u32, kind: &str) -> BTreeSet<u32> {
    let id = |text: String| text.lines().find_map(|line| line.strip_prefix(kind)?.strip_prefix(':')?.trim().parse().ok());
    let entries = fs::read_dir(format!("/proc/{pid}/fdinfo")).expect("the agent runs");
    entries.filter_map(|entry| fs::read_to_string(entry.ok()?.path()).ok()).filter_map(id).collect()
}

pub fn programs_alive() -> BTreeSet<u32> {
    loaded_programs().filter_map(|program| Some(program.ok()?.id())).collect()
}

pub fn maps_alive() -> BTreeSet<u32> {
    loaded_maps().filter_map(|map| Some(map.ok()?.id())).collect()
}

/// Gives pins of maps the names of another layout, as an agent would that had one.
pub fn relabel(pins: &Path, maps: &[&str]) {
    for map in maps {
        fs::rename(pins.join(map), pins.join(format!("{map}-9"))).expect("the map is pinned");
    }
}
