//! Builds the kernel programs with any compiler that carries the library source (`-Z build-std=core` needs it): `$BPF_RUSTC`, rustup's
//! nightly, the compiler of this build, or Debian's rustc-web. The objects end up in `$OUT_DIR`.

use std::{env, fs, path::PathBuf, process::Command};

/// The programs of the node, the wrapper that benchmarks measure them through, the head scanner alone, and what tests break the network with.
const OBJECTS: [&str; 4] = ["splitter", "wrap", "head", "faults"];
const SOURCE: &str = "lib/rustlib/src/rust/library/core/Cargo.toml";

fn output(command: &mut Command) -> Option<PathBuf> {
    let output = command.output().ok()?;
    output.status.success().then(|| PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()))
}

fn compiler() -> Option<PathBuf> {
    let candidates = [
        env::var_os("BPF_RUSTC").map(PathBuf::from),
        output(Command::new("rustup").args(["which", "--toolchain", "nightly", "rustc"])),
        env::var_os("RUSTC").map(PathBuf::from),
        Some("/usr/bin/rustc".into()),
    ];
    let has_source =
        |rustc: &PathBuf| output(Command::new(rustc).args(["--print", "sysroot"])).is_some_and(|root| root.join(SOURCE).exists());
    candidates.into_iter().flatten().find(has_source)
}

fn main() {
    for name in ["BPF_RUSTC", "PATH"] {
        println!("cargo:rerun-if-env-changed={name}");
    }
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    // One folder for all profiles, beside theirs: the kernel programs are the same in each. OUT_DIR is TARGET/PROFILE/build/NAME/out, with the target's
    // name before the profile where one is given.
    let mut target = out.ancestors().nth(4).expect("OUT_DIR lies in the target folder");
    if target.file_name() == env::var_os("TARGET").as_deref() {
        target = target.parent().expect("the target folder is above");
    }
    let target = target.join("bpf");
    // Asked when it runs: a target folder that was copied, or is shared, has the script of another checkout.
    let manifest = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let root = manifest.ancestors().nth(2).expect("the workspace is above");
    for dir in ["splitter-ebpf", "splitter-common"] {
        println!("cargo:rerun-if-changed={}", root.join(dir).display());
    }
    let Some(rustc) = compiler() else {
        panic!("no Rust compiler with library source for the kernel programs: run `cargo xtask setup`, which installs one");
    };
    let sibling = rustc.with_file_name("cargo");
    let cargo = if sibling.exists() { sibling } else { env::var_os("CARGO").expect("cargo sets CARGO").into() };
    let arch = env::var("CARGO_CFG_TARGET_ARCH").expect("cargo sets it");
    let flags = [
        "-Cdebuginfo=2",
        "-Ctarget-cpu=v3",
        "-Clink-arg=--btf",
        // Without it every copy longer than 16 bytes becomes a loop of single bytes.
        "-Clink-arg=--disable-expand-memcpy-in-order",
        &format!("--cfg=bpf_target_arch=\"{arch}\""),
    ];
    let mut command = Command::new(cargo);
    for (name, _) in env::vars_os() {
        let name = name.to_string_lossy().into_owned();
        if name.starts_with("CARGO") && name != "CARGO_HOME" || name.starts_with("RUST") && name != "RUSTUP_HOME" {
            command.env_remove(name);
        }
    }
    command
        .current_dir(root)
        .env("RUSTC", &rustc)
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
        .args(["build", "--package", "splitter-ebpf", "--bins", "--release", "--locked"])
        .args(["--target", "bpfel-unknown-none", "-Zbuild-std=core", "--target-dir"])
        .arg(&target);
    let status = command.status().unwrap_or_else(|e| panic!("cannot run {command:?}: {e}"));
    assert!(status.success(), "the kernel programs do not build (is bpf-linker missing? `cargo xtask setup` installs it)");
    for object in OBJECTS {
        let built = fs::read(target.join("bpfel-unknown-none/release").join(object)).expect("the object was just built");
        fs::write(out.join(object), without_debug(&built)).expect("OUT_DIR can be written to");
    }
}

/// An object (ELF64, little-endian) without its DWARF, ten of its thirteen megabytes: the linker has made BTF of it, and nobody reads it after that.
/// What is left out stays as an empty header, so that all numbers of sections stay what they were.
fn without_debug(elf: &[u8]) -> Vec<u8> {
    const HEADER: usize = 64;
    const NO_BITS: u64 = 8;
    let number =
        |bytes: &[u8], at: usize, len: usize| bytes[at..at + len].iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte));
    let (first, count, names) = (number(elf, 0x28, 8) as usize, number(elf, 0x3c, 2) as usize, number(elf, 0x3e, 2) as usize);
    let mut headers: Vec<[u8; HEADER]> = (0..count).map(|i| elf[first + i * HEADER..][..HEADER].try_into().expect("its length")).collect();
    let names = number(&headers[names], 24, 8) as usize;
    let mut out = elf[..HEADER].to_vec();
    for header in &mut headers {
        let (kind, from, len) = (number(header, 4, 4), number(header, 24, 8) as usize, number(header, 32, 8) as usize);
        let name = &elf[names + number(header, 0, 4) as usize..];
        if name.starts_with(b".debug_") || name.starts_with(b".rel.debug_") {
            // SHT_NULL, of no bytes.
            header[4..8].fill(0);
            header[24..40].fill(0);
        } else if kind != NO_BITS && len > 0 {
            out.resize(out.len().next_multiple_of(number(header, 48, 8).max(1) as usize), 0);
            header[24..32].copy_from_slice(&(out.len() as u64).to_le_bytes());
            out.extend(&elf[from..from + len]);
        }
    }
    out.resize(out.len().next_multiple_of(8), 0);
    let table = out.len() as u64;
    out[0x28..0x30].copy_from_slice(&table.to_le_bytes());
    headers.iter().for_each(|header| out.extend(header));
    out
}
