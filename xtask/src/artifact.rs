//! Calling cargo for the workspace, and where it puts what it built.

use crate::step;
use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use splitter_bench::cases::Choice;
use std::{
    env,
    ffi::OsString,
    path::{Path, PathBuf},
    process::Command,
};

/// What the demonstration runs.
pub struct Programs {
    pub splitter: PathBuf,
    pub bench: PathBuf,
    /// The object of the kernel programs that `splitter` carries.
    pub object: PathBuf,
}

/// The cargo that runs us, in the repository, with bpf-linker's folder on PATH. Without what `cargo run` set for us: build scripts would see it.
pub fn cargo() -> Result<Command> {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(crate::root()?).env("PATH", path());
    for (name, _) in env::vars_os() {
        let name = name.to_string_lossy().into_owned();
        if name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_") {
            command.env_remove(name);
        }
    }
    Ok(command)
}

/// What `cargo metadata` says of the workspace and of all that it may use on these platforms (none: on any).
pub fn metadata(platforms: &[String]) -> Result<Value> {
    let mut command = cargo()?;
    command.args(["metadata", "--format-version", "1", "--all-features", "--locked"]);
    command.args(platforms.iter().flat_map(|platform| ["--filter-platform", platform]));
    let output = command.output().context("cannot run cargo")?;
    ensure!(output.status.success(), "cargo metadata failed: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).context("cargo metadata wrote no JSON")
}

/// PATH with cargo's bin folder and the tests' tools behind it, and unchanged where it needs neither: build scripts run again when it changes.
pub fn path() -> OsString {
    let path = env::var_os("PATH").unwrap_or_default();
    let mut folders: Vec<PathBuf> = env::split_paths(&path).collect();
    let more = [Some(cargo_bin()), step::tools().ok().filter(|tools| tools.exists())];
    let more: Vec<PathBuf> = more.into_iter().flatten().filter(|folder| !folders.contains(folder)).collect();
    if more.is_empty() {
        return path;
    }
    folders.extend(more);
    env::join_paths(folders).unwrap_or(path)
}

/// Where `cargo install` puts programs.
pub fn cargo_bin() -> PathBuf {
    let home = || PathBuf::from(env::var_os("HOME").unwrap_or_else(|| "/root".into())).join(".cargo");
    let chosen = env::var_os("CARGO_INSTALL_ROOT").or_else(|| env::var_os("CARGO_HOME"));
    chosen.map_or_else(home, PathBuf::from).join("bin")
}

/// Builds the agent and the lab in release.
pub fn build_release() -> Result<Programs> {
    build(&[])
}

/// The same with what measures and loads inside the kernel.
pub fn build_with_kernel() -> Result<Programs> {
    build(&["--features", "splitter-bench/kernel"])
}

fn build(features: &[&str]) -> Result<Programs> {
    let mut command = cargo()?;
    command.args(["build", "--release", "--locked", "-p", "splitter-agent", "-p", "splitter-bench", "--bins"]).args(features);
    let output = step::run("build the agent and the lab (release)", command.arg("--message-format=json-render-diagnostics"))?;
    programs(&output)
}

/// Builds test programs of the agent in release; their paths by name, and that of the agent that they start.
pub fn build_tests(names: &[&'static str]) -> Result<(Vec<(&'static str, PathBuf)>, PathBuf)> {
    let mut command = cargo()?;
    command.args(["test", "--release", "--no-run", "--locked", "-p", "splitter-agent"]);
    command.args(names.iter().flat_map(|name| ["--test", name]));
    let output = step::run("build the root tests (release)", command.arg("--message-format=json-render-diagnostics"))?;
    let messages: Vec<Value> = output.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let path = |name: &str| {
        let found = messages.iter().find(|message| message["target"]["name"] == name && message["executable"].is_string());
        let path = found.and_then(|message| message["executable"].as_str()).map(PathBuf::from);
        path.with_context(|| format!("cargo did not say where it put {name}"))
    };
    let tests = names.iter().map(|name| Ok((*name, path(name)?))).collect::<Result<_>>()?;
    Ok((tests, path("splitter")?))
}

fn programs(output: &str) -> Result<Programs> {
    let messages: Vec<Value> = output.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let text = |value: &Value| value.as_str().map(PathBuf::from);
    let executable = |name: &str| {
        let found = messages.iter().filter(|message| message["target"]["name"] == name).find_map(|message| text(&message["executable"]));
        found.with_context(|| format!("cargo did not say where it put {name}"))
    };
    let builds = |message: &&Value| message["package_id"].as_str().is_some_and(|id| id.contains("splitter-datapath"));
    let out = messages.iter().filter(builds).find_map(|message| text(&message["out_dir"]));
    Ok(Programs {
        splitter: executable("splitter")?,
        bench: executable("splitter-bench")?,
        object: out.context("cargo did not say where the build script of splitter-datapath writes")?.join("splitter"),
    })
}

/// Builds both with what measures inside the kernel, and hands over to the benchmarks. `choice` was checked already.
pub fn bench(choice: &Choice) -> Result<()> {
    let programs = build_with_kernel()?;
    let root = crate::root()?;
    let mut command = Command::new(&programs.bench);
    // The rivals that were unpacked for the tests are found too.
    command.env("PATH", path()).arg("bench").arg("--splitter").arg(&programs.splitter);
    command.arg("--objects").arg(programs.object.parent().context("the object lies in a folder")?);
    command.arg("--results").arg(root.join("bench/results")).arg("--revision").arg(revision(&root)?);
    let status = command.args(choice.arguments()).status().context("cannot run splitter-bench")?;
    if !status.success() {
        bail!("the benchmarks ended with {status}");
    }
    Ok(())
}

/// The commit, with a mark when the tree differs from it.
fn revision(root: &Path) -> Result<String> {
    let output = Command::new("git")
        .args(["describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"])
        .current_dir(root)
        .output()
        .context("cannot run git")?;
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    Ok(if output.status.success() && !text.is_empty() { text } else { "unknown".into() })
}

/// A program on PATH (ours: with cargo's bin folder and the system folders that users' PATH lacks).
pub fn find_program(name: &str) -> Option<PathBuf> {
    let folders = env::split_paths(&path()).chain(["/usr/sbin", "/sbin"].map(PathBuf::from)).collect::<Vec<_>>();
    folders.iter().map(|folder| folder.join(name)).find(|path| is_executable(path))
}

fn is_executable(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    path.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_cargos_messages() {
        let output = r#"   Compiling noise v1
{"reason":"build-script-executed","package_id":"path+file:///r/other#0.1.0","out_dir":"/t/other/out"}
{"reason":"build-script-executed","package_id":"path+file:///r/crates/datapath#splitter-datapath@0.1.0","out_dir":"/t/datapath/out"}
{"reason":"compiler-artifact","target":{"name":"splitter-bench","kind":["lib"]},"executable":null}
{"reason":"compiler-artifact","target":{"name":"splitter-bench","kind":["bin"]},"executable":"/t/splitter-bench"}
{"reason":"compiler-artifact","target":{"name":"splitter","kind":["bin"]},"executable":"/t/splitter"}"#;
        let programs = programs(output).unwrap();
        assert_eq!(programs.splitter, Path::new("/t/splitter"));
        assert_eq!(programs.bench, Path::new("/t/splitter-bench"));
        assert_eq!(programs.object, Path::new("/t/datapath/out/splitter"));
    }
}
