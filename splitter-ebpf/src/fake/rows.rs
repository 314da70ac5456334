//! Rows as an agent writes them: for whoever holds what it planned against the pipeline.

use super::Maps;
use splitter_common::{
    abi::*,
    filter::{self, Role},
};

impl Maps {
    /// A service with its frontends.
    pub fn put_service(&self, id: u32, record: Service, frontends: &[FrontendKey]) {
        for frontend in frontends {
            self.frontends.put(frontend, id);
            self.vips.put(&frontend.addr, 0);
            self.know(record.mode, Role::Frontend, &frontend.addr, frontend.port, frontend.proto);
            self.know(record.mode, Role::Vip, &frontend.addr, [0; 2], 0);
        }
        for slot in &record.versions[..record.version_count as usize] {
            self.counters.put(&slot.version, VersionCounters::default());
        }
        self.services.put(&id, record);
    }

    /// A backend of a service of this mode.
    pub fn put_backend(&self, id: u32, row: Backend, mode: u8, proto: u8) {
        self.backends.put(&id, row);
        self.know(mode, Role::Backend, &row.addr, row.port, proto);
    }

    pub fn put_maglev(&self, key: MaglevKey, chunk: MaglevChunk) {
        self.maglev.put(&key, chunk);
    }

    /// A rule of layer 4. `index`: see [`RuleKey`].
    pub fn put_rule(&self, key: RuleKey, index: u32) {
        self.rules.borrow_mut().push((u32::from_be_bytes(key.service), key.addr, key.prefix_len - RULE_PREFIX_BASE, index));
    }

    pub fn put_http_rules(&self, service: u32, rules: &HttpRules) {
        self.http_rules.put(&service, *rules);
    }

    /// A backend gets no new flow for this many ticks while others can.
    pub fn put_suspect(&self, backend: u32, ticks: u32) {
        let now = (self.ns.get() / 4_000_000) as u32;
        self.suspects.put(&backend, now.wrapping_add(ticks));
    }

    fn know(&self, mode: u8, role: Role, addr: &Addr, port: [u8; 2], proto: u8) {
        let (word, bits) = filter::bits_of(role, addr, port, proto);
        let http = if mode == service_mode::HTTP && role != Role::Vip { filter::http(bits) } else { 0 };
        *self.filter.borrow_mut().entry(word).or_default() |= bits | http;
    }
}
