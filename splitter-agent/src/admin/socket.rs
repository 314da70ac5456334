//! The admin socket: made safely, replaced when its agent is dead, refused when it lives.

use anyhow::{Context, Result, bail};
use std::{
    fs, io,
    os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
};
use tokio::net::{UnixListener, UnixStream, unix::UCred};

/// A bound admin socket, mode 0660. The file goes away with it, unless another agent has replaced it.
pub struct Listener {
    pub(super) listener: UnixListener,
    path: PathBuf,
    /// Device and inode of our socket file.
    identity: (u64, u64),
    group: u32,
}

impl Listener {
    /// # Errors
    /// When another agent answers on the socket, something else stands at the path, or the folder cannot be written.
    pub async fn bind(path: &Path) -> Result<Self> {
        if let Some(folder) = path.parent().filter(|p| !p.as_os_str().is_empty()) {
            fs::create_dir_all(folder).with_context(|| format!("cannot create {} for the admin socket", folder.display()))?;
        }
        match fs::symlink_metadata(path) {
            Ok(found) if !found.file_type().is_socket() => {
                bail!("{} exists and is not a socket: remove it, or name another with --admin", path.display());
            }
            Ok(_) if UnixStream::connect(path).await.is_ok() => {
                let path = path.display();
                bail!("another agent answers on {path}: stop it first, or give this one its own --admin, --pins and --state");
            }
            _ => {}
        }
        // Made beside and renamed over: no moment with other permissions, none without a socket.
        let temporary = path.with_extension(format!("new-{}", std::process::id()));
        remove(&temporary)?;
        let listener = UnixListener::bind(&temporary).with_context(|| format!("cannot make the admin socket {}", path.display()))?;
        fs::set_permissions(&temporary, fs::Permissions::from_mode(0o660))?;
        fs::rename(&temporary, path).with_context(|| format!("cannot put the admin socket at {}", path.display()))?;
        let metadata = fs::symlink_metadata(path)?;
        Ok(Self { listener, path: path.to_owned(), identity: (metadata.dev(), metadata.ino()), group: metadata.gid() })
    }

    /// Who may change things, decided now: an operator may have given the socket another group since.
    pub(super) fn writers(&self) -> Writers {
        // SAFETY: geteuid has no preconditions and cannot fail.
        let agent = unsafe { libc::geteuid() };
        Writers { agent, group: fs::symlink_metadata(&self.path).map_or(self.group, |m| m.gid()) }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if fs::symlink_metadata(&self.path).is_ok_and(|m| (m.dev(), m.ino()) == self.identity) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Users that may write: root, the agent's own, and those whose primary group is the socket's.
#[derive(Clone, Copy, Debug)]
pub struct Writers {
    pub agent: u32,
    pub group: u32,
}

impl Writers {
    /// The user who asks.
    ///
    /// # Errors
    /// The reason, for the user.
    pub fn check(self, peer: io::Result<UCred>) -> Result<u32, String> {
        let peer = peer.map_err(|error| format!("the kernel does not say who asks ({error}): writes are refused"))?;
        self.allows(peer.uid(), peer.gid()).map(|()| peer.uid())
    }

    fn allows(self, uid: u32, gid: u32) -> Result<(), String> {
        if uid == 0 || uid == self.agent || gid == self.group {
            return Ok(());
        }
        let (agent, group) = (self.agent, self.group);
        Err(format!(
            "uid {uid} (gid {gid}) may read but not change: use root, the agent's user (uid {agent}), or a user whose primary group is \
             the admin socket's (gid {group}; `sg GROUP -c 'splitter ...'` switches)"
        ))
    }
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_root_the_agent_and_the_group_write() {
        let writers = Writers { agent: 990, group: 800 };
        for (uid, gid) in [(0, 0), (990, 1), (1000, 800)] {
            assert_eq!(writers.allows(uid, gid), Ok(()));
        }
        assert!(writers.allows(1000, 1000).unwrap_err().contains("uid 1000 (gid 1000) may read but not change"));
    }

    #[tokio::test]
    async fn a_dead_socket_is_replaced_and_a_live_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run/admin.sock");
        fs::create_dir(folder.path().join("run")).unwrap();
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let listener = Listener::bind(&path).await.unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
        let error = Listener::bind(&path).await.err().unwrap().to_string();
        assert!(error.contains("another agent answers"), "{error}");
        drop(listener);
        assert!(!path.exists());
        fs::write(&path, "").unwrap();
        assert!(Listener::bind(&path).await.err().unwrap().to_string().contains("not a socket"));
    }
}
