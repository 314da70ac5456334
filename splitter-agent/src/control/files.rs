//! Files below the state directory, safely: mode 0600, no symbolic link followed, whole or not at all. The state directory itself may be
//! reached through a link (systemd makes such ones); what is in it may not. Knows nothing of what is in the files.

use std::{
    ffi::CString,
    fs::{self, DirBuilder, File},
    io::{self, Write},
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::{
            ffi::OsStrExt,
            fs::{DirBuilderExt, PermissionsExt},
        },
    },
    path::Path,
};

/// Only for the owner: the files tell clients' addresses, commands and reasons.
const PRIVATE: u32 = 0o600;

/// Makes a directory with its parents, if need be; `true` when it was not there.
pub fn make_directory(path: &Path) -> io::Result<bool> {
    if path.is_dir() {
        return Ok(false);
    }
    DirBuilder::new().recursive(true).mode(0o750).create(path)?;
    Ok(true)
}

/// Writes a file of a directory, whole or not at all: a crash, or a disk that is full, leaves the old one.
///
/// # Errors
/// As the kernel says; then nothing has changed.
pub fn write(directory: &Path, name: &str, fill: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
    let (folder, beside) = (open_directory(directory)?, format!(".{name}.new"));
    let all = || -> io::Result<()> {
        // What a crash left; a link that somebody put there is removed, not followed.
        remove_at(&folder, &beside)?;
        let mut out = io::BufWriter::new(open_at(&folder, &beside, libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL)?);
        fill(&mut out)?;
        let file = out.into_inner().map_err(io::IntoInnerError::into_error)?;
        file.sync_data()?;
        rename_at(&folder, &beside, name)?;
        folder.sync_data()
    };
    all().inspect_err(|_| {
        // Half a file would keep a full disk full.
        let _ = remove_at(&folder, &beside);
    })
}

/// Adds to the end of a file, with one write: lines of two writers do not mix. What could not be written whole is taken away again, so that
/// the next line does not begin in the middle of one. Returns the file's length.
pub fn append(directory: &Path, name: &str, bytes: &[u8]) -> io::Result<u64> {
    let mut file = open_at(&open_directory(directory)?, name, libc::O_WRONLY | libc::O_CREAT | libc::O_APPEND)?;
    let found = file.metadata()?;
    if found.permissions().mode() & 0o777 != PRIVATE {
        file.set_permissions(fs::Permissions::from_mode(PRIVATE))?;
    }
    file.write_all(bytes).inspect_err(|_| {
        let _ = file.set_len(found.len());
    })?;
    Ok(found.len() + bytes.len() as u64)
}

/// Opens a file of a directory for reading.
///
/// # Errors
/// Also when it is a symbolic link, or no regular file.
pub fn open(directory: &Path, name: &str) -> io::Result<File> {
    open_at(&open_directory(directory)?, name, libc::O_RDONLY)
}

/// Gives a file of a directory another name in it.
pub fn rename(directory: &Path, from: &str, to: &str) -> io::Result<()> {
    rename_at(&open_directory(directory)?, from, to)
}

/// Removes a file of a directory; one that is not there is fine.
pub fn remove(directory: &Path, name: &str) -> io::Result<()> {
    remove_at(&open_directory(directory)?, name)
}

/// Whether something can be written into a directory now: a file of a block is written, and removed again.
pub fn probe(directory: &Path) -> io::Result<()> {
    let (folder, name) = (open_directory(directory)?, ".probe");
    remove_at(&folder, name)?;
    let written = open_at(&folder, name, libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL).and_then(|mut file| file.write_all(&[0; 4096]));
    remove_at(&folder, name)?;
    written
}

fn open_directory(path: &Path) -> io::Result<File> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: the pointer is to a live string that ends with zero.
    opened(unsafe { libc::open(path.as_ptr(), libc::O_RDONLY | libc::O_DIRECTORY | libc::O_CLOEXEC) })
}

fn open_at(folder: &File, name: &str, flags: i32) -> io::Result<File> {
    let path = CString::new(name)?;
    // A pipe in the file's place does not hold us up.
    let flags = flags | libc::O_NOFOLLOW | libc::O_CLOEXEC | libc::O_NONBLOCK;
    // SAFETY: the pointer is to a live string that ends with zero, the descriptor is open.
    let file = opened(unsafe { libc::openat(folder.as_raw_fd(), path.as_ptr(), flags, PRIVATE) }).map_err(|error| match error {
        error if error.raw_os_error() == Some(libc::ELOOP) => {
            io::Error::new(io::ErrorKind::InvalidInput, "it is a symbolic link, which is not followed here; remove it")
        }
        error => error,
    })?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file; remove it"));
    }
    Ok(file)
}

fn opened(descriptor: i32) -> io::Result<File> {
    if descriptor < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just gave it to us, and nobody else has it.
    Ok(File::from(unsafe { OwnedFd::from_raw_fd(descriptor) }))
}

fn rename_at(folder: &File, from: &str, to: &str) -> io::Result<()> {
    let (from, to, folder) = (CString::new(from)?, CString::new(to)?, folder.as_raw_fd());
    // SAFETY: the pointers are to live strings that end with zero, the descriptor is open.
    done(unsafe { libc::renameat(folder, from.as_ptr(), folder, to.as_ptr()) })
}

fn remove_at(folder: &File, name: &str) -> io::Result<()> {
    let name = CString::new(name)?;
    // SAFETY: the pointer is to a live string that ends with zero, the descriptor is open.
    match done(unsafe { libc::unlinkat(folder.as_raw_fd(), name.as_ptr(), 0) }) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

fn done(result: i32) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{io::Read, os::unix::fs::symlink};

    fn mode(path: &Path) -> u32 {
        fs::symlink_metadata(path).unwrap().permissions().mode() & 0o777
    }

    fn text(directory: &Path, name: &str) -> io::Result<String> {
        let mut text = String::new();
        open(directory, name)?.read_to_string(&mut text)?;
        Ok(text)
    }

    #[test]
    fn files_are_private_and_links_are_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        let (state, victim) = (folder.path().join("state"), folder.path().join("victim"));
        assert!(make_directory(&state).unwrap() && !make_directory(&state).unwrap());
        fs::write(&victim, "precious").unwrap();
        // In the place of the file, and of the one beside it.
        for name in ["a.json", ".a.json.new"] {
            symlink(&victim, state.join(name)).unwrap();
            write(&state, "a.json", |out| out.write_all(b"one")).unwrap();
            assert_eq!((text(&state, "a.json").unwrap().as_str(), mode(&state.join("a.json"))), ("one", 0o600));
        }
        symlink(&victim, state.join("log")).unwrap();
        assert!(append(&state, "log", b"x\n").unwrap_err().to_string().contains("symbolic link"));
        assert!(open(&state, "log").unwrap_err().to_string().contains("symbolic link"));
        assert_eq!(fs::read_to_string(&victim).unwrap(), "precious");
        // A log of an earlier version was readable by all.
        fs::write(state.join("old"), "1\n").unwrap();
        assert_eq!(append(&state, "old", b"2\n").unwrap(), 4);
        assert_eq!((text(&state, "old").unwrap().as_str(), mode(&state.join("old"))), ("1\n2\n", 0o600));
        // The directory itself may be behind a link.
        symlink(&state, folder.path().join("link")).unwrap();
        write(&folder.path().join("link"), "b.json", |out| out.write_all(b"two")).unwrap();
        assert_eq!(text(&state, "b.json").unwrap(), "two");
    }

    #[test]
    fn a_write_that_fails_leaves_the_old_file() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), "a", |out| out.write_all(b"old")).unwrap();
        let broken = |out: &mut dyn Write| {
            out.write_all(b"half")?;
            Err(io::Error::from_raw_os_error(libc::ENOSPC))
        };
        assert!(write(folder.path(), "a", broken).is_err());
        assert_eq!(text(folder.path(), "a").unwrap(), "old");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is left beside it");
    }
}
