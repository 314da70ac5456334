//! Which shares the kernel gives to a service's versions, read before anything is applied: what an earlier agent left. Changes nothing.

use crate::{
    IDS, SERVICES, TableError, Tables,
    plan::{service_key, version_key},
};
use splitter_common::abi::MAX_VERSIONS;
use splitter_policy::model;

/// Width of each version's interval, of 2^32, in the order of the model's versions; a version that the kernel does not know has 0. `None` when
/// the kernel does not know the service, or gives a share to a version that the model does not have: then the two cannot be compared.
pub fn running(tables: &impl Tables, service: &model::Service) -> Result<Option<Vec<u64>>, TableError> {
    let Some(identity) = IDS.get(tables, service_key(&service.name))? else { return Ok(None) };
    let Some(record) = SERVICES.get(tables, identity.id)? else { return Ok(None) };
    let mut numbers = Vec::with_capacity(service.versions.len());
    for version in &service.versions {
        numbers.push(IDS.get(tables, version_key(&service.name, &version.name))?.map(|identity| identity.id));
    }
    let (mut begin, mut widths) = (0, vec![0; numbers.len()]);
    for slot in &record.versions[..usize::from(record.version_count).min(MAX_VERSIONS)] {
        let width = slot.end.saturating_sub(begin);
        begin = begin.max(slot.end);
        match numbers.iter().position(|number| *number == Some(slot.version)) {
            Some(index) => widths[index] += width,
            None if width > 0 => return Ok(None),
            None => {}
        }
    }
    Ok(Some(widths))
}
