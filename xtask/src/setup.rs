//! `cargo xtask setup`: from a fresh Debian 12 with cargo to a machine that builds the kernel programs and runs the tests. Idempotent.
//!
//! Looks first and installs only what is missing. Never changes which cargo or rustc the user's shell finds.

use crate::{artifact, step};
use anyhow::{Context, Result, bail};
use splitter_lab::lab::is_root;
use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

/// How much to install.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// To build, and to run the demonstration.
    Build,
    /// The rivals that the benchmarks measure as well.
    Bench,
    /// To build, and to feed the fuzz targets.
    Fuzz,
    /// To build, and to boot other kernels.
    Kernels,
    /// The tests' tools as well, and what boots other kernels.
    Test,
    /// These, and servers that only the proof asks.
    Proof,
}

const BPF_LINKER: &str = "0.13.0";
const LIBRARY_SOURCE: &str = "lib/rustlib/src/rust/library/core/Cargo.toml";
/// Features of that bpf-linker: LLVM versions it can be built against.
const LINKER_LLVM: std::ops::RangeInclusive<u32> = 21..=23;

/// A program, and the Debian package that holds it.
const BUILD_TOOLS: &[(&str, &str)] = &[("ip", "iproute2"), ("cc", "gcc"), ("mount", "mount")];
/// What boots other kernels, and fills their first root. The kernels are downloaded and unpacked, not installed.
const KERNEL_TOOLS: &[(&str, &str)] = &[
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("busybox", "busybox-static"),
    ("depmod", "kmod"),
    ("ldd", "libc-bin"),
    ("md5sum", "coreutils"),
];
/// libFuzzer is C++.
const FUZZ_TOOLS: &[(&str, &str)] = &[("c++", "g++")];
const RIVALS: &[(&str, &str)] = &[("nft", "nftables"), ("iptables", "iptables"), ("wrk", "wrk")];
/// apache2-bin is the server without its service; the browser takes 64 MB to download and 220 MB on disk, the JDK, a client, 116 MB and 270 MB.
const TEST_TOOLS: &[(&str, &str)] = &[
    ("ethtool", "ethtool"),
    ("tcpdump", "tcpdump"),
    ("curl", "curl"),
    ("openssl", "openssl"),
    ("nsenter", "util-linux"),
    ("apache2", "apache2-bin"),
    ("node", "nodejs"),
    ("python3", "python3"),
    ("javac", "openjdk-17-jdk-headless"),
    ("chromium-headless-shell", "chromium-headless-shell"),
];

/// 81 MB to download and 450 MB on disk: too much for every test run.
const PROOF_TOOLS: &[(&str, &str)] = &[("go", "golang-go")];

/// A program out of a package that is not installed, because that would start a server on the machine.
struct Unpacked {
    program: &'static str,
    package: &'static str,
    /// Inside the package.
    file: &'static str,
    /// Packages that the program needs and that are installed.
    libraries: &'static [&'static str],
    purpose: &'static str,
}

const HAPROXY: Unpacked = Unpacked {
    program: "haproxy",
    package: "haproxy",
    file: "usr/sbin/haproxy",
    libraries: &["liblua5.3-0", "libopentracing-c-wrapper0", "libpcre2-8-0", "libsystemd0"],
    purpose: "is a rival in the benchmarks and a known good splitter in the tests",
};
const NGINX: Unpacked = Unpacked {
    program: "nginx",
    package: "nginx",
    file: "usr/sbin/nginx",
    libraries: &["libpcre2-8-0"],
    purpose: "is a backend in the tests and the benchmarks",
};
const PROMTOOL: Unpacked = Unpacked {
    program: "promtool",
    package: "prometheus",
    file: "usr/bin/promtool",
    libraries: &[],
    purpose: "checks the metrics in the tests",
};

pub fn run(purpose: Purpose) -> Result<()> {
    let mut packages = missing_packages(purpose);
    if compiler().is_none() {
        packages.extend(["rustc-web", "cargo-web", "rust-web-src"]);
    }
    if !packages.is_empty() {
        install_packages(&packages)?;
    }
    let Some(rustc) = compiler() else {
        bail!("there is still no compiler with library source; `rustup toolchain install nightly -c rust-src` gives one");
    };
    unpacked(purpose).iter().try_for_each(unpack)?;
    let facts = linker(&rustc)?;
    bpffs()?;
    step::say(format_args!(
        "[  ok  ] set-up: kernel programs by {} {} (LLVM {}), bpf-linker {BPF_LINKER}, bpffs, tools",
        rustc.display(),
        facts.release,
        facts.llvm
    ));
    if !env::split_paths(&env::var_os("PATH").unwrap_or_default()).any(|folder| folder.join("bpf-linker").exists()) {
        step::say(format_args!("         for plain `cargo build` put {} on PATH", artifact::cargo_bin().display()));
    }
    Ok(())
}

fn missing_packages(purpose: Purpose) -> Vec<&'static str> {
    let more: &[&[_]] = match purpose {
        Purpose::Build => &[],
        Purpose::Bench => &[RIVALS],
        Purpose::Fuzz => &[FUZZ_TOOLS],
        Purpose::Kernels => &[KERNEL_TOOLS],
        Purpose::Test => &[RIVALS, KERNEL_TOOLS, TEST_TOOLS, FUZZ_TOOLS],
        Purpose::Proof => &[RIVALS, KERNEL_TOOLS, TEST_TOOLS, FUZZ_TOOLS, PROOF_TOOLS],
    };
    let tools = BUILD_TOOLS.iter().chain(more.iter().copied().flatten());
    let mut packages: Vec<&str> =
        tools.filter(|(program, _)| artifact::find_program(program).is_none()).map(|(_, package)| *package).collect();
    for program in unpacked(purpose).iter().filter(|unpacked| artifact::find_program(unpacked.program).is_none()) {
        packages.extend(program.libraries.iter().filter(|library| !is_installed(library)));
    }
    packages.sort_unstable();
    packages.dedup();
    if !Path::new("/usr/include/stdlib.h").exists() {
        packages.push("libc6-dev");
    }
    if matches!(purpose, Purpose::Test | Purpose::Proof) {
        // A rustup toolchain brings these two itself, unless it is the minimal profile.
        for (subcommand, package) in [("fmt", "rustfmt-web"), ("clippy", "rust-web-clippy")] {
            let works = artifact::cargo().and_then(|mut cargo| Ok(cargo.args([subcommand, "--version"]).output()?.status.success()));
            if !works.unwrap_or(false) {
                packages.push(package);
            }
        }
    }
    packages
}

fn install_packages(packages: &[&str]) -> Result<()> {
    let list = packages.join(" ");
    if !is_root() {
        bail!(
            "missing: {list}. Run as root:\n  apt-get update && apt-get install -y --no-install-recommends {list}\nand `cargo xtask setup` again"
        );
    }
    if artifact::find_program("apt-get").is_none() {
        bail!(
            "missing: {list} (names of Debian's packages); this is not a Debian: install them by hand, then run `cargo xtask setup` again"
        );
    }
    let apt = || {
        let mut command = Command::new("apt-get");
        command.env("DEBIAN_FRONTEND", "noninteractive");
        command
    };
    // A stale list asks for files that the mirror no longer has; a failed update may still have left what we need.
    let (updated, _, log) = step::attempt("update the package lists", apt().arg("update"))?;
    if !updated {
        step::say(format_args!("going on with the lists there are (see {})", log.display()));
    }
    for package in packages {
        let policy = Command::new("apt-cache").args(["policy", package]).output().context("cannot run apt-cache")?;
        if !has_candidate(&String::from_utf8_lossy(&policy.stdout)) {
            if package.contains("-web") {
                bail!(
                    "apt knows no {package} (Debian 12 with its security updates has it); instead: `rustup toolchain install nightly -c rust-src,clippy,rustfmt`"
                );
            }
            bail!("apt knows no {package}; is the package list complete?");
        }
    }
    let title = format!("install {list}");
    step::run(&title, apt().args(["install", "-y", "--no-install-recommends"]).args(packages)).map(drop)
}

fn unpacked(purpose: Purpose) -> &'static [Unpacked] {
    match purpose {
        Purpose::Build | Purpose::Fuzz | Purpose::Kernels => &[],
        Purpose::Bench => &[HAPROXY, NGINX],
        Purpose::Test | Purpose::Proof => &[HAPROXY, NGINX, PROMTOOL],
    }
}

fn is_installed(package: &str) -> bool {
    let query = Command::new("dpkg-query").args(["-W", "-f", "${db:Status-Status}", package]).output();
    query.is_ok_and(|output| output.stdout == b"installed")
}

/// Takes a program out of Debian's package without installing it.
fn unpack(unpacked: &Unpacked) -> Result<()> {
    let Unpacked { program, package, file, purpose, .. } = unpacked;
    if artifact::find_program(program).is_some() {
        return Ok(());
    }
    let tools = step::tools()?;
    let folder = step::log_dir()?.join(package);
    if folder.exists() {
        fs::remove_dir_all(&folder)?;
    }
    fs::create_dir_all(&folder)?;
    let mut download = Command::new("apt-get");
    step::run(
        &format!("download {package} (for {program}, without its service)"),
        download.current_dir(&folder).args(["download", package]),
    )
    .with_context(|| format!("{program} {purpose}; put it on PATH by hand, or run `apt-get update`"))?;
    let archive = fs::read_dir(&folder)?.next().context("apt-get download left no file")??.path();
    step::run(&format!("unpack {program}"), Command::new("dpkg-deb").arg("-x").arg(archive).arg(folder.join("root")))?;
    fs::create_dir_all(&tools)?;
    fs::copy(folder.join("root").join(file), tools.join(program)).with_context(|| format!("the package {package} holds no {file}"))?;
    Ok(fs::remove_dir_all(&folder)?)
}

/// Whether `apt-cache policy` offers a version.
fn has_candidate(policy: &str) -> bool {
    policy.lines().filter_map(|line| line.trim().strip_prefix("Candidate:")).any(|version| version.trim() != "(none)")
}

/// The compiler that the agent's build script will choose: the first one with library source.
pub fn compiler() -> Option<PathBuf> {
    let rustup = Command::new("rustup").args(["which", "--toolchain", "nightly", "rustc"]).output().ok();
    let nightly =
        rustup.filter(|output| output.status.success()).map(|output| PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()));
    let own = env::var_os("RUSTC").map_or_else(|| "rustc".into(), PathBuf::from);
    let candidates = [env::var_os("BPF_RUSTC").map(PathBuf::from), nightly, Some(own), Some("/usr/bin/rustc".into())];
    candidates.into_iter().flatten().find(|rustc| sysroot(rustc).is_some_and(|root| root.join(LIBRARY_SOURCE).exists()))
}

/// What the compiler of this build compiles for when nothing is said.
pub fn host() -> Result<String> {
    let own = env::var_os("RUSTC").map_or_else(|| "rustc".into(), PathBuf::from);
    let output = Command::new(&own).arg("-vV").output().with_context(|| format!("cannot run {}", own.display()))?;
    Ok(compiler_facts(&String::from_utf8_lossy(&output.stdout))?.host)
}

fn sysroot(rustc: &Path) -> Option<PathBuf> {
    let output = Command::new(rustc).args(["--print", "sysroot"]).output().ok()?;
    output.status.success().then(|| PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()))
}

/// Facts of `rustc -vV`.
#[derive(Debug, PartialEq, Eq)]
struct CompilerFacts {
    release: String,
    host: String,
    llvm: u32,
}

fn compiler_facts(verbose: &str) -> Result<CompilerFacts> {
    let field = |name: &str| verbose.lines().find_map(|line| line.strip_prefix(name)).map(|value| value.trim().to_owned());
    let llvm = field("LLVM version:").context("`rustc -vV` names no LLVM version")?;
    Ok(CompilerFacts {
        release: field("release:").context("`rustc -vV` names no release")?,
        host: field("host:").context("`rustc -vV` names no host")?,
        llvm: llvm.split('.').next().and_then(|major| major.parse().ok()).with_context(|| format!("odd LLVM version {llvm}"))?,
    })
}

/// Makes sure that bpf-linker reads what this compiler writes.
fn linker(rustc: &Path) -> Result<CompilerFacts> {
    let verbose = Command::new(rustc).arg("-vV").output().with_context(|| format!("cannot run {}", rustc.display()))?;
    let facts = compiler_facts(&String::from_utf8_lossy(&verbose.stdout))?;
    let why = match artifact::find_program("bpf-linker") {
        None => "there is none".to_owned(),
        Some(linker) => match try_linker(&linker, rustc) {
            Ok(()) => return Ok(facts),
            Err(error) => format!("{error:#}"),
        },
    };
    let installed = artifact::cargo_bin().join("bpf-linker");
    step::say(format_args!("installing bpf-linker {BPF_LINKER} for rustc {} (LLVM {}): {why}", facts.release, facts.llvm));
    if !LINKER_LLVM.contains(&facts.llvm) {
        bail!(
            "bpf-linker {BPF_LINKER} cannot be built against LLVM {}; use a compiler with LLVM {LINKER_LLVM:?} (set BPF_RUSTC)",
            facts.llvm
        );
    }
    let library = find_llvm(&facts, rustc)?;
    let prefix = llvm_prefix(&library)?;
    let feature = format!("llvm-{}", facts.llvm);
    let mut command = artifact::cargo()?;
    // Not in the repository, whose configuration and target folder are for the workspace.
    command.current_dir("/").env_remove("CARGO_TARGET_DIR").env("LLVM_PREFIX", &prefix).env("CARGO_PROFILE_RELEASE_DEBUG", "0").args([
        "install",
        "bpf-linker",
        "--version",
        BPF_LINKER,
        "--locked",
        "--force",
        "--no-default-features",
        "--features",
        &feature,
    ]);
    step::run(&format!("build bpf-linker {BPF_LINKER} with {feature} (minutes)"), &mut command)?;
    try_linker(&installed, rustc).context("the new bpf-linker does not work")?;
    Ok(facts)
}

/// Links a function: fails on another version's bitcode and on a missing libLLVM.
fn try_linker(linker: &Path, rustc: &Path) -> Result<()> {
    let version = Command::new(linker).arg("--version").output().with_context(|| format!("{} does not start", linker.display()))?;
    let version = String::from_utf8_lossy(&version.stdout).trim().to_owned();
    if version != format!("bpf-linker {BPF_LINKER}") {
        bail!("{} is {version:?}", linker.display());
    }
    let dir = step::log_dir()?.join(format!("linker-{}", std::process::id()));
    fs::create_dir_all(&dir)?;
    let result = link_probe(linker, rustc, &dir);
    fs::remove_dir_all(&dir)?;
    result
}

fn link_probe(linker: &Path, rustc: &Path, dir: &Path) -> Result<()> {
    let source = "#![no_std]\n#[unsafe(no_mangle)]\npub extern \"C\" fn probe(x: u64) -> u64 {\n    x + 1\n}\n";
    fs::write(dir.join("probe.rs"), source)?;
    let compile = ["--edition=2024", "--crate-type=lib", "--emit=llvm-bc", "-O", "-Cpanic=abort", "-oprobe.bc", "probe.rs"];
    let link = ["--target=bpfel-unknown-none", "--emit=obj", "--export=probe", "-o", "probe.o", "probe.bc"];
    for (program, arguments) in [(rustc, &compile[..]), (linker, &link[..])] {
        let output = Command::new(program).current_dir(dir).args(arguments).output()?;
        if !output.status.success() {
            bail!("{} fails: {}", program.display(), String::from_utf8_lossy(&output.stderr).lines().next().unwrap_or_default());
        }
    }
    if !crate::object::is_bpf(&fs::read(dir.join("probe.o"))?) {
        bail!("{} wrote no BPF object", linker.display());
    }
    Ok(())
}

/// The shared LLVM of the compiler's version: Debian's, or the one inside a rustup toolchain.
fn find_llvm(facts: &CompilerFacts, rustc: &Path) -> Result<PathBuf> {
    let multiarch = facts.host.replacen("-unknown", "", 1);
    let mut folders = vec![PathBuf::from("/usr/lib").join(multiarch), format!("/usr/lib/llvm-{}/lib", facts.llvm).into()];
    folders.extend(sysroot(rustc).map(|root| root.join("lib")));
    let names = |folder: &PathBuf| {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        let mut names: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
        names.sort();
        names
    };
    let found =
        folders.iter().flat_map(names).find(|path| path.file_name().is_some_and(|name| is_llvm(&name.to_string_lossy(), facts.llvm)));
    found.with_context(|| {
        let places: Vec<String> = folders.iter().map(|folder| folder.display().to_string()).collect();
        format!("no libLLVM.so.{}.* in {} (Debian: apt-get install libllvm{})", facts.llvm, places.join(", "), facts.llvm)
    })
}

fn is_llvm(name: &str, major: u32) -> bool {
    name.strip_prefix("libLLVM.so.").and_then(|rest| rest.split(['.', '-']).next()) == Some(&major.to_string())
}

/// A folder that looks to bpf-linker's build like an LLVM installation.
fn llvm_prefix(library: &Path) -> Result<PathBuf> {
    let prefix = step::log_dir()?.join("llvm");
    let link = prefix.join("lib/libLLVM.so");
    fs::create_dir_all(prefix.join("lib"))?;
    if link.symlink_metadata().is_ok() {
        fs::remove_file(&link)?;
    }
    std::os::unix::fs::symlink(library, &link).with_context(|| format!("cannot make {}", link.display()))?;
    Ok(prefix)
}

fn bpffs() -> Result<()> {
    const PLACE: &str = "/sys/fs/bpf";
    if has_bpffs(&fs::read_to_string("/proc/self/mounts")?, PLACE) {
        return Ok(());
    }
    if !is_root() {
        bail!("no bpffs on {PLACE}. Run as root:\n  mount -t bpf bpf {PLACE}");
    }
    step::run("mount bpffs", Command::new("mount").args(["-t", "bpf", "bpf", PLACE])).map(drop)
}

fn has_bpffs(mounts: &str, place: &str) -> bool {
    mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>()).any(|fields| fields.get(1..3) == Some(&[place, "bpf"]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compiler_facts_are_read() {
        let verbose =
            "rustc 1.96.0 (ac68faa20 2026-05-25)\nbinary: rustc\nhost: x86_64-unknown-linux-gnu\nrelease: 1.96.0\nLLVM version: 22.1.8\n";
        let facts = CompilerFacts { release: "1.96.0".into(), host: "x86_64-unknown-linux-gnu".into(), llvm: 22 };
        assert_eq!(compiler_facts(verbose).unwrap(), facts);
        assert!(compiler_facts("rustc 1.0\nrelease: 1.0\nhost: x\n").unwrap_err().to_string().contains("LLVM"));
    }

    #[test]
    fn only_the_right_llvm_counts() {
        assert!(is_llvm("libLLVM.so.22.1", 22) && is_llvm("libLLVM.so.22.1-rust-1.97.0-nightly", 22) && is_llvm("libLLVM.so.21", 21));
        assert!(!is_llvm("libLLVM.so.22.1", 2) && !is_llvm("libLLVM-15.so.1", 15) && !is_llvm("libLLVM.so.22.1", 21));
    }

    #[test]
    fn candidates_and_mounts_are_read() {
        assert!(has_candidate("rustc-web:\n  Installed: (none)\n  Candidate: 1.96.0+dfsg1-1~deb12u2\n"));
        assert!(!has_candidate("rustc-web:\n  Installed: (none)\n  Candidate: (none)\n") && !has_candidate(""));
        assert!(has_bpffs("bpf /sys/fs/bpf bpf rw 0 0\n", "/sys/fs/bpf"));
        assert!(!has_bpffs("tmpfs /sys/fs/bpf tmpfs rw 0 0\nbpf /other bpf rw 0 0\n", "/sys/fs/bpf"));
    }
}
