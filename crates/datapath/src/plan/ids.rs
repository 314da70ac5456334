//! Numbers that the kernel knows objects by, and who has which. A number stays with its object across restarts (the pinned map `IDS`
//! remembers it) and is given to another only after the flows of the old owner were swept.

use splitter_common::{
    abi::{Identity, MAX_BACKENDS, identity_kind},
    decide::salt,
};
use std::{
    collections::HashMap,
    hash::{BuildHasherDefault, Hasher},
    io::Write,
    net::SocketAddr,
};
use thiserror::Error;

/// Key of `IDS`: 128 bits of hash of an object's path.
pub type Key = [u8; 16];

/// `path` begins with two bytes of room.
fn key(mut path: Vec<u8>) -> Key {
    // Different prefixes: a collision of one hash says nothing about the other.
    let mut half = |mark: u8| {
        path[0] = mark;
        salt(&path).to_le_bytes()
    };
    let mut key = [0; 16];
    key[..8].copy_from_slice(&half(1));
    key[8..].copy_from_slice(&half(2));
    key
}

/// Words with zeros between them, behind the room that [`key`] wants.
fn path(words: &[&str]) -> Vec<u8> {
    let mut path = Vec::with_capacity(128);
    path.extend([0; 2]);
    for (index, word) in words.iter().enumerate() {
        if index > 0 {
            path.push(0);
        }
        path.extend(word.as_bytes());
    }
    path
}

/// Keys are hashes already.
#[derive(Clone, Copy, Debug, Default)]
pub struct FirstHalf(u64);

impl Hasher for FirstHalf {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        if let Some(half) = bytes.first_chunk() {
            self.0 = u64::from_le_bytes(*half);
        }
    }
    /// The length of a key, which is always the same.
    fn write_usize(&mut self, _length: usize) {}
}

pub fn service_key(service: &str) -> Key {
    key(path(&["service", service]))
}

pub fn version_key(service: &str, version: &str) -> Key {
    key(path(&["version", service, version]))
}

/// `protocol`: `tcp` or `udp`. IPv4 addresses count as their mapped form.
pub fn backend_key(service: &str, version: &str, address: SocketAddr, protocol: &str) -> Key {
    let ip = match address.ip() {
        std::net::IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        std::net::IpAddr::V6(v6) => v6,
    };
    let mut path = path(&["backend", service, version, ""]);
    // Writing to a vector cannot fail.
    let _ = write!(path, "[{ip}]:{}\0{protocol}", address.port());
    key(path)
}

/// No number is left of a kind.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "the policy needs more {what} than the maps hold ({limit}): make it smaller, or run `splitter detach` and start the agent again, which makes larger maps (live flows and counters are lost)"
)]
pub struct OutOfIds {
    pub what: &'static str,
    pub limit: u32,
}

#[derive(Clone, Debug, Default)]
struct Numbers {
    /// Smallest never given.
    next: u32,
    free: Vec<u32>,
    /// Exclusive.
    limit: u32,
}

/// The allocator. Id 0 is never given.
#[derive(Clone, Debug)]
pub struct Ids {
    map: HashMap<Key, Identity, BuildHasherDefault<FirstHalf>>,
    numbers: [Numbers; 3],
    fresh: Vec<(Key, Identity)>,
}

/// Of a kind of object, below 3.
pub fn index(kind: u32) -> usize {
    match kind {
        identity_kind::SERVICE => 0,
        identity_kind::VERSION => 1,
        _ => 2,
    }
}

impl Ids {
    /// `versions` and `backends`: sizes of `COUNTERS` and `BACKENDS`. `services`: numbers of services that some table still names.
    pub fn new(versions: u32, backends: u32, known: impl IntoIterator<Item = (Key, Identity)>, services: &[u32]) -> Self {
        let limits = [u32::MAX, versions, backends.min(MAX_BACKENDS)];
        let map: HashMap<Key, Identity, _> = known.into_iter().collect();
        let mut used: [Vec<u32>; 3] = [services.to_vec(), Vec::new(), Vec::new()];
        for identity in map.values() {
            used[index(identity.kind)].push(identity.id);
        }
        let numbers = std::array::from_fn(|i| {
            used[i].sort_unstable();
            used[i].dedup();
            let next = used[i].last().map_or(1, |last| last + 1);
            // Gaps were freed after a sweep: only then does an entry leave `IDS`.
            let mut free = Vec::new();
            let mut expected = 1;
            for id in &used[i] {
                free.extend(expected..*id);
                expected = id + 1;
            }
            free.reverse();
            Numbers { next, free, limit: limits[i] }
        });
        Self { map, numbers, fresh: Vec::new() }
    }

    /// The object's number, a new one at its first call.
    pub fn id(&mut self, kind: u32, key: Key) -> Result<u32, OutOfIds> {
        match self.map.get(&key) {
            Some(identity) => Ok(identity.id),
            None => self.renew(kind, key).map(|(id, _)| id),
        }
    }

    /// Gives an object a new number; returns it and the old one, which is not free before [`Ids::free_number`].
    pub fn renew(&mut self, kind: u32, key: Key) -> Result<(u32, Option<u32>), OutOfIds> {
        let numbers = &mut self.numbers[index(kind)];
        let id = match numbers.free.pop() {
            Some(id) => id,
            None if numbers.next < numbers.limit => {
                numbers.next += 1;
                numbers.next - 1
            }
            None => return Err(self.out_of(index(kind))),
        };
        let identity = Identity { kind, id };
        self.fresh.push((key, identity));
        Ok((id, self.map.insert(key, identity).map(|old| old.id)))
    }

    /// Whether so many new numbers can be given, by [`index`].
    pub fn room_for(&self, wanted: [usize; 3]) -> Result<(), OutOfIds> {
        let left = |numbers: &Numbers| numbers.free.len() + numbers.limit.saturating_sub(numbers.next) as usize;
        let full = wanted.iter().zip(&self.numbers).position(|(wanted, numbers)| *wanted > left(numbers));
        full.map_or(Ok(()), |index| Err(self.out_of(index)))
    }

    fn out_of(&self, index: usize) -> OutOfIds {
        OutOfIds { what: ["services", "versions", "backends"][index], limit: self.numbers[index].limit.saturating_sub(1) }
    }

    pub fn get(&self, key: &Key) -> Option<Identity> {
        self.map.get(key).copied()
    }

    pub fn iter(&self) -> impl Iterator<Item = (&Key, &Identity)> {
        self.map.iter()
    }

    /// What was given since the last call, to be written to `IDS`.
    pub fn take_fresh(&mut self) -> Vec<(Key, Identity)> {
        std::mem::take(&mut self.fresh)
    }

    /// Forgets an object, after its entry left `IDS` and its flows were swept.
    pub fn free(&mut self, key: &Key) {
        if let Some(identity) = self.map.remove(key) {
            self.free_number(identity.kind, identity.id);
        }
    }

    /// Frees a number that [`Ids::renew`] replaced.
    pub fn free_number(&mut self, kind: u32, id: u32) {
        self.numbers[index(kind)].free.push(id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use identity_kind::*;

    #[test]
    fn keys_are_golden() {
        // IDS outlives the binary: a changed key would give every object a new number.
        let hex = |key: Key| key.iter().map(|b| format!("{b:02x}")).collect::<String>();
        assert_eq!(hex(service_key("checkout")), "345f1b445869bf81e917ee40828a8b2f");
        assert_eq!(hex(backend_key("checkout", "v2", "10.2.1.2:8080".parse().unwrap(), "tcp")), "8a20cd13759fe6e7703464a41d87ad3d");
        assert_eq!(
            backend_key("s", "v", "10.2.1.2:8080".parse().unwrap(), "tcp"),
            backend_key("s", "v", "[::ffff:10.2.1.2]:8080".parse().unwrap(), "tcp")
        );
    }

    #[test]
    fn numbers_stay_and_are_not_reused_before_they_are_freed() {
        let mut ids = Ids::new(4, 4, [], &[]);
        let (a, b) = (version_key("s", "a"), version_key("s", "b"));
        assert_eq!(ids.id(VERSION, a), Ok(1));
        assert_eq!(ids.id(VERSION, b), Ok(2));
        assert_eq!(ids.id(VERSION, a), Ok(1));
        assert_eq!(ids.id(BACKEND, backend_key("s", "a", "[::1]:1".parse().unwrap(), "tcp")), Ok(1));
        let written = ids.take_fresh();
        assert_eq!(written.len(), 3);
        let mut again = Ids::new(4, 4, written, &[]);
        assert_eq!(again.id(VERSION, b), Ok(2));
        assert_eq!(again.id(VERSION, version_key("s", "c")), Ok(3));
        assert_eq!(again.id(VERSION, version_key("s", "d")), Err(OutOfIds { what: "versions", limit: 3 }));
        assert_eq!(again.room_for([1_000, 1, 2]), Err(OutOfIds { what: "versions", limit: 3 }));
        again.free(&a);
        assert_eq!(again.room_for([1_000, 1, 2]), Ok(()));
        assert_eq!(again.room_for([0, 0, 3]), Err(OutOfIds { what: "backends", limit: 3 }));
        assert_eq!(again.id(VERSION, version_key("s", "d")), Ok(1));
    }

    #[test]
    fn gaps_are_free_after_a_restart() {
        let mut ids = Ids::new(10, 10, [(service_key("x"), Identity { kind: SERVICE, id: 3 })], &[1]);
        assert_eq!(ids.id(SERVICE, service_key("z")), Ok(2), "1 is still named by a table");
        assert_eq!(ids.id(SERVICE, service_key("w")), Ok(4));
    }
}
