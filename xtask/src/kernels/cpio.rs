//! Writes an archive in the form that the kernel unpacks as its first root: cpio's `newc`, uncompressed (Documentation/driver-api/early-userspace/
//! buffer-format.rst).

use std::collections::BTreeSet;

const DIRECTORY: u32 = 0o040_755;
const FILE: u32 = 0o100_000;
const LINK: u32 = 0o120_777;

/// Files of the root, in the order they are put in.
#[derive(Default)]
pub struct Archive {
    bytes: Vec<u8>,
    entries: u32,
    folders: BTreeSet<String>,
}

impl Archive {
    /// A file with its permissions. `path` is relative to the root, as all paths here.
    pub fn file(&mut self, path: &str, permissions: u32, content: &[u8]) {
        self.parents(path);
        self.entry(path, FILE | permissions & 0o7777, content);
    }

    pub fn link(&mut self, path: &str, target: &str) {
        self.parents(path);
        self.entry(path, LINK, target.as_bytes());
    }

    pub fn folder(&mut self, path: &str) {
        self.parents(path);
        if self.folders.insert(path.to_owned()) {
            self.entry(path, DIRECTORY, &[]);
        }
    }

    /// The whole archive, with its end mark.
    pub fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        self.bytes
    }

    fn parents(&mut self, path: &str) {
        if let Some((parent, _)) = path.rsplit_once('/') {
            self.folder(parent);
        }
    }

    fn entry(&mut self, path: &str, mode: u32, content: &[u8]) {
        self.entries += 1;
        // Magic, then 13 fields of eight hexadecimal digits: inode, mode, owner, group, links, time, size, four of devices, length of the name with
        // its zero, checksum.
        let fields = [self.entries, mode, 0, 0, 1, 0, content.len() as u32, 0, 0, 0, 0, path.len() as u32 + 1, 0];
        self.bytes.extend(b"070701");
        for field in fields {
            self.bytes.extend(format!("{field:08x}").bytes());
        }
        self.bytes.extend(path.bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_is_laid_out_as_the_kernel_reads_it() {
        let mut archive = Archive::default();
        archive.file("etc/name", 0o644, b"guest");
        archive.link("bin", "usr/bin");
        let bytes = archive.finish();
        let text = String::from_utf8_lossy(&bytes);
        assert_eq!(bytes.len() % 4, 0);
        // A folder comes before what lies in it, and once.
        let at = |what: &str| text.find(what).unwrap_or_else(|| panic!("no {what:?} in {text:?}"));
        assert!(at("etc\0") < at("etc/name\0") && at("etc/name\0") < at("bin\0") && at("bin\0") < at("TRAILER!!!\0"));
        let header = |name: &str| &text[at(name) - 110..at(name)];
        assert_eq!(&header("etc/name\0")[..22], "0707010000000200008_1a4".replace('_', "").as_str());
        assert_eq!(&header("etc/name\0")[54..62], "00000005");
        assert_eq!(&header("etc/name\0")[94..102], "00000009");
        // The content begins on a multiple of four, behind the padded name.
        let content = at("guest");
        assert_eq!((content % 4, content), (0, (at("etc/name\0") + 9).next_multiple_of(4)));
    }
}
