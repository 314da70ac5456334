//! What was applied last: services with their images, and whom each backend belongs to. Cheap to clone, so that whoever reads it need not hold
//! up the one who changes it. Written only by the reconciler, after the kernel accepted.

use crate::{model, plan::ServiceImage};
use std::{collections::HashMap, sync::Arc};

/// A service as it was applied.
#[derive(Clone, Debug)]
pub struct Planned {
    pub model: Arc<model::Service>,
    pub image: ServiceImage,
}

impl Planned {
    pub fn weights(&self) -> Vec<u32> {
        self.model.versions.iter().map(|version| version.weight).collect()
    }
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct Applied {
    services: HashMap<Arc<str>, Arc<Planned>>,
    /// Service and version by backend id.
    owners: Arc<Vec<(u32, u32)>>,
}

impl Applied {
    pub fn services(&self) -> impl ExactSizeIterator<Item = &Planned> {
        self.services.values().map(AsRef::as_ref)
    }

    pub fn service(&self, name: &str) -> Option<&Planned> {
        self.services.get(name).map(AsRef::as_ref)
    }

    /// Service and version number of a backend; zeros when it is not known.
    pub fn owner(&self, backend: u32) -> (u32, u32) {
        self.owners.get(backend as usize).copied().unwrap_or_default()
    }

    /// A view with one service in another shape, for questions of the kind "what if".
    pub fn with(&self, planned: Planned) -> Self {
        let name = planned.model.name.as_str().into();
        Self { services: HashMap::from([(name, Arc::new(planned))]), owners: self.owners.clone() }
    }

    pub(super) fn service_mut(&mut self, name: &str) -> Option<&mut Planned> {
        self.services.get_mut(name).map(Arc::make_mut)
    }

    pub(super) fn insert(&mut self, planned: impl IntoIterator<Item = Planned>) {
        let owners = Arc::make_mut(&mut self.owners);
        for planned in planned {
            for (id, row) in &planned.image.backends {
                let id = *id as usize;
                if owners.len() <= id {
                    owners.resize(id + 1, (0, 0));
                }
                owners[id] = (row.service, row.version);
            }
            self.services.insert(planned.model.name.as_str().into(), Arc::new(planned));
        }
    }

    pub(super) fn remove(&mut self, name: &str) {
        self.services.remove(name);
    }

    pub(super) fn disown(&mut self, backend: u32) {
        if let Some(owner) = Arc::make_mut(&mut self.owners).get_mut(backend as usize) {
            *owner = (0, 0);
        }
    }
}
