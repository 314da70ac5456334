//! Builds the kernel programs with any compiler that carries the library source (`-Z build-std=core` needs it): `$BPF_RUSTC`, rustup's
//! nightly, the compiler of this build, or Debian's rustc-web. The objects end up in `$OUT_DIR`.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

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
    // One folder for all profiles, beside theirs: the kernel programs are the same in each. OUT_DIR is TARGET/PROFILE/build/NAME/out.
    let target = out.ancestors().nth(4).expect("OUT_DIR lies in the target folder").join("bpf");
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace is above");
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
        fs::copy(target.join("bpfel-unknown-none/release").join(object), out.join(object)).expect("the object was just built");
    }
}
