//! Notices that a policy changed and says what it says now.
//!
//! Owns inotify, the slow poll behind it, and debouncing. Watches folders, never the file itself, so that renames, editors, symlink
//! swaps, deletion and re-creation are all seen. Delivers only what differs from what was delivered last.

use super::{
    Outcome, PolicySource,
    files::{self, Signature},
    known::Known,
};
use inotify::{EventMask, Inotify, WatchDescriptor, WatchMask};
use std::{
    collections::HashSet,
    ffi::OsString,
    hash::{DefaultHasher, Hash, Hasher},
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::{
        Notify,
        mpsc::{Receiver, Sender, channel},
    },
    time::{Instant, sleep_until, timeout},
};

/// How patient the watcher is.
#[derive(Clone, Copy, Debug)]
struct Timing {
    /// Reads when nothing happened for this long ...
    pub quiet: Duration,
    /// ... or this long after the first event.
    pub patience: Duration,
    /// ... but for a file that somebody writes to and has not closed, this long.
    pub unfinished: Duration,
    /// Looks without an event this often: network file systems and bind mounts give none.
    pub poll: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            quiet: Duration::from_millis(50),
            patience: Duration::from_millis(500),
            unfinished: Duration::from_secs(2),
            poll: Duration::from_secs(2),
        }
    }
}

/// A file or a folder that is watched, until this is dropped.
#[derive(Debug)]
pub struct Watched(Receiver<Outcome>);

impl Watched {
    /// `reload` has the policy read and delivered again, changed or not.
    pub fn start(path: PathBuf, reload: Arc<Notify>) -> Self {
        let (sender, receiver) = channel(1);
        tokio::spawn(async move { watch(path, Timing::default(), &reload, sender).await });
        Self(receiver)
    }
}

impl PolicySource for Watched {
    async fn next(&mut self) -> Option<Outcome> {
        self.0.recv().await
    }
}

/// Reads the policy, delivers it, then every change of it, until the receiver is gone. `reload` has it read and delivered again, changed or not.
async fn watch(path: PathBuf, timing: Timing, reload: &Notify, outcomes: Sender<Outcome>) {
    let mut folders = Folders::new();
    let (mut last, mut again) = (None, false);
    loop {
        // Folders first: what changes between this and the reading gives an event.
        folders.follow(&path);
        if let Some((seen, outcome)) = look(path.clone(), last.take(), again).await {
            last = Some(seen);
            if let Some(outcome) = outcome
                && outcomes.send(outcome).await.is_err()
            {
                return;
            }
        }
        again = tokio::select! {
            () = outcomes.closed() => return,
            () = reload.notified() => true,
            () = folders.change(timing) => false,
        };
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

/// Reads the policy when it may have changed; an outcome when its content did, or when it is asked for. None only when the runtime ends.
async fn look(path: PathBuf, last: Option<Seen>, again: bool) -> Option<(Seen, Option<Outcome>)> {
    tokio::task::spawn_blocking(move || {
        let signature = files::signature(&path);
        match last {
            Some(last) if last.signature == signature && !last.racy && !again => return (last, None),
            _ => {}
        }
        let racy = signature.is_racy(SystemTime::now());
        let snapshot = files::read(&path);
        let content = fingerprint(&snapshot);
        let (before, mut known) = last.map_or_else(Default::default, |last| (Some(last.content), last.known));
        let outcome = (again || before != Some(content)).then(|| known.outcome(&path, &snapshot));
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
    unfinished: Unfinished,
}

/// Files that somebody has written to and not closed yet: what they say now may be a part of what they will say.
#[derive(Default)]
struct Unfinished(HashSet<(WatchDescriptor, OsString)>);

impl Unfinished {
    fn note(&mut self, event: &inotify::Event<&std::ffi::OsStr>) {
        let over = EventMask::CLOSE_WRITE | EventMask::DELETE | EventMask::MOVED_FROM | EventMask::MOVED_TO;
        let file = || event.name.map(|name| (event.wd.clone(), name.to_owned()));
        if event.mask.contains(EventMask::Q_OVERFLOW) {
            self.0.clear();
        } else if event.mask.intersects(over) {
            file().map(|file| self.0.remove(&file));
        } else if event.mask.contains(EventMask::MODIFY) {
            self.0.extend(file());
        }
    }
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
        Self { inotify: inotify.ok(), watched: HashSet::new(), unfinished: Unfinished::default() }
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
        let Self { inotify, unfinished, .. } = self;
        let Some(inotify) = inotify else { return tokio::time::sleep(timing.poll).await };
        if !matches!(timeout(timing.poll, drain(inotify, unfinished)).await, Ok(Ok(()))) {
            return;
        }
        let begin = Instant::now();
        loop {
            let open = !unfinished.0.is_empty();
            let end = begin + if open { timing.unfinished } else { timing.patience };
            let quiet = if open { timing.unfinished } else { timing.quiet };
            tokio::select! {
                () = sleep_until(end) => break,
                more = timeout(quiet, drain(inotify, unfinished)) => if !matches!(more, Ok(Ok(()))) { break },
            }
        }
        // Who keeps a file open for long is not waited for again before the next write.
        unfinished.0.clear();
    }
}

/// Waits for events: they say "look", and what is being written.
async fn drain(inotify: &mut AsyncFd<Inotify>, unfinished: &mut Unfinished) -> io::Result<()> {
    let mut buffer = [0; 4096];
    loop {
        let mut ready = inotify.readable_mut().await?;
        match ready.try_io(|fd| fd.get_mut().read_events(&mut buffer).map(|events| events.for_each(|event| unfinished.note(&event)))) {
            Ok(result) => return result,
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
        io::Write,
        os::unix::fs::symlink,
        sync::atomic::{AtomicU32, Ordering},
    };

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
        until_all(outcomes, &[name]).await;
    }

    async fn until_all(outcomes: &mut Receiver<Outcome>, names: &[&str]) {
        while next(outcomes).await != Ok(names.iter().map(ToString::to_string).collect()) {}
    }

    /// A slow poll, so that inotify has to do the work.
    fn start(path: &Path) -> Receiver<Outcome> {
        start_with(path, Duration::from_millis(200), Arc::default())
    }

    fn start_with(path: &Path, unfinished: Duration, reload: Arc<Notify>) -> Receiver<Outcome> {
        let (sender, receiver) = channel(8);
        let (quiet, patience, poll) = (Duration::from_millis(20), Duration::from_millis(200), Duration::from_secs(60));
        let (path, timing) = (path.to_owned(), Timing { quiet, patience, unfinished, poll });
        tokio::spawn(async move { watch(path, timing, &reload, sender).await });
        receiver
    }

    /// An empty folder is as good as none: it says so, and is followed like a missing one.
    #[tokio::test]
    async fn an_emptied_folder_is_a_missing_policy() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("policies");
        let file = folder.join("a.yaml");
        let mut outcomes = start(&folder);
        assert!(next(&mut outcomes).await.unwrap_err().contains("it is missing: create it"));
        fs::create_dir(&folder).unwrap();
        assert!(next(&mut outcomes).await.unwrap_err().contains("this folder is empty"));
        for name in ["a", "b"] {
            fs::write(&file, policy(name)).unwrap();
            until(&mut outcomes, name).await;
            fs::remove_file(&file).unwrap();
            assert!(next(&mut outcomes).await.unwrap_err().contains("this folder is empty"), "after `rm`");
        }
        fs::write(&file, "# later\n").unwrap();
        while !next(&mut outcomes).await.is_err_and(|error| error.contains("no TrafficSplit found here")) {}
    }

    /// Cut at the border of two documents a file is a policy, but not the one that is meant.
    #[tokio::test]
    async fn a_file_is_read_when_its_writer_has_closed_it() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("policy.yaml");
        let both = |first: &str| [policy(first), policy("z").replace("9.9.9", "9.9.8")];
        fs::write(&file, both("a").join("---\n")).unwrap();
        let mut outcomes = start_with(&file, Duration::from_secs(5), Arc::default());
        assert_eq!(next(&mut outcomes).await, Ok(vec!["a".to_owned(), "z".to_owned()]));
        let mut writer = fs::File::create(&file).unwrap();
        for part in both("b").map(|document| format!("---\n{document}")) {
            writer.write_all(part.as_bytes()).unwrap();
            tokio::time::sleep(Duration::from_millis(400)).await;
        }
        drop(writer);
        assert_eq!(next(&mut outcomes).await, Ok(vec!["b".to_owned(), "z".to_owned()]), "one half was taken for the whole");
        // Who never closes it does not keep us from it.
        let mut outcomes = start(&file);
        until_all(&mut outcomes, &["b", "z"]).await;
        let mut writer = fs::File::create(&file).unwrap();
        writer.write_all(policy("c").as_bytes()).unwrap();
        until(&mut outcomes, "c").await;
    }

    #[tokio::test]
    async fn a_reload_delivers_what_did_not_change() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("policy.yaml");
        fs::write(&file, policy("a")).unwrap();
        let reload = Arc::new(Notify::new());
        let mut outcomes = start_with(&file, Duration::from_millis(200), reload.clone());
        for _ in 0..2 {
            assert_eq!(next(&mut outcomes).await, Ok(vec!["a".to_owned()]));
            reload.notify_one();
        }
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
        let (seen, outcome) = look(file.clone(), None, false).await.unwrap();
        assert!(outcome.is_some_and(|o| o.result.is_ok()));
        let (seen, outcome) = look(file.clone(), Some(seen), false).await.unwrap();
        assert!(outcome.is_none());
        // Same size, perhaps the same tick of the clock.
        fs::write(&file, policy("b")).unwrap();
        let (_, outcome) = look(file, Some(seen), false).await.unwrap();
        assert_eq!(outcome.unwrap().result.unwrap().services[0].name, "b");
    }
}
