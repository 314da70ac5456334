//! What was applied last: services with their images, and whom each backend belongs to. Cheap to clone, so that whoever reads it need not hold
//! up the one who changes it. Written only by the reconciler, after the kernel accepted.

use crate::plan::ServiceImage;
use splitter_common::abi::backend_state;
use splitter_policy::model;
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

/// Bits by number.
#[derive(Clone, Debug, Default)]
pub struct Bits(Vec<u64>);

impl Bits {
    pub fn set(&mut self, number: u32) {
        let word = number as usize / 64;
        if self.0.len() <= word {
            self.0.resize(word + 1, 0);
        }
        self.0[word] |= 1 << (number % 64);
    }

    pub fn clear(&mut self, number: u32) {
        if let Some(word) = self.0.get_mut(number as usize / 64) {
            *word &= !(1 << (number % 64));
        }
    }

    pub fn has(&self, number: u32) -> bool {
        self.0.get(number as usize / 64).is_some_and(|word| word >> (number % 64) & 1 != 0)
    }
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct Applied {
    services: HashMap<Arc<str>, Arc<Planned>>,
    /// Service and version by backend id.
    owners: Arc<Vec<(u32, u32)>>,
    /// Backends that keep their flows.
    live: Bits,
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

    /// Backends that are not down.
    pub fn live(&self) -> &Bits {
        &self.live
    }

    /// A view with one service in another shape, for questions of the kind "what if".
    pub fn with(&self, planned: Planned) -> Self {
        let name = planned.model.name.as_str().into();
        Self { services: HashMap::from([(name, Arc::new(planned))]), owners: self.owners.clone(), live: Bits::default() }
    }

    pub(super) fn service_mut(&mut self, name: &str) -> Option<&mut Planned> {
        self.services.get_mut(name).map(Arc::make_mut)
    }

    pub(super) fn insert(&mut self, planned: impl IntoIterator<Item = Planned>) {
        let owners = Arc::make_mut(&mut self.owners);
        for planned in planned {
            let name = planned.model.name.as_str().into();
            let planned = Arc::new(planned);
            if let Some(old) = self.services.insert(name, planned.clone()) {
                old.image.backends.iter().for_each(|(id, _)| self.live.clear(*id));
            }
            for (id, row) in &planned.image.backends {
                if row.state != backend_state::DOWN {
                    self.live.set(*id);
                }
                let id = *id as usize;
                if owners.len() <= id {
                    owners.resize(id + 1, (0, 0));
                }
                owners[id] = (row.service, row.version);
            }
        }
    }

    pub(super) fn remove(&mut self, name: &str) {
        if let Some(old) = self.services.remove(name) {
            old.image.backends.iter().for_each(|(id, _)| self.live.clear(*id));
        }
    }

    pub(super) fn disown(&mut self, backend: u32) {
        if let Some(owner) = Arc::make_mut(&mut self.owners).get_mut(backend as usize) {
            *owner = (0, 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_are_set_and_cleared() {
        let mut bits = Bits::default();
        bits.clear(1_000);
        [0, 63, 64, 700].into_iter().for_each(|number| bits.set(number));
        bits.clear(64);
        assert_eq!((0..1_000).filter(|number| bits.has(*number)).collect::<Vec<_>>(), [0, 63, 700]);
    }
}
