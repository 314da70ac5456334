//! The last good state on disk: the policy that the kernel runs, and what the command line and the clock added to it. Two files, because
//! the policy may be large and the other changes often. Written beside and renamed, so that a crash leaves the old or the new one.

use super::files;
use serde::{Deserialize, Serialize};
use splitter_datapath::reconcile::Services;
use splitter_policy::model::Service;
use std::{
    collections::BTreeMap,
    io::{self, BufReader},
    path::{Path, PathBuf},
    sync::{Arc, mpsc},
    thread::JoinHandle,
};
use thiserror::Error;

const POLICY: &str = "policy.json";
const RUNTIME: &str = "runtime.json";

/// Weights by version name.
pub type Weights = BTreeMap<String, u32>;

/// Weights that the command line set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Override {
    /// The policy's weights when it was made: when they change, the policy counts again.
    pub base: Weights,
    pub weights: Weights,
    /// Nobody set them now: the kernel ran them when an agent came that did not know why.
    #[serde(default)]
    pub kept: bool,
}

/// What is not in the policy. By service name.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Runtime {
    pub generation: u64,
    pub overrides: BTreeMap<String, Override>,
    /// When flows that belong elsewhere since a weight change are to be reset, Unix seconds.
    pub drains: BTreeMap<String, f64>,
    /// Connections of each version when the weights last changed.
    pub baselines: BTreeMap<String, BTreeMap<String, u64>>,
}

#[derive(Debug, Error)]
#[error("cannot {action} {}: {source}", path.display())]
pub struct StoreError {
    action: &'static str,
    path: PathBuf,
    source: io::Error,
}

impl StoreError {
    pub fn new(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self { action, path: path.into(), source }
    }

    /// The file, or a directory on the way to it, is not there.
    pub fn is_missing(&self) -> bool {
        self.source.kind() == io::ErrorKind::NotFound
    }
}

#[derive(Serialize)]
struct PolicyOut<'a> {
    services: Vec<&'a Service>,
}

/// See the module. Large policies are written by a thread of its own; the last one given wins.
pub struct Store {
    directory: PathBuf,
    policies: Option<mpsc::Sender<Services>>,
    writer: Option<JoinHandle<()>>,
}

impl Store {
    /// Makes the directory if need be.
    pub fn open(directory: &Path) -> Result<Self, StoreError> {
        let failed = |source| StoreError { action: "use the state directory", path: directory.into(), source };
        files::make_directory(directory).map_err(failed)?;
        let (sender, receiver) = mpsc::channel::<Services>();
        let place = directory.to_path_buf();
        let write = move || {
            while let Ok(mut services) = receiver.recv() {
                while let Ok(newer) = receiver.try_recv() {
                    services = newer;
                }
                let out = PolicyOut { services: services.iter().map(AsRef::as_ref).collect() };
                if let Err(error) = write(&place, POLICY, &out) {
                    tracing::error!(%error, "the last good policy is not on disk");
                }
            }
        };
        let writer = std::thread::Builder::new().name("splitter-store".into()).stack_size(128 << 10).spawn(write).map_err(failed)?;
        Ok(Self { directory: directory.into(), policies: Some(sender), writer: Some(writer) })
    }

    /// The last good policy; `None` without one.
    pub fn policy(&self) -> Result<Option<Services>, StoreError> {
        last_policy(&self.directory)
    }

    /// Whether an agent kept anything here before.
    pub fn has_runtime(&self) -> bool {
        self.directory.join(RUNTIME).symlink_metadata().is_ok()
    }

    pub fn runtime(&self) -> Result<Runtime, StoreError> {
        Ok(read(&self.directory, RUNTIME)?.unwrap_or_default())
    }

    /// Writes it some time soon; [`Store::close`] waits.
    pub fn save_policy(&self, services: Services) {
        if let Some(sender) = &self.policies {
            // The writer ends only when this store is closed.
            let _ = sender.send(services);
        }
    }

    /// Writes it now.
    pub fn save_runtime(&self, runtime: &Runtime) -> Result<(), StoreError> {
        write(&self.directory, RUNTIME, runtime)
    }

    /// Waits for what is being written.
    pub fn close(&mut self) {
        self.policies = None;
        if let Some(writer) = self.writer.take() {
            let _ = writer.join();
        }
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.close();
    }
}

/// The last good policy that an agent kept in this directory; `None` without one.
pub fn last_policy(directory: &Path) -> Result<Option<Services>, StoreError> {
    #[derive(Deserialize)]
    struct PolicyIn {
        services: Vec<Arc<Service>>,
    }
    let policy: Option<PolicyIn> = read(directory, POLICY)?;
    Ok(policy.map(|policy| Arc::new(policy.services)))
}

/// `None` when there is no such file.
pub fn read<T: for<'a> Deserialize<'a>>(directory: &Path, name: &str) -> Result<Option<T>, StoreError> {
    let failed = |source| StoreError { action: "read", path: directory.join(name), source };
    match files::open(directory, name) {
        Ok(file) => serde_json::from_reader(BufReader::new(file)).map(Some).map_err(|e| failed(e.into())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(failed(e)),
    }
}

/// Whole or not at all.
pub fn write(directory: &Path, name: &str, value: &impl Serialize) -> Result<(), StoreError> {
    files::write(directory, name, |out| Ok(serde_json::to_writer(out, value)?)).map_err(|source| StoreError {
        action: "write",
        path: directory.join(name),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_saved_is_read_and_garbage_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let place = directory.path().join("deep/state");
        let mut store = Store::open(&place).unwrap();
        assert!(store.policy().unwrap().is_none());
        assert_eq!(store.runtime().unwrap(), Runtime::default());
        let mut runtime = Runtime { generation: 7, ..Runtime::default() };
        runtime.drains.insert("checkout".into(), 12.5);
        store.save_runtime(&runtime).unwrap();
        store.save_policy(Services::default());
        store.close();
        let store = Store::open(&place).unwrap();
        assert_eq!(store.runtime().unwrap(), runtime);
        assert_eq!(store.policy().unwrap(), Some(Services::default()));
        std::fs::write(place.join(RUNTIME), "{").unwrap();
        let error = store.runtime().unwrap_err().to_string();
        assert!(error.contains("runtime.json"), "{error}");
    }
}
