//! The full run: the project's own root tests, with traffic between namespaces, inside a guest of each kernel.

use super::{
    image::Image,
    items::{self, Item},
    root::Root,
    vm::{self, Accelerator, Guest},
};
use crate::{artifact, step};
use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use splitter_lab::cleanup::Guard;
use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// Under ten minutes on an idle machine under TCG.
const PATIENCE: Duration = Duration::from_secs(45 * 60);
/// Of one test, seconds.
const TEST_PATIENCE: u32 = 420;
const MEMORY: u32 = 3072;
/// Two, so that programs meet on different ones.
const PROCESSORS: u32 = 2;
/// Columns of what a failed test said.
const WIDTH: usize = 500;
/// Modules that the kernel asks for when the tests need them; the rest is built in.
const MODULES: &[&str] = &["veth", "bridge", "sch_ingress", "cls_bpf", "af_packet", "act_gact"];
/// Programs that the lab and the tests start.
const TOOLS: &[&str] = &["ip", "tc", "ethtool", "modprobe"];
/// Lines of a failed test that are shown.
const TAIL: usize = 60;

/// What is run in the guests.
pub struct Programs {
    tests: Vec<(&'static str, PathBuf)>,
    /// Where it is built: the tests start it from there.
    splitter: PathBuf,
}

impl Programs {
    pub fn build() -> Result<Programs> {
        let (tests, splitter) = artifact::build_tests(&items::programs())?;
        Ok(Programs { tests, splitter })
    }
}

/// One item on one kernel.
#[derive(Debug, PartialEq)]
struct Row {
    what: &'static str,
    test: String,
    ok: bool,
    seconds: u64,
}

/// What one kernel showed.
pub struct Report {
    image: Image,
    accelerator: Accelerator,
    seconds: f64,
    rows: Vec<Row>,
}

impl Report {
    /// For `bench/results`.
    pub fn describe(&self) -> Value {
        let row = |row: &Row| json!({"what": row.what, "test": row.test, "ok": row.ok, "seconds": row.seconds});
        json!({
            "kernel": self.image.series,
            "release": self.image.release,
            "package": format!("Debian {}", self.image.version),
            "run_by": format!("QEMU {}", self.accelerator.name()),
            "seconds": self.seconds.round(),
            "passed": self.rows.iter().filter(|row| row.ok).count(),
            "failed": self.failed(),
            "rows": self.rows.iter().map(row).collect::<Vec<_>>(),
        })
    }

    pub fn failed(&self) -> usize {
        self.rows.iter().filter(|row| !row.ok).count()
    }

    /// One line.
    pub fn summary(&self) -> String {
        let passed = self.rows.len() - self.failed();
        format!("{}: {passed} passed, {} failed ({:.0} s, {})", self.image.title(), self.failed(), self.seconds, self.accelerator.name())
    }
}

/// Runs all items of a kernel; tells of each as it ends.
pub fn run(image: &Image, programs: &Programs) -> Result<Report> {
    let begin = Instant::now();
    let items: Vec<&Item> = items::of(image.series).collect();
    let (root, _gone) = archive(image, programs, &items)?;
    let guest = Guest { image, root: &root, purpose: "full", processors: PROCESSORS, memory: MEMORY, patience: PATIENCE };
    let mut rows = Vec::new();
    let (accelerator, _) = vm::boot(&guest, |row| {
        let row = read(&row, &items)?;
        let mark = if row.ok { "  ok  " } else { "FAILED" };
        step::say(format_args!("[{mark}] {:>5} {} ({} s): {}", image.series, row.what, row.seconds, row.test));
        if !row.ok {
            let console = fs::read(vm::console(image, "full")?)?;
            step::say(said(&String::from_utf8_lossy(&console), &row.test));
        }
        rows.push(row);
        Ok(())
    })?;
    ensure!(rows.len() == items.len(), "{}: {} of {} tests were run", image.title(), rows.len(), items.len());
    Ok(Report { image: image.clone(), accelerator, seconds: begin.elapsed().as_secs_f64(), rows })
}

fn archive(image: &Image, programs: &Programs, items: &[&Item]) -> Result<(PathBuf, Guard)> {
    let mut root = Root::new(&job(items))?;
    for tool in TOOLS {
        let source = artifact::find_program(tool).with_context(|| format!("no {tool}; `cargo xtask setup` installs it"))?;
        root.program(&format!("usr/sbin/{tool}"), &source)?;
    }
    for (name, path) in &programs.tests {
        root.program(&format!("tests/{name}"), path)?;
    }
    root.program(&inside(&programs.splitter)?, &programs.splitter)?;
    root.modules(image, MODULES)?;
    let path = step::log_dir()?.join(format!("kernel-{}-full-{}.cpio", image.series, std::process::id()));
    let guard = root.write(&path)?;
    Ok((path, guard))
}

/// The same place in the guest.
fn inside(path: &Path) -> Result<String> {
    let path = path.strip_prefix("/").context("cargo names whole paths")?;
    Ok(path.to_string_lossy().into_owned())
}

/// The guest's script: each test by itself, a row of each; what a failed one said goes to the console.
fn job(items: &[&Item]) -> String {
    let lines: Vec<String> = items.iter().map(|item| format!("run {} {}\n", item.program, item.test)).collect();
    format!(
        r#"run() {{
    begin=$(cut -d. -f1 /proc/uptime)
    timeout -k 5 {TEST_PATIENCE} /tests/$1 --exact $2 --nocapture > /tmp/said 2>&1
    status=$?
    # A filter that finds no test passes.
    [ $status != 0 ] || grep -q '^test result: ok. 1 passed' /tmp/said || status=97
    if [ $status != 0 ]; then
        {{ echo "--- $1 $2"; tail -n {TAIL} /tmp/said | cut -c 1-{WIDTH}; echo "--- end"; }} > /dev/ttyS0
    fi
    echo "{{\"program\":\"$1\",\"test\":\"$2\",\"status\":$status,\"seconds\":$(($(cut -d. -f1 /proc/uptime) - begin))}}"
}}
{}"#,
        lines.concat()
    )
}

fn read(row: &Value, items: &[&Item]) -> Result<Row> {
    let item = items.iter().find(|item| row["program"] == item.program && row["test"] == item.test);
    let (Some(item), Some(status), Some(seconds)) = (item, row["status"].as_i64(), row["seconds"].as_u64()) else {
        bail!("odd row {row}");
    };
    Ok(Row { what: item.what, test: format!("{} {}", item.program, item.test), ok: status == 0, seconds })
}

/// What a failed test said, from the console.
fn said<'a>(console: &'a str, test: &str) -> &'a str {
    let begin = console.rfind(&format!("--- {test}")).unwrap_or(console.len());
    let text = &console[begin..];
    text.find("--- end").map_or(text, |end| &text[..end]).trim_end()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ITEM: Item = Item { what: "L4", program: "netns", test: "split::x", only: &[] };

    #[test]
    fn rows_are_read_and_counted() {
        let row = |status: i64| json!({"program": "netns", "test": "split::x", "status": status, "seconds": 7});
        let good = read(&row(0), &[&ITEM]).unwrap();
        assert_eq!(good, Row { what: "L4", test: "netns split::x".into(), ok: true, seconds: 7 });
        assert!(!read(&row(101), &[&ITEM]).unwrap().ok && !read(&row(97), &[&ITEM]).unwrap().ok);
        assert!(read(&json!({"program": "netns", "test": "split::y", "status": 0, "seconds": 1}), &[&ITEM]).is_err());
        assert!(read(&json!({"program": "netns", "test": "split::x", "seconds": 1}), &[&ITEM]).is_err());
    }

    #[test]
    fn what_a_failed_test_said_is_found() {
        let console = "noise\r\n--- netns split::x\r\npanicked at x.rs\r\n--- end\r\nmore\r\n";
        assert_eq!(said(console, "netns split::x"), "--- netns split::x\r\npanicked at x.rs");
        assert_eq!(said(console, "http y"), "");
    }

    #[test]
    fn the_job_names_every_test() {
        let job = job(&[&ITEM]);
        assert!(job.ends_with("}\nrun netns split::x\n"), "{job}");
    }
}
