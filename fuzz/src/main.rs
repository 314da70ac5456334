//! libFuzzer's program. `SPLITTER_FUZZ_TARGET` names the target; the arguments are libFuzzer's. Run by `cargo xtask fuzz`.
#![no_main]

use splitter_fuzz::Target;
use std::sync::LazyLock;

static TARGET: LazyLock<Target> = LazyLock::new(|| {
    let name = std::env::var("SPLITTER_FUZZ_TARGET").unwrap_or_default();
    *Target::ALL.iter().find(|target| target.name == name).unwrap_or_else(|| panic!("SPLITTER_FUZZ_TARGET: no target {name:?}"))
});

libfuzzer_sys::fuzz_target!(|input: &[u8]| (TARGET.run)(input));
