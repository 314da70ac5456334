//! The decision of `splitter_common::decide` over the maps.

use crate::{
    bytes::{Ref, opaque},
    env::{Env, KernelLoop},
    field,
};
use splitter_common::{
    abi::*,
    decide::{self, Choice, Facts, Lookups, Search},
};

/// Decides for a service of layer 4. `avoid`: a backend that just failed this client, or 0. 0: nobody gets it, and `out.none` says why.
#[inline(never)]
pub fn select<E: Env>(env: &E, service: u32, facts: &Facts, avoid: u32, out: &mut Choice) -> u32 {
    *out = Choice::nobody(service, avoid);
    let Some(service) = env.service(service) else { return 0 };
    service.with(|service| decide::select(Look(env), service, facts, None, out)) as u32
}

/// What the decision looks up, in the maps.
pub struct Look<'a, E>(pub &'a E);

impl<E> Clone for Look<'_, E> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<E> Copy for Look<'_, E> {}

impl<E: Env> Lookups for Look<'_, E> {
    type Loop = KernelLoop;

    #[inline(always)]
    fn rule(self, service: u32, client: &Addr) -> Option<u32> {
        self.0.rule(service, client)
    }
    #[inline(always)]
    fn backend(self, id: u32) -> Option<(u32, u8)> {
        self.0.backend(id).map(|backend: Ref<Backend>| (field!(backend.version), field!(backend.state)))
    }
    #[inline(always)]
    fn maglev(self, chunk: &MaglevKey, at: u32) -> Option<u32> {
        let chunk = self.0.maglev(chunk)?;
        let at = opaque(at) as usize & (MAGLEV_CHUNK - 1);
        Some(chunk.with(|chunk| chunk.backends[at]))
    }
    #[inline(always)]
    fn is_suspect(self, backend: u32) -> bool {
        is_suspect(self.0, backend)
    }
    #[inline(always)]
    fn with_search<R>(self, run: impl FnOnce(&mut Search) -> R) -> Option<R> {
        let search = self.0.search()?;
        // SAFETY: a Ref points to live memory of this CPU, which has one user at a time.
        Some(run(unsafe { &mut *search.as_ptr() }))
    }
}

/// Whether a backend is suspect now.
#[inline(always)]
pub fn is_suspect<E: Env>(env: &E, backend: u32) -> bool {
    env.suspect(backend).is_some_and(|until| is_suspected(until, env.ticks()))
}
