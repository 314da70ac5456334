//! A real agent in the node of a lab, with folders of its own, as tests and the demonstration run it. Knows its command line, nothing else.

use crate::{
    cleanup::Guard,
    lab::{self, Namespace, Process},
    pace,
};
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::{
    ffi::OsStr,
    fs::{self, File, OpenOptions},
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

const PATIENCE: Duration = Duration::from_secs(60);
/// Names of temporary folders and pins: this and the node's namespace.
const PREFIX: &str = "splitter-";
const BPFFS: &str = "/sys/fs/bpf";
/// In the node's namespace.
pub const METRICS: &str = "127.0.0.1:9900";

/// Temporary folder and pins of one agent; both go with it.
pub struct Site {
    pub splitter: PathBuf,
    pub node: Namespace,
    pub dir: PathBuf,
    pub pins: PathBuf,
    pub interfaces: Vec<&'static str>,
    pub xdp: &'static str,
    /// Further options of `splitter agent`.
    pub options: Vec<String>,
    /// Words before the agent's command line: `setpriv ...`.
    pub wrapper: Vec<String>,
    guard: Option<Guard>,
}

impl Site {
    pub fn new(splitter: &Path, node: &Namespace, policy: &str) -> Result<Site> {
        let (temporary, bpffs) = (std::env::temp_dir(), Path::new(BPFFS));
        for folder in [&temporary, bpffs] {
            lab::sweep_paths(folder, PREFIX)?;
        }
        let name = format!("{PREFIX}{}", node.name());
        let (dir, pins) = (temporary.join(&name), bpffs.join(&name));
        let guard = {
            let (splitter, node, dir, pins) = (splitter.to_owned(), node.clone(), dir.clone(), pins.clone());
            Guard::new(move || {
                // What detach should have done, in case it never came to that.
                let _ = detach_command(&splitter, &node, &pins).output();
                let _ = fs::remove_dir_all(&pins);
                let _ = fs::remove_dir_all(&dir);
            })
        };
        fs::create_dir_all(dir.join("state")).with_context(|| format!("cannot make {}", dir.display()))?;
        fs::write(dir.join("policy.yaml"), policy)?;
        Ok(Site {
            splitter: splitter.into(),
            node: node.clone(),
            dir,
            pins,
            interfaces: vec!["c0", "b*"],
            xdp: "off",
            options: Vec::new(),
            wrapper: Vec::new(),
            guard: Some(guard),
        })
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.join("admin.sock")
    }

    pub fn policy(&self) -> PathBuf {
        self.dir.join("policy.yaml")
    }

    /// Starts the agent and waits until it has applied `services` services.
    pub fn start(&self, services: u64) -> Result<Process> {
        let agent = self.spawn()?;
        let pid = u64::from(agent.pid());
        let ready = |status: &Value| status["agent"]["pid"] == pid && status["applied"]["services"] == services;
        match agent.wait_ready(pace::patience(PATIENCE), || self.status().is_ok_and(|status| ready(&status))) {
            Ok(()) => Ok(agent),
            Err(error) => bail!("{error:#}; {}", self.log_tail()),
        }
    }

    /// Starts the agent without waiting.
    pub fn spawn(&self) -> Result<Process> {
        let log = OpenOptions::new().create(true).append(true).open(self.dir.join("agent.log"))?;
        let mut words = self.wrapper.iter().map(OsStr::new).chain([self.splitter.as_os_str()]);
        let mut command = self.node.command(words.next().unwrap_or_default());
        command.args(words).args(["agent", "--metrics", METRICS, "--xdp", self.xdp]).args(&self.options);
        command.args(self.interfaces.iter().flat_map(|glob| ["--interface", glob]));
        command.arg("--policy").arg(self.policy()).arg("--admin").arg(self.socket());
        command.arg("--state").arg(self.dir.join("state")).arg("--pins").arg(&self.pins);
        command.stdin(std::process::Stdio::null()).stdout(log.try_clone()?).stderr(log);
        Process::spawn("the agent", &mut command)
    }

    /// For an error message.
    pub fn log_tail(&self) -> String {
        let log = fs::read_to_string(self.dir.join("agent.log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        format!("the agent's log ends with:\n{}", lines[lines.len().saturating_sub(20)..].join("\n"))
    }

    /// Runs the CLI against the agent; returns its standard output and how long it took.
    pub fn cli(&self, arguments: &[&str]) -> Result<(String, Duration)> {
        let began = Instant::now();
        let output =
            Command::new(&self.splitter).env("SPLITTER_ADMIN", self.socket()).args(arguments).output().context("cannot run splitter")?;
        let took = began.elapsed();
        if !output.status.success() {
            bail!("`splitter {}` failed: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok((String::from_utf8_lossy(&output.stdout).into_owned(), took))
    }

    pub fn status(&self) -> Result<Value> {
        Ok(serde_json::from_str(&self.cli(&["status", "-o", "json"])?.0)?)
    }

    /// Runs `splitter detach` and checks that no pin is left.
    pub fn detach(&self) -> Result<()> {
        let output = detach_command(&self.splitter, &self.node, &self.pins).output()?;
        if !output.status.success() {
            bail!("`splitter detach` failed: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        match fs::read_dir(&self.pins).map(Iterator::count) {
            Ok(count) if count > 0 => bail!("`splitter detach` left {count} pins in {}", self.pins.display()),
            _ => Ok(()),
        }
    }

    /// The command that removes every trace of the agent in the kernel, for a later process.
    pub fn detach_words(&self) -> Vec<String> {
        let net = format!("--net={}", self.node.path().display());
        let words =
            ["nsenter".into(), net, self.splitter.display().to_string(), "detach".into(), "--pins".into(), self.pins.display().to_string()];
        words.to_vec()
    }

    /// Removes both folders now.
    pub fn remove(mut self) -> Result<()> {
        drop(self.guard.take());
        for path in [&self.dir, &self.pins] {
            if path.exists() {
                bail!("{} is still there", path.display());
            }
        }
        Ok(())
    }

    /// Leaves both folders.
    pub fn leave(mut self) {
        if let Some(guard) = self.guard.take() {
            guard.disarm();
        }
    }
}

fn detach_command(splitter: &Path, node: &Namespace, pins: &Path) -> Command {
    let mut command = node.command(splitter);
    command.arg("detach").arg("--pins").arg(pins).stdin(std::process::Stdio::null());
    command
}

/// A temporary folder for what runs beside the agent, swept with those of agents, whose names are alike; removed with its guard.
pub fn folder(lab: &str) -> Result<(PathBuf, Guard)> {
    let folder = std::env::temp_dir().join(format!("{PREFIX}{lab}-files"));
    let removed = folder.clone();
    let removal = Guard::new(move || {
        let _ = fs::remove_dir_all(removed);
    });
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    Ok((folder, removal))
}

/// Where a lab's server writes.
pub fn quiet_log(dir: &Path, name: &str) -> Result<File> {
    Ok(OpenOptions::new().create(true).append(true).open(dir.join(format!("{name}.log")))?)
}
