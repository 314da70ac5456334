//! Rollouts on disk: one file each, kept before anything is acted on, and the audit log.

use super::super::store::{self, StoreError};
use crate::{
    admin::{percent_decode, percent_encode},
    observed::RolloutEvent,
    rollout::State,
};
use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufRead, BufReader, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

const FOLDER: &str = "rollouts";
const AUDIT: &str = "audit.jsonl";
/// The log is moved aside beyond this size, once.
const LARGEST: u64 = 64 << 20;
/// How far back the history looks, bytes.
const TAIL: u64 = 4 << 20;
/// Most events of one answer.
const EVENTS: usize = 200;

pub struct Files {
    folder: PathBuf,
    audit: PathBuf,
}

impl Files {
    /// Below the state directory, which exists.
    pub fn open(state: &Path) -> Result<Self, StoreError> {
        let folder = state.join(FOLDER);
        fs::create_dir_all(&folder).map_err(|source| StoreError::new("use the state directory", &folder, source))?;
        Ok(Self { folder, audit: state.join(AUDIT) })
    }

    /// Every rollout that was kept; a file that cannot be read is told and left alone.
    pub fn load(&self) -> Vec<State> {
        let Ok(entries) = fs::read_dir(&self.folder) else { return Vec::new() };
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let mut states = Vec::new();
        for name in names.filter(|name| name.ends_with(".json") && !name.starts_with('.')) {
            match store::read::<State>(&self.folder.join(&name)) {
                Ok(Some(state)) if percent_decode(name.trim_end_matches(".json")).as_deref() == Some(&state.service) => states.push(state),
                Ok(_) => tracing::error!(file = name, "this rollout's file has another's name; it is left alone"),
                Err(error) => tracing::error!(%error, "a rollout cannot be restored; its weights stay as they are"),
            }
        }
        states
    }

    pub fn save(&self, state: &State) -> Result<(), StoreError> {
        store::write(&self.folder, &format!("{}.json", percent_encode(&state.service)), state)
    }

    pub fn remove(&self, service: &str) {
        let path = self.folder.join(format!("{}.json", percent_encode(service)));
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => tracing::error!(%error, path = %path.display(), "cannot remove"),
            _ => {}
        }
    }

    /// Adds one line.
    pub fn audit(&self, event: &RolloutEvent) -> Result<(), StoreError> {
        let failed = |source| StoreError::new("write", &self.audit, source);
        if fs::metadata(&self.audit).is_ok_and(|found| found.len() > LARGEST) {
            fs::rename(&self.audit, self.audit.with_extension("jsonl.1")).map_err(failed)?;
        }
        let mut line = serde_json::to_vec(event).map_err(|error| failed(error.into()))?;
        line.push(b'\n');
        // One write: lines of two writers do not mix.
        OpenOptions::new().create(true).append(true).open(&self.audit).and_then(|mut file| file.write_all(&line)).map_err(failed)
    }

    /// The last events of a service, oldest first.
    pub fn history(&self, service: &str) -> Result<Vec<RolloutEvent>, StoreError> {
        let failed = |source| StoreError::new("read", &self.audit, source);
        let mut file = match File::open(&self.audit) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(failed(error)),
        };
        let begin = file.metadata().map_err(failed)?.len().saturating_sub(TAIL);
        file.seek(SeekFrom::Start(begin)).map_err(failed)?;
        let mut events: Vec<RolloutEvent> = BufReader::new(file)
            .split(b'\n')
            .map_while(Result::ok)
            // The first line may be cut, and a line may be of another version of this program.
            .filter_map(|line| serde_json::from_slice::<RolloutEvent>(&line).ok())
            .filter(|event| event.service == service)
            .collect();
        events.drain(..events.len().saturating_sub(EVENTS));
        Ok(events)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_tells_one_service_and_survives_garbage() {
        let folder = tempfile::tempdir().unwrap();
        let files = Files::open(folder.path()).unwrap();
        assert!(files.history("shop/web").unwrap().is_empty());
        for i in 0..300 {
            let service = if i % 2 == 0 { "shop/web" } else { "other" };
            files.audit(&RolloutEvent { service: service.into(), at: f64::from(i), ..RolloutEvent::default() }).unwrap();
        }
        fs::write(folder.path().join("x"), "").unwrap();
        OpenOptions::new().append(true).open(folder.path().join(AUDIT)).unwrap().write_all(b"{half a line").unwrap();
        let history = files.history("shop/web").unwrap();
        assert_eq!((history.len(), history[149].at), (150, 298.0));
        fs::write(folder.path().join(FOLDER).join("bad.json"), "{").unwrap();
        assert!(files.load().is_empty());
    }
}
