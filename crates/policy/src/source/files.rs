//! Which files make a policy, their content, and a cheap sign that they changed.
//!
//! Owns the file system's side of a source: a file, or a folder's `*.yaml` and `*.yml` (not its subfolders), sorted by name. Hidden
//! files and what editors leave behind are not part of a policy. Does not parse.

use super::{At, Diagnostic};
use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

/// Largest file accepted, bytes; 40,000 services are 15 MB.
const MAX_SIZE: u64 = 256 << 20;

/// What the files said at one moment.
#[derive(Debug, Default)]
pub struct Snapshot {
    pub files: Vec<File>,
    /// What could not be read.
    pub errors: Vec<Diagnostic>,
}

impl Snapshot {
    /// Of one file that was read already.
    pub fn of(name: &str, content: &[u8]) -> Self {
        Self { files: vec![File { name: name.to_owned(), content: content.to_vec() }], errors: Vec::new() }
    }
}

#[derive(Debug)]
pub struct File {
    /// The path as the user would write it.
    pub name: String,
    pub content: Vec<u8>,
}

/// Identity, size and times of every file, as `stat` says: when it differs, content may differ.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Signature {
    files: Vec<(PathBuf, Option<[i64; 7]>)>,
    /// Why there is no list of files: a folder that is missing differs from an empty one.
    missing: Option<io::ErrorKind>,
    /// Youngest change, seconds since 1970.
    newest: i64,
}

impl Signature {
    /// Whether a write after `read` could leave the same signature: timestamps move only with the kernel's tick.
    pub fn is_racy(&self, read: SystemTime) -> bool {
        let read = read.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs() as i64);
        self.newest >= read - 2
    }
}

/// Does not open the files.
pub fn signature(path: &Path) -> Signature {
    let mut signature = Signature::default();
    let files = list(path).unwrap_or_else(|error| {
        signature.missing = Some(error.kind());
        Vec::new()
    });
    for path in files {
        let stat = fs::metadata(&path).ok().map(|m| {
            signature.newest = signature.newest.max(m.ctime()).max(m.mtime());
            [m.dev() as i64, m.ino() as i64, m.size() as i64, m.mtime(), m.mtime_nsec(), m.ctime(), m.ctime_nsec()]
        });
        signature.files.push((path, stat));
    }
    signature
}

pub fn read(path: &Path) -> Snapshot {
    let mut snapshot = Snapshot::default();
    let paths = match list(path) {
        Ok(paths) => paths,
        Err(error) => {
            snapshot.errors.push(unreadable(path, &error));
            return snapshot;
        }
    };
    for path in paths {
        match content(&path) {
            Ok(content) => snapshot.files.push(File { name: path.display().to_string(), content }),
            Err(error) => snapshot.errors.push(unreadable(&path, &error)),
        }
    }
    snapshot
}

fn content(path: &Path) -> io::Result<Vec<u8>> {
    let metadata = fs::metadata(path)?;
    if !metadata.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    if metadata.len() > MAX_SIZE {
        return Err(io::Error::other(format!("it is larger than {} MiB: split it into a folder of files", MAX_SIZE >> 20)));
    }
    fs::read(path)
}

fn unreadable(path: &Path, error: &io::Error) -> Diagnostic {
    let hint = match error.kind() {
        io::ErrorKind::NotFound => "; it is missing: create it, or name another path",
        io::ErrorKind::PermissionDenied => {
            "; grant read permission to the user that runs this (the agent reads with the rights of its user alone, root too: see \
             --keep-capabilities)"
        }
        _ => "",
    };
    let message = format!("cannot read the policy: {error}{hint}");
    Diagnostic { path: path.display().to_string(), at: At::START, object: None, message }
}

/// The files of a policy.
fn list(path: &Path) -> io::Result<Vec<PathBuf>> {
    if !fs::metadata(path)?.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut paths = Vec::new();
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_name().to_str().is_some_and(is_policy) && !fs::metadata(entry.path()).is_ok_and(|m| m.is_dir()) {
            paths.push(entry.path());
        }
    }
    paths.sort();
    Ok(paths)
}

fn is_policy(name: &str) -> bool {
    let leftover = name.starts_with('.') || name.starts_with('#') || name.ends_with('~') || name.ends_with('#');
    !leftover && (name.ends_with(".yaml") || name.ends_with(".yml"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leftovers_of_editors_are_not_policy() {
        for name in ["a.yaml", "b.yml", "a.b.yaml"] {
            assert!(is_policy(name), "{name}");
        }
        for name in [".a.yaml", "a.yaml~", "#a.yaml#", ".a.yaml.swp", "a.yaml.swp", "a.json", "..data", ".#a.yaml", "yaml"] {
            assert!(!is_policy(name), "{name}");
        }
    }

    #[test]
    fn a_folder_is_read_in_order_without_subfolders() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["b.yaml", "a.yml", "c.txt", ".d.yaml"] {
            fs::write(folder.path().join(name), name).unwrap();
        }
        fs::create_dir(folder.path().join("e.yaml")).unwrap();
        let names: Vec<_> = read(folder.path()).files.into_iter().map(|f| String::from_utf8(f.content).unwrap()).collect();
        assert_eq!(names, ["a.yml", "b.yaml"]);
    }

    #[test]
    fn what_cannot_be_read_is_an_error_with_the_path() {
        let folder = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("nowhere", folder.path().join("a.yaml")).unwrap();
        assert!(read(folder.path()).errors[0].to_string().contains("a.yaml:1:1: cannot read the policy: No such file"));
        assert!(read(&folder.path().join("none")).errors[0].to_string().contains("none:1:1: cannot read"));
        assert!(read(Path::new("/dev/null")).errors[0].to_string().contains("not a regular file"));
    }
}
