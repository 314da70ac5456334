//! What Splitter reads from outsiders, fed with whatever a fuzzer makes up. A target is a function over bytes that panics when a property does not
//! hold; what a target must hold stands at its module. `main.rs` puts libFuzzer around them, `cargo xtask fuzz` runs that, and the tests here
//! feed every target its seeds (`seeds/TARGET`) and what has broken it once (`cases/TARGET`), without an engine.
//!
//! | module | what it does |
//! |---|---|
//! | [`request`] | heads of requests, whole and in pieces, against `httparse` and the plainest reading of the rules |
//! | [`cookie`] | lines of cookies inside a sound head, against the same |
//! | [`response`] | heads of responses, whole and in pieces |
//! | [`chunks`] | chunked bodies in windows of any length, against a parser that reads them whole |
//! | [`packets`] | packets through the whole pipeline of the kernel programs, over maps in memory |
//! | [`policy`] | a YAML policy to its model and on to the maps' image |
//! | `heads` | what `request` and `cookie` share |
//! | `bytes` | a fuzzer's bytes, one after the other |
//! | [`admin`] | bytes on the admin socket |

pub mod admin;
pub mod chunks;
pub mod cookie;
pub mod packets;
pub mod policy;
pub mod request;
pub mod response;

mod bytes;
mod heads;

/// Something to feed.
#[derive(Clone, Copy)]
pub struct Target {
    /// As `cargo xtask fuzz` is told, and the folder of its seeds.
    pub name: &'static str,
    /// Panics when a property does not hold.
    pub run: fn(&[u8]),
}

impl Target {
    /// All of them.
    pub const ALL: &[Target] = &[
        Target { name: "request", run: request::run },
        Target { name: "cookie", run: cookie::run },
        Target { name: "response", run: response::run },
        Target { name: "chunks", run: chunks::run },
        Target { name: "packets", run: packets::run },
        Target { name: "policy", run: policy::run },
        Target { name: "admin", run: admin::run },
    ];
}

#[cfg(test)]
mod tests;
