//! Services of the userspace tier as the kernel has them: one version with one backend, which is this node. Their connections take the way of
//! `mode: tcp` to a private address, where the tier listens; it decides by the record that `mode: http` would have, with the same ids. What people see
//! is the policy's versions; this one has a name that no policy can give.

use super::{Ids, Key, OutOfIds, backend_key, identity_kind, row, version_key};
use splitter_common::{
    abi::{self, MAX_VERSIONS, service_mode, snat, split_by},
    decide,
};
use splitter_policy::model::{self, BackendState, Mode};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Where the tier listens, on the loopback interface. Link-local and unique local: no packet from elsewhere is for them but those that the kernel
/// programs have translated.
pub const ADDRESSES: [SocketAddr; 2] = [
    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(169, 254, 77, 77)), PORT),
    SocketAddr::new(IpAddr::V6(Ipv6Addr::new(0xfd53, 0x706c, 0x6974, 0, 0, 0, 0, 1)), PORT),
];
const PORT: u16 = 15_443;

/// No version can be called so.
const NAME: &str = "";

fn backend(service: &model::Service) -> model::Backend {
    let v4 = service.frontends.first().is_none_or(|frontend| frontend.address.is_ipv4());
    model::Backend { address: ADDRESSES[usize::from(!v4)], state: BackendState::Ready }
}

fn backend_of(service: &model::Service) -> Key {
    backend_key(&service.name, NAME, backend(service).address, "tcp")
}

/// Keys in `IDS` beside those of the policy's objects.
pub(super) fn keys(service: &model::Service) -> Vec<(u32, Key)> {
    if service.mode != Mode::Https {
        return Vec::new();
    }
    vec![(identity_kind::VERSION, version_key(&service.name, NAME)), (identity_kind::BACKEND, backend_of(service))]
}

/// The record; the node's row is added to `backends`.
///
/// # Errors
/// When the maps have no number left.
pub(super) fn record(
    service: &model::Service,
    id: u32,
    ids: &mut Ids,
    backends: &mut Vec<(u32, abi::Backend)>,
) -> Result<abi::Service, OutOfIds> {
    let version = ids.id(identity_kind::VERSION, version_key(&service.name, NAME))?;
    let number = ids.id(identity_kind::BACKEND, backend_of(service))?;
    backends.push((number, row(&backend(service), version, id)));
    let mut record = abi::Service {
        salt: decide::salt(service.name.as_bytes()),
        split_by: split_by::CONNECTION,
        // The tier has to see the client's address.
        snat: snat::NEVER,
        version_count: 1,
        mode: service_mode::L4,
        ..abi::Service::default()
    };
    let mut only = [0; MAX_VERSIONS];
    only[0] = 1;
    super::set_weights(&mut record, &only[..1]);
    let slot = &mut record.versions[0];
    (slot.version, slot.size, slot.table, slot.ready) = (version, 1, number, 1);
    Ok(record)
}
