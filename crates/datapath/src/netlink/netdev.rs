//! What the kernel says of XDP on each interface: the generic netlink family `netdev` (Linux 6.3, Documentation/netlink/specs/netdev.yaml).
//! Must not know which interfaces are served.

use super::socket::{connect, request};
use netlink_packet_core::{
    DecodeError, Emitable, ErrorContext, NLM_F_ACK, NLM_F_DUMP, NlasIterator, ParseableParametrized, parse_u32, parse_u64,
};
use netlink_packet_generic::{
    GenlFamily, GenlHeader, GenlMessage,
    ctrl::{
        GenlCtrl, GenlCtrlCmd,
        nlas::{GenlCtrlAttrs, McastGrpAttrs},
    },
};
use netlink_sys::protocols::NETLINK_GENERIC;
use std::{collections::HashMap, io};

const DEV_GET: u8 = 1;
const DEV_IFINDEX: u16 = 1;
const DEV_XDP_FEATURES: u16 = 3;
/// In the features: `NETDEV_XDP_ACT_NDO_XMIT`.
const NDO_XMIT: u64 = 4;
/// Multicast group of changes.
const CHANGES: &str = "mgmt";

/// An interface. As a request: all of them.
#[derive(Clone, Copy, Debug, Default)]
struct Device {
    ifindex: u32,
    xdp_features: u64,
}

impl GenlFamily for Device {
    fn family_name() -> &'static str {
        "netdev"
    }
    fn command(&self) -> u8 {
        DEV_GET
    }
    fn version(&self) -> u8 {
        1
    }
}

impl Emitable for Device {
    fn buffer_len(&self) -> usize {
        0
    }
    fn emit(&self, _: &mut [u8]) {}
}

impl ParseableParametrized<[u8], GenlHeader> for Device {
    fn parse_with_param(attributes: &[u8], _: GenlHeader) -> Result<Self, DecodeError> {
        let mut device = Self::default();
        for attribute in NlasIterator::new(attributes) {
            let attribute = attribute.context("an attribute of netdev")?;
            match attribute.kind() {
                DEV_IFINDEX => device.ifindex = parse_u32(attribute.value())?,
                DEV_XDP_FEATURES => device.xdp_features = parse_u64(attribute.value())?,
                _ => {}
            }
        }
        Ok(device)
    }
}

/// Numbers that the kernel gave to the family and to its group of changes; `None` before Linux 6.3.
fn family() -> io::Result<Option<(u16, Option<u32>)>> {
    let question = GenlCtrl { cmd: GenlCtrlCmd::GetFamily, nlas: vec![GenlCtrlAttrs::FamilyName(Device::family_name().into())] };
    let (mut id, mut group) = (None, None);
    let asked = request(&connect(NETLINK_GENERIC)?, GenlMessage::from_payload(question), NLM_F_ACK, |answer| {
        for attribute in answer.payload.nlas {
            match attribute {
                GenlCtrlAttrs::FamilyId(number) => id = Some(number),
                GenlCtrlAttrs::McastGroups(groups) => group = groups.iter().find_map(|group| group_of_changes(group)),
                _ => {}
            }
        }
    });
    match asked {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        asked => asked.map(|()| id.map(|id| (id, group))),
    }
}

fn group_of_changes(attributes: &[McastGrpAttrs]) -> Option<u32> {
    let named = attributes.iter().any(|attribute| matches!(attribute, McastGrpAttrs::Name(name) if name == CHANGES));
    attributes.iter().find_map(|attribute| match attribute {
        McastGrpAttrs::Id(id) if named => Some(*id),
        _ => None,
    })
}

/// The multicast group (of `NETLINK_GENERIC`) that tells of changes, where there is one.
pub fn changes() -> io::Result<Option<u32>> {
    Ok(family()?.and_then(|(_, group)| group))
}

/// By index, whether other interfaces' XDP programs can transmit on an interface now; `None` when this kernel does not tell. It changes: some
/// drivers need an XDP program on the interface itself, a veth one on its other end, or GRO there.
pub fn transmitters() -> io::Result<Option<HashMap<u32, bool>>> {
    let Some((id, _)) = family()? else { return Ok(None) };
    let mut found = HashMap::new();
    let mut question = GenlMessage::from_payload(Device::default());
    question.set_resolved_family_id(id);
    request(&connect(NETLINK_GENERIC)?, question, NLM_F_DUMP, |answer| {
        found.insert(answer.payload.ifindex, answer.payload.xdp_features & NDO_XMIT != 0);
    })?;
    Ok(Some(found))
}
