//! Notices that a policy changed and says what it says now.
//!
//! Owns inotify, the slow poll behind it, and debouncing. Watches folders, never the file itself, so that renames, editors, symlink
//! swaps, deletion and re-creation are all seen. Delivers only what differs from what was delivered last.

use super::{
    Outcome,
    files::{self, Signature},
    known::Known,
};
use inotify::{Inotify, WatchDescriptor, WatchMask};
use std::{
    collections::HashSet,
    hash::{DefaultHasher, Hash, Hasher},
    io,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::mpsc::Sender,
    time::{Instant, sleep_until, timeout},
};

/// How patient the watcher is.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// Reads when nothing happened for this long ...
    pub quiet: Duration,
    /// ... or this long after the first event.
    pub patience: Duration,
    /// Looks without an event this often: network file systems and bind mounts give none.
    pub poll: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self { quiet: Duration::from_millis(50), patience: Duration::from_millis(500), poll: Duration::from_secs(2) }
    }
}

/// Reads the policy, delivers it, then every change of it, until the receiver is gone.
pub async fn watch(path: PathBuf, timing: Timing, outcomes: Sender<Outcome>) {
    let mut folders = Folders::new();
    let mut last = None;
    loop {
        // Folders first: what changes between this and the reading gives an event.
        folders.follow(&path);
        if let Some((seen, outcome)) = look(path.clone(), last.take()).await {
            last = Some(seen);
            if let Some(outcome) = outcome
                && outcomes.send(outcome).await.is_err()
            {
                return;
            }
        }
        tokio::select! {
            () = outcomes.closed() => return,
            () = folders.change(timing) => {}
        }
    }
}

/// What was seen last.
struct Seen {
    signature: Signature,
    content: u64,
    /// The content was read while it could still change under the same signature.
    racy: bool,
    known: Known,
}

/// Reads the policy when it may have changed; an outcome when its content did. None only when the runtime ends.
async fn look(path: PathBuf, last: Option<Seen>) -> Option<(Seen, Option<Outcome>)> {
    tokio::task::spawn_blocking(move || {
        let signature = files::signature(&path);
        match last {
            Some(last) if last.signature == signature && !last.racy => return (last, None),
            _ => {}
        }
        let racy = signature.is_racy(SystemTime::now());
        let snapshot = files::read(&path);
        let content = fingerprint(&snapshot);
        let (before, mut known) = last.map_or_else(Default::default, |last| (Some(last.content), last.known));
        let outcome = (before != Some(content)).then(|| known.outcome(&path, &snapshot));
        (Seen { signature, content, racy, known }, outcome)
    })
    .await
    .ok()
}

fn fingerprint(snapshot: &files::Snapshot) -> u64 {
    let mut hasher = DefaultHasher::new();
    for file in &snapshot.files {
        (&file.name, &file.content).hash(&mut hasher);
    }
    for error in &snapshot.errors {
        error.to_string().hash(&mut hasher);
    }
    hasher.finish()
}

/// The folders that a path hangs on. Without inotify (no watches left) the poll remains.
struct Folders {
    inotify: Option<AsyncFd<Inotify>>,
    watched: HashSet<WatchDescriptor>,
}

impl Folders {
    fn new() -> Self {
        let inotify = Inotify::init().and_then(|inotify| {
            // SAFETY: `Inotify` owns its descriptor, keeps it open and never exchanges it.
            unsafe { AsyncFd::register_with_interest(inotify, Interest::READABLE) }.map_err(io::Error::from)
        });
        if let Err(error) = &inotify {
            tracing::warn!(%error, "no inotify: changes of the policy are seen by polling only");
        }
        Self { inotify: inotify.ok(), watched: HashSet::new() }
    }

    /// Watches the path's folder, the folder where it really is, and the path itself when it is a folder; for what does not exist,
    /// the nearest ancestor that does.
    fn follow(&mut self, path: &Path) {
        let Some(inotify) = &self.inotify else { return };
        let mask = WatchMask::CREATE
            | WatchMask::CLOSE_WRITE
            | WatchMask::MODIFY
            | WatchMask::MOVE
            | WatchMask::DELETE
            | WatchMask::DELETE_SELF
            | WatchMask::MOVE_SELF
            | WatchMask::ATTRIB
            | WatchMask::ONLYDIR;
        let watched: HashSet<_> = folders_of(path).iter().filter_map(|folder| inotify.get_ref().watches().add(folder, mask).ok()).collect();
        for gone in self.watched.difference(&watched) {
            // Fails when the folder was deleted: then the kernel removed the watch itself.
            let _ = inotify.get_ref().watches().remove(gone.clone());
        }
        self.watched = watched;
    }

    /// Returns when something happened and then nothing for a while, or when it is time to look anyway.
    async fn change(&mut self, timing: Timing) {
        let Some(inotify) = &mut self.inotify else { return tokio::time::sleep(timing.poll).await };
        if !matches!(timeout(timing.poll, drain(inotify)).await, Ok(Ok(()))) {
            return;
        }
        let end = Instant::now() + timing.patience;
        loop {
            tokio::select! {
                () = sleep_until(end) => return,
                more = timeout(timing.quiet, drain(inotify)) => if !matches!(more, Ok(Ok(()))) { return },
            }
        }
    }
}

/// Waits for events and forgets them: they only say "look".
async fn drain(inotify: &mut AsyncFd<Inotify>) -> io::Result<()> {
    let mut buffer = [0; 4096];
    loop {
        let mut ready = inotify.readable_mut().await?;
        match ready.try_io(|fd| fd.get_mut().read_events(&mut buffer).map(|events| events.count())) {
            Ok(result) => return result.map(|_| ()),
            Err(_would_block) => {}
        }
    }
}

fn folders_of(path: &Path) -> Vec<PathBuf> {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let mut folders = vec![absolute.clone()];
    folders.extend(absolute.ancestors().skip(1).find(|p| p.is_dir()).map(Path::to_owned));
    if let Ok(real) = absolute.canonicalize()
        && real != absolute
    {
        folders.extend(real.parent().map(Path::to_owned));
    }
    // A symbolic link in the middle may be swapped: watch where it stands.
    folders.extend(absolute.ancestors().skip(1).filter(|p| p.is_symlink()).filter_map(Path::parent).map(Path::to_owned));
    folders
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        fs,
        os::unix::fs::symlink,
        sync::atomic::{AtomicU32, Ordering},
    };
    use tokio::sync::mpsc::{Receiver, channel};

    fn policy(name: &str) -> String {
        format!(
            "apiVersion: splitter.dev/v1alpha1\nkind: TrafficSplit\nmetadata: {{name: {name}}}\nspec:\n  mode: tcp\n  frontends: \
             [{{address: 10.9.9.9, port: 80}}]\n  versions: [{{name: v1, weight: 1, backends: [\"10.2.1.2:80\"]}}]\n"
        )
    }

    /// `Ok(names)` or the first error.
    async fn next(outcomes: &mut Receiver<Outcome>) -> Result<Vec<String>, String> {
        let outcome = timeout(Duration::from_secs(10), outcomes.recv()).await.expect("a change within 10 s").expect("still watching");
        outcome.result.map(|p| p.services.iter().map(|s| s.name.clone()).collect()).map_err(|e| e[0].to_string())
    }

    /// Reads outcomes until one has the name: intermediate states (half written) may be seen as well.
    async fn until(outcomes: &mut Receiver<Outcome>, name: &str) {
        while next(outcomes).await != Ok(vec![name.to_owned()]) {}
    }

    /// A slow poll, so that inotify has to do the work.
    fn start(path: &Path) -> Receiver<Outcome> {
        let (sender, receiver) = channel(8);
        let timing = Timing { quiet: Duration::from_millis(20), patience: Duration::from_millis(200), poll: Duration::from_secs(60) };
        tokio::spawn(watch(path.to_owned(), timing, sender));
        receiver
    }

    #[tokio::test]
    async fn sees_writes_renames_deletion_and_return() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("policy.yaml");
        fs::write(&file, policy("a")).unwrap();
        let mut outcomes = start(&file);
        assert_eq!(next(&mut outcomes).await, Ok(vec!["a".to_owned()]));
        fs::write(&file, policy("b")).unwrap();
        until(&mut outcomes, "b").await;
        let temporary = folder.path().join(".policy.yaml.swp");
        fs::write(&temporary, policy("c")).unwrap();
        fs::rename(&temporary, &file).unwrap();
        until(&mut outcomes, "c").await;
        fs::remove_file(&file).unwrap();
        assert!(next(&mut outcomes).await.unwrap_err().contains("cannot read the policy"));
        fs::write(&file, policy("d")).unwrap();
        until(&mut outcomes, "d").await;
    }

    #[tokio::test]
    async fn sees_a_folder_removed_and_made_again() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("policies");
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("a.yaml"), policy("a")).unwrap();
        let mut outcomes = start(&folder);
        until(&mut outcomes, "a").await;
        fs::remove_dir_all(&folder).unwrap();
        while next(&mut outcomes).await.is_ok() {}
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("b.yaml"), policy("b")).unwrap();
        until(&mut outcomes, "b").await;
    }

    #[tokio::test]
    async fn sees_the_symlink_swap_of_a_config_map() {
        let folder = tempfile::tempdir().unwrap();
        let version = AtomicU32::new(0);
        let publish = |name: &str| {
            let data = format!("..v{}", version.fetch_add(1, Ordering::Relaxed));
            fs::create_dir(folder.path().join(&data)).unwrap();
            fs::write(folder.path().join(&data).join("policy.yaml"), policy(name)).unwrap();
            symlink(&data, folder.path().join("..data_tmp")).unwrap();
            fs::rename(folder.path().join("..data_tmp"), folder.path().join("..data")).unwrap();
        };
        publish("a");
        symlink("..data/policy.yaml", folder.path().join("policy.yaml")).unwrap();
        for path in [folder.path().to_owned(), folder.path().join("policy.yaml")] {
            let mut outcomes = start(&path);
            assert!(next(&mut outcomes).await.is_ok());
            publish("b");
            until(&mut outcomes, "b").await;
            publish("c");
            until(&mut outcomes, "c").await;
        }
    }

    #[tokio::test]
    async fn the_same_content_is_delivered_once() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("policy.yaml");
        fs::write(&file, policy("a")).unwrap();
        let mut outcomes = start(&file);
        until(&mut outcomes, "a").await;
        let copy = folder.path().join("copy");
        fs::write(&copy, policy("a")).unwrap();
        fs::rename(&copy, &file).unwrap();
        fs::write(folder.path().join("other.yaml"), "nonsense").unwrap();
        fs::write(&copy, policy("b")).unwrap();
        fs::rename(&copy, &file).unwrap();
        assert_eq!(next(&mut outcomes).await, Ok(vec!["b".to_owned()]));
    }

    #[tokio::test]
    async fn the_poll_alone_is_enough() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("policy.yaml");
        fs::write(&file, policy("a")).unwrap();
        let (seen, outcome) = look(file.clone(), None).await.unwrap();
        assert!(outcome.is_some_and(|o| o.result.is_ok()));
        let (seen, outcome) = look(file.clone(), Some(seen)).await.unwrap();
        assert!(outcome.is_none());
        // Same size, perhaps the same tick of the clock.
        fs::write(&file, policy("b")).unwrap();
        let (_, outcome) = look(file, Some(seen)).await.unwrap();
        assert_eq!(outcome.unwrap().result.unwrap().services[0].name, "b");
    }
}
