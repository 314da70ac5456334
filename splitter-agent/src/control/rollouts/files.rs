//! Rollouts on disk: one file each, kept before anything is acted on; the audit log, and the same events once more by service.

use super::super::{
    files,
    store::{self, StoreError},
};
use splitter_api::{RolloutEvent, percent_decode, percent_encode};
use splitter_common::decide::salt;
use splitter_rollout::State;
use std::{
    fs,
    io::{self, BufRead, BufReader, Write},
    path::{Path, PathBuf},
};

const FOLDER: &str = "rollouts";
const HISTORY: &str = "history";
const AUDIT: &str = "audit.jsonl";
const OLDER: &str = "audit.jsonl.1";
/// The log is moved aside beyond this size, once.
const LARGEST: u64 = 64 << 20;
/// A service's history is cut to its last events beyond this size.
const LARGEST_HISTORY: u64 = 2 << 20;
/// Most events of one answer.
const EVENTS: usize = 200;
/// Longer names are cut: file names end at 255 bytes.
const LONGEST: usize = 200;

pub struct Files {
    state: PathBuf,
    folder: PathBuf,
    history: PathBuf,
}

impl Files {
    /// Below the state directory, which exists.
    pub fn open(state: &Path) -> Result<Self, StoreError> {
        let files = Self { state: state.into(), folder: state.join(FOLDER), history: state.join(HISTORY) };
        if files.make()? {
            files.sort_by_service();
        }
        Ok(files)
    }

    /// Makes the directories that are not there; whether there was no history before.
    pub fn make(&self) -> Result<bool, StoreError> {
        let make = |path: &Path| files::make_directory(path).map_err(|source| StoreError::new("use the state directory", path, source));
        make(&self.state)?;
        make(&self.folder)?;
        make(&self.history)
    }

    pub fn directory(&self) -> &Path {
        &self.state
    }

    /// Whether something can be written now.
    pub fn probe(&self) -> Result<(), StoreError> {
        let probe = |path: &Path| files::probe(path).map_err(|source| StoreError::new("write to", path, source));
        probe(&self.state)?;
        probe(&self.folder)
    }

    /// Every rollout that was kept; a file that cannot be read is told and left alone.
    pub fn load(&self) -> Vec<State> {
        let Ok(entries) = fs::read_dir(&self.folder) else { return Vec::new() };
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let mut states = Vec::new();
        for name in names.filter(|name| name.ends_with(".json") && !name.starts_with('.')) {
            match store::read::<State>(&self.folder, &name) {
                Ok(Some(state)) if is_of(name.trim_end_matches(".json"), &state.service) => states.push(state),
                Ok(_) => tracing::error!(file = name, "this rollout's file has another's name; it is left alone"),
                Err(error) => tracing::error!(%error, "a rollout cannot be restored; its weights stay as they are"),
            }
        }
        states
    }

    pub fn save(&self, state: &State) -> Result<(), StoreError> {
        store::write(&self.folder, &format!("{}.json", stem(&state.service)), state)
    }

    pub fn remove(&self, service: &str) -> Result<(), StoreError> {
        let name = format!("{}.json", stem(service));
        match files::remove(&self.folder, &name) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(StoreError::new("remove", &self.folder.join(name), error)),
            _ => Ok(()),
        }
    }

    /// Adds one line to the log, and to the service's history.
    pub fn audit(&self, event: &RolloutEvent) -> Result<(), StoreError> {
        let failed = |source| StoreError::new("write", &self.state.join(AUDIT), source);
        let mut line = serde_json::to_vec(event).map_err(|error| failed(error.into()))?;
        line.push(b'\n');
        let length = files::append(&self.state, AUDIT, &line).map_err(failed)?;
        if length > LARGEST {
            files::rename(&self.state, AUDIT, OLDER).map_err(failed)?;
        }
        self.remember(&event.service, &line)
    }

    fn remember(&self, service: &str, line: &[u8]) -> Result<(), StoreError> {
        let name = format!("{}.jsonl", stem(service));
        let failed = |source| StoreError::new("write", &self.history.join(&name), source);
        let length = files::append(&self.history, &name, line).map_err(failed)?;
        if length > LARGEST_HISTORY {
            let events = self.history(service)?;
            let all = |out: &mut dyn Write| {
                events.iter().try_for_each(|event| {
                    serde_json::to_writer(&mut *out, event)?;
                    out.write_all(b"\n")
                })
            };
            files::write(&self.history, &name, all).map_err(failed)?;
        }
        Ok(())
    }

    /// The last events of a service, oldest first.
    pub fn history(&self, service: &str) -> Result<Vec<RolloutEvent>, StoreError> {
        let mut events = Vec::new();
        each_event(&self.history, &format!("{}.jsonl", stem(service)), |event, _| {
            if event.service == service {
                events.push(event);
            }
        })?;
        events.drain(..events.len().saturating_sub(EVENTS));
        Ok(events)
    }

    /// An earlier version left the log alone: its events are sorted by service, once.
    fn sort_by_service(&self) {
        for name in [OLDER, AUDIT] {
            let sorted = each_event(&self.state, name, |event, line| {
                if let Err(error) = self.remember(&event.service, line) {
                    tracing::debug!(%error, "history");
                }
            });
            if let Err(error) = sorted {
                tracing::warn!(%error, "the history of rollouts begins now");
            }
        }
    }
}

/// Goes through the lines of a log; those that are none, cut or of another version of this program, are left out.
fn each_event(directory: &Path, name: &str, mut each: impl FnMut(RolloutEvent, &[u8])) -> Result<(), StoreError> {
    let failed = |source| StoreError::new("read", &directory.join(name), source);
    let file = match files::open(directory, name) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
    };
    for line in BufReader::new(file).split(b'\n') {
        let mut line = line.map_err(failed)?;
        if let Ok(event) = serde_json::from_slice::<RolloutEvent>(&line) {
            line.push(b'\n');
            each(event, &line);
        }
    }
    Ok(())
}

/// A service's name as the name of a file.
fn stem(service: &str) -> String {
    let encoded = percent_encode(service);
    match encoded.get(..LONGEST) {
        Some(begin) if encoded.len() > LONGEST => format!("{begin}~{:016x}", salt(service.as_bytes())),
        _ => encoded,
    }
}

fn is_of(found: &str, service: &str) -> bool {
    found == stem(service) || percent_decode(found).as_deref() == Some(service)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::OpenOptions;

    fn event(service: &str, at: f64) -> RolloutEvent {
        RolloutEvent { service: service.into(), at, ..RolloutEvent::default() }
    }

    #[test]
    fn the_log_tells_one_service_and_survives_garbage() {
        let folder = tempfile::tempdir().unwrap();
        let files = Files::open(folder.path()).unwrap();
        assert!(files.history("shop/web").unwrap().is_empty());
        for i in 0..300 {
            files.audit(&event(if i % 2 == 0 { "shop/web" } else { "other" }, f64::from(i))).unwrap();
        }
        let log = folder.path().join(HISTORY).join("shop%2Fweb.jsonl");
        OpenOptions::new().append(true).open(log).unwrap().write_all(b"{half a line\n").unwrap();
        let history = files.history("shop/web").unwrap();
        assert_eq!((history.len(), history[149].at), (150, 298.0));
        fs::write(folder.path().join(FOLDER).join("bad.json"), "{").unwrap();
        assert!(files.load().is_empty());
    }

    /// However much others have to tell, what happened to one service is found.
    #[test]
    fn the_history_of_a_quiet_service_is_not_pushed_out() {
        let folder = tempfile::tempdir().unwrap();
        let files = Files::open(folder.path()).unwrap();
        files.audit(&event("quiet", 1.0)).unwrap();
        let loud = RolloutEvent { reason: "x".repeat(100_000), ..event("loud", 2.0) };
        (0..60).for_each(|_| files.audit(&loud).unwrap());
        assert_eq!(files.history("quiet").unwrap().len(), 1);
        let kept = fs::metadata(folder.path().join(HISTORY).join("loud.jsonl")).unwrap().len();
        assert!(kept <= LARGEST_HISTORY + 100_200 || files.history("loud").unwrap().len() <= EVENTS, "{kept}");
    }

    #[test]
    fn the_log_of_an_earlier_version_is_sorted_once() {
        let folder = tempfile::tempdir().unwrap();
        let lines = |range: std::ops::Range<i32>| {
            range
                .map(|i| serde_json::to_string(&event(if i % 2 == 0 { "a" } else { "b" }, f64::from(i))).unwrap() + "\n")
                .collect::<String>()
        };
        fs::write(folder.path().join(OLDER), lines(0..10)).unwrap();
        fs::write(folder.path().join(AUDIT), lines(10..15)).unwrap();
        for _ in 0..2 {
            let files = Files::open(folder.path()).unwrap();
            let times: Vec<f64> = files.history("a").unwrap().iter().map(|event| event.at).collect();
            assert_eq!(times, [0.0, 2.0, 4.0, 6.0, 8.0, 10.0, 12.0, 14.0]);
        }
    }

    #[test]
    fn long_names_fit_and_stay_apart() {
        let folder = tempfile::tempdir().unwrap();
        let files = Files::open(folder.path()).unwrap();
        let names = ["a", "b"].map(|last| format!("{}{last}", "n/".repeat(126)));
        for name in &names {
            files.audit(&event(name, 1.0)).unwrap();
            assert_eq!(files.history(name).unwrap().len(), 1);
            assert!(is_of(&stem(name), name));
        }
        assert_ne!(stem(&names[0]), stem(&names[1]));
    }
}
