//! The guest's files: a busybox, a job, and copies of this machine's programs with their libraries, as one archive in memory.

use super::{cpio::Archive, image::Image};
use crate::artifact;
use anyhow::{Context, Result, ensure};
use splitter_lab::cleanup::Guard;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

/// First program of the guest: mounts, runs `/job`, tells how it ended, switches off.
const INIT: &str = include_str!("init.sh");
/// What the scripts use of busybox.
const APPLETS: &[&str] = &["cat", "cut", "env", "grep", "mkdir", "mount", "poweroff", "sh", "tail", "timeout", "uname"];

pub struct Root {
    archive: Archive,
    placed: BTreeSet<String>,
}

impl Root {
    /// A root that runs a job: lines of shell, whose standard output are the rows (JSON) that the host reads.
    pub fn new(job: &str) -> Result<Root> {
        let mut root = Root { archive: Archive::default(), placed: BTreeSet::new() };
        for folder in ["usr/bin", "usr/sbin", "usr/lib", "usr/lib64", "dev", "etc", "proc", "run", "sys", "tmp", "root", "var/lib"] {
            root.archive.folder(folder);
        }
        // As on the machine that the programs come from.
        for (link, target) in [("bin", "usr/bin"), ("sbin", "usr/sbin"), ("lib", "usr/lib"), ("lib64", "usr/lib64")] {
            root.archive.link(link, target);
        }
        let busybox = artifact::find_program("busybox").context("no busybox (Debian: busybox-static)")?;
        ensure!(libraries(&busybox)?.is_empty(), "{} is not a static program (Debian: busybox-static)", busybox.display());
        root.file("usr/bin/busybox", &busybox)?;
        for applet in APPLETS {
            root.archive.link(&format!("usr/bin/{applet}"), "busybox");
        }
        root.archive.file("etc/passwd", 0o644, b"root:x:0:0:root:/root:/bin/sh\n");
        root.archive.file("etc/group", 0o644, b"root:x:0:\n");
        root.archive.file("etc/hosts", 0o644, b"127.0.0.1 localhost\n::1 localhost\n");
        root.archive.file("init", 0o755, INIT.as_bytes());
        root.archive.file("job", 0o755, format!("#!/bin/sh\n{job}").as_bytes());
        Ok(root)
    }

    /// A file of the machine, at another place.
    pub fn file(&mut self, path: &str, source: &Path) -> Result<()> {
        if self.placed.insert(path.to_owned()) {
            let content = fs::read(source).with_context(|| format!("cannot read {}", source.display()))?;
            self.archive.file(path, source.metadata()?.permissions().mode(), &content);
        }
        Ok(())
    }

    /// A program at `path`, and its libraries where it looks for them.
    pub fn program(&mut self, path: &str, source: &Path) -> Result<()> {
        self.file(path, source)?;
        for library in libraries(source)? {
            let folder = library.parent().context("a library lies in a folder")?.canonicalize()?;
            let place = folder.join(library.file_name().context("a library has a name")?);
            self.file(&place.to_string_lossy()[1..], &library)?;
        }
        Ok(())
    }

    /// Modules and what they need, for the guest's modprobe.
    pub fn modules(&mut self, image: &Image, names: &[&str]) -> Result<()> {
        let place = format!("usr/lib/modules/{}", image.release);
        let list = image.modules.join("modules.dep");
        let list = fs::read_to_string(&list).with_context(|| format!("cannot read {}", list.display()))?;
        for file in needed(&list, names) {
            self.file(&format!("{place}/{file}"), &image.modules.join(&file))?;
        }
        for index in [
            "modules.dep.bin",
            "modules.alias.bin",
            "modules.softdep",
            "modules.symbols.bin",
            "modules.builtin.bin",
            "modules.builtin.alias.bin",
        ] {
            let source = image.modules.join(index);
            if source.exists() {
                self.file(&format!("{place}/{index}"), &source)?;
            }
        }
        Ok(())
    }

    /// Writes the archive, which goes with the guard.
    pub fn write(self, path: &Path) -> Result<Guard> {
        let ours = path.to_owned();
        let guard = Guard::new(move || {
            let _ = fs::remove_file(ours);
        });
        fs::write(path, self.archive.finish()).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(guard)
    }
}

/// The shared libraries of a program, its loader among them; none of a static one.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let output = Command::new("ldd").arg(program).output().context("cannot run ldd (Debian: libc-bin)")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let listed = listed(&text);
    if let Some(missing) = text.lines().find(|line| line.contains("not found")) {
        anyhow::bail!("{} lacks a library: {}", program.display(), missing.trim());
    }
    Ok(listed)
}

/// Paths in ldd's answer.
fn listed(text: &str) -> Vec<PathBuf> {
    text.lines().filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/'))).map(PathBuf::from).collect()
}

/// Files of the modules of these names, and of those that they need. A name that is not there is built into the kernel.
fn needed(list: &str, names: &[&str]) -> BTreeSet<String> {
    let lines: BTreeMap<&str, &str> = list.lines().filter_map(|line| line.split_once(':')).collect();
    let name = |file: &str| -> String {
        let base = file.rsplit('/').next().unwrap_or(file);
        base.split('.').next().unwrap_or(base).replace('-', "_")
    };
    let wanted = lines.iter().filter(|(file, _)| names.contains(&name(file).as_str()));
    // The list names all that a module needs, not only the next.
    wanted.flat_map(|(file, needs)| needs.split_whitespace().chain([*file])).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ldds_answer_is_read() {
        let text = "\tlinux-vdso.so.1 (0x00007ffd)\n\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f)\n\t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n";
        assert_eq!(listed(text), ["/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"].map(PathBuf::from));
        assert_eq!(listed("\tnot a dynamic executable\n\tstatically linked\n"), Vec::<PathBuf>::new());
    }

    #[test]
    fn modules_come_with_what_they_need() {
        let list = "\
kernel/drivers/net/veth.ko.xz:
kernel/net/netfilter/nft_chain_nat.ko: kernel/net/netfilter/nf_nat.ko kernel/lib/libcrc32c.ko
kernel/net/bridge/br-netfilter.ko: kernel/net/bridge/bridge.ko
";
        let found = |names: &[&str]| needed(list, names).into_iter().collect::<Vec<_>>();
        assert_eq!(found(&["veth", "ipv6"]), ["kernel/drivers/net/veth.ko.xz"]);
        assert_eq!(found(&["nft_chain_nat"]).len(), 3);
        assert_eq!(found(&["br_netfilter"]), ["kernel/net/bridge/br-netfilter.ko", "kernel/net/bridge/bridge.ko"]);
    }
}
