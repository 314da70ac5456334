//! Kernels to boot: Debian's packages, downloaded and unpacked in the target folder, never installed.

use crate::{artifact, step};
use anyhow::{Context, Result, bail, ensure};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// Series of kernels that Debian 12 offers: its own, and the one that its security updates bring beside.
pub const SERIES: [&str; 2] = ["6.1", "6.12"];

/// An unpacked kernel.
#[derive(Clone, Debug)]
pub struct Image {
    /// `6.1`, `6.12`.
    pub series: &'static str,
    /// What `uname -r` says inside.
    pub release: String,
    /// Of Debian's package.
    pub version: String,
    pub vmlinuz: PathBuf,
    /// Folder of its modules, with `modules.dep`.
    pub modules: PathBuf,
}

impl Image {
    /// For rows: `6.1 (6.1.0-57-cloud-amd64, Debian 6.1.192-3)`.
    pub fn title(&self) -> String {
        format!("{} ({}, Debian {})", self.series, self.release, self.version)
    }
}

/// The newest kernel of a series, from the cache when it is there and whole.
///
/// # Errors
/// On anything but Debian, or when its package lists have no such kernel: names what is missing.
pub fn find(series: &'static str, arch: &str) -> Result<Image> {
    for tool in ["apt-cache", "apt-get", "dpkg-deb"] {
        ensure!(
            artifact::find_program(tool).is_some(),
            "no {tool}: the kernels to boot come from Debian's packages (linux-image-{series}.*-cloud-{arch}), which only a Debian can download"
        );
    }
    let (package, version) = match newest(series, arch)? {
        Some(found) => found,
        None => {
            refresh_lists()?;
            newest(series, arch)?.with_context(|| missing(series, arch))?
        }
    };
    let cache = step::log_dir()?.join("kernels");
    let folder = cache.join(format!("{package}_{}", version.replace(':', "%3a")));
    if let Err(problem) = whole(&folder) {
        if folder.exists() {
            step::say(format_args!("the kept {package} is not whole ({problem:#}): made anew"));
            fs::remove_dir_all(&folder)?;
        }
        fetch(&package, &version, &cache, &folder)?;
        forget_older(&cache, series, &folder)?;
    }
    let release = package.trim_start_matches("linux-image-").to_owned();
    let (vmlinuz, modules) = (folder.join("root/boot").join(format!("vmlinuz-{release}")), folder.join("root/lib/modules").join(&release));
    Ok(Image { series, release, version, vmlinuz, modules })
}

fn missing(series: &str, arch: &str) -> String {
    format!(
        "apt knows no kernel package linux-image-{series}.*-cloud-{arch}: Debian 12 (bookworm) has 6.1, its security updates \
         (bookworm-security) have 6.12; add them to /etc/apt/sources.list and run `apt-get update`"
    )
}

fn refresh_lists() -> Result<()> {
    let (updated, _, log) = step::attempt("update the package lists", Command::new("apt-get").arg("update"))?;
    if !updated {
        step::say(format_args!("going on with the lists there are (see {})", log.display()));
    }
    Ok(())
}

/// Package and version of the newest kernel of a series that can be downloaded.
fn newest(series: &str, arch: &str) -> Result<Option<(String, String)>> {
    let pattern = format!(r"^linux-image-{}\.[0-9].*-cloud-{arch}$", series.replace('.', r"\."));
    let found = Command::new("apt-cache").args(["--names-only", "search", &pattern]).output().context("cannot run apt-cache")?;
    for package in newest_first(&String::from_utf8_lossy(&found.stdout), series) {
        let shown = Command::new("apt-cache").args(["show", "--no-all-versions", &package]).output()?;
        if let Some(version) = field(&String::from_utf8_lossy(&shown.stdout), "Version:") {
            return Ok(Some((package, version)));
        }
    }
    Ok(None)
}

/// The packages of a series in `apt-cache search`'s answer. What is unsigned or for debugging has another name's end, and does not match.
fn newest_first(answer: &str, series: &str) -> Vec<String> {
    let prefix = format!("linux-image-{series}.");
    let mut packages: Vec<&str> =
        answer.lines().filter_map(|line| line.split(' ').next()).filter(|name| name.starts_with(&prefix)).collect();
    packages.sort_by_key(|name| std::cmp::Reverse(numbers(name)));
    packages.into_iter().map(str::to_owned).collect()
}

/// The numbers in a name: `6.12.117+deb12` is older than `6.12.118+deb12`, and newer than `6.12.98`.
fn numbers(name: &str) -> Vec<u64> {
    name.split(|c: char| !c.is_ascii_digit()).filter_map(|part| part.parse().ok()).collect()
}

fn field(text: &str, name: &str) -> Option<String> {
    text.lines().find_map(|line| line.strip_prefix(name)).map(|value| value.trim().to_owned())
}

/// Checks every unpacked file against the package's sums, and that the list of dependencies is there.
fn whole(folder: &Path) -> Result<()> {
    let (root, sums) = (folder.join("root"), folder.join("md5sums"));
    ensure!(sums.exists(), "nothing there");
    let modules = root.join("lib/modules");
    let release = fs::read_dir(&modules)?.next().context("no modules")??.path();
    ensure!(release.join("modules.dep").exists(), "no modules.dep");
    let output = Command::new("md5sum").args(["--check", "--quiet"]).arg(sums.canonicalize()?).current_dir(root).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout).lines().next().unwrap_or("md5sum fails"));
    Ok(())
}

/// Downloads and unpacks beside the place, then moves there: what is in the place was finished.
fn fetch(package: &str, version: &str, cache: &Path, folder: &Path) -> Result<()> {
    let part = cache.join(format!("part-{}-{package}", std::process::id()));
    let _remove = splitter_lab::cleanup::Guard::new({
        let part = part.clone();
        move || {
            let _ = fs::remove_dir_all(part);
        }
    });
    fs::create_dir_all(&part).with_context(|| format!("cannot make {}", part.display()))?;
    let wanted = format!("{package}={version}");
    let title = format!("download {package} {version} (to boot it; not installed)");
    let download = || step::attempt(&title, Command::new("apt-get").current_dir(&part).args(["download", &wanted]));
    if !download()?.0 {
        refresh_lists()?;
        let (fetched, output, _) = download()?;
        ensure!(fetched, "cannot download {wanted}: {}", output.trim().lines().last().unwrap_or_default());
    }
    let archive = fs::read_dir(&part)?.next().context("apt-get download left no file")??.path();
    step::run(&format!("unpack {package}"), Command::new("dpkg-deb").arg("-x").arg(&archive).arg(part.join("root")))?;
    step::run(&format!("sums of {package}"), Command::new("dpkg-deb").arg("-e").arg(&archive).arg(part.join("control")))?;
    fs::rename(part.join("control/md5sums"), part.join("md5sums")).context("the package has no sums")?;
    fs::remove_file(archive)?;
    let release = package.trim_start_matches("linux-image-");
    let depmod = artifact::find_program("depmod").context("no depmod (Debian: kmod)")?;
    step::run(&format!("dependencies of {package}"), Command::new(depmod).arg("-b").arg(part.join("root")).arg(release))?;
    if let Err(error) = fs::rename(&part, folder) {
        // Another run may have been faster.
        if whole(folder).is_err() {
            bail!("cannot move the kernel to {}: {error}", folder.display());
        }
    }
    Ok(())
}

/// Kernels of the series that a newer one replaces.
fn forget_older(cache: &Path, series: &str, newest: &Path) -> Result<()> {
    let prefix = format!("linux-image-{series}.");
    let arch = |path: &Path| path.file_name().and_then(|name| name.to_str()?.split('_').next()?.rsplit('-').next().map(str::to_owned));
    for entry in fs::read_dir(cache)? {
        let path = entry?.path();
        let alike = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&prefix)) && arch(&path) == arch(newest);
        if alike && path != newest {
            fs::remove_dir_all(&path).with_context(|| format!("cannot remove {}", path.display()))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_kernel_of_the_series_comes_first() {
        let answer = "\
linux-image-6.12.98+deb12-cloud-amd64 - Linux 6.12 for x86-64 cloud (signed)
linux-image-6.12.117+deb12-cloud-amd64 - Linux 6.12 for x86-64 cloud (signed)
linux-image-6.1.0-9-cloud-amd64 - Linux 6.1 for x86-64 cloud (signed)
linux-image-6.1.0-57-cloud-amd64 - Linux 6.1 for x86-64 cloud (signed)
";
        assert_eq!(newest_first(answer, "6.12"), ["linux-image-6.12.117+deb12-cloud-amd64", "linux-image-6.12.98+deb12-cloud-amd64"]);
        assert_eq!(newest_first(answer, "6.1"), ["linux-image-6.1.0-57-cloud-amd64", "linux-image-6.1.0-9-cloud-amd64"]);
        assert_eq!(field("Package: x\nVersion: 6.1.192-3\n", "Version:").as_deref(), Some("6.1.192-3"));
    }

    /// A cut file is found by its sum.
    #[test]
    fn a_broken_cache_is_seen() {
        let folder = std::env::temp_dir().join(format!("xtask-kernels-{}", std::process::id()));
        let modules = folder.join("root/lib/modules/6.1.0-1");
        assert!(whole(&folder).is_err());
        fs::create_dir_all(&modules).unwrap();
        fs::write(modules.join("modules.dep"), "").unwrap();
        fs::write(folder.join("root/x"), "a\n").unwrap();
        fs::write(folder.join("md5sums"), "60b725f10c9c85c70d97880dfe8191b3  x\n").unwrap();
        whole(&folder).unwrap();
        fs::write(folder.join("root/x"), "b\n").unwrap();
        assert!(whole(&folder).unwrap_err().to_string().contains("x: FAILED"));
        fs::remove_dir_all(&folder).unwrap();
    }
}
