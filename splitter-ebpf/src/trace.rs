//! Events for `splitter trace`, and notes for `--debug-programs`: what was decided, and what became of it. One word is read where something is decided,
//! and nowhere else; the rest happens only while somebody looks. An event is put together in memory of the CPU, so that the stack holds none.

use crate::{
    bytes::{Ref, compare_exchange, opaque},
    env::{Env, Note, Tables},
    field,
    lb::facts_of,
    network::Network,
    packet::{destination_port, source_port, tcp},
    place,
    state::Placed,
    verdict::Verdict,
};
use splitter_common::{abi::*, barrier::load, http::verdict};

/// Whether somebody looks; [`send`] asks until when.
#[inline(always)]
fn on<E: Env>(env: &E) -> bool {
    env.trace().is_some_and(|trace| field!(trace.until) != 0)
}

/// A connection or a flow of datagrams, which `scratch.facts` describes, was given to the backend of `scratch.choice`, or to nobody. `flags`: of TCP,
/// as they stand in the packet.
#[inline(always)]
pub fn decided<F: Network, E: Env + Tables<F>>(env: &E, flags: u8) {
    if env.speaks() {
        noted::<F, E>(env, opaque(flags as u32));
    }
    if on(env) {
        connection::<F, E>(env, opaque(flags as u32));
    }
}

#[inline(never)]
fn noted<F: Network, E: Env + Tables<F>>(env: &E, flags: u32) -> u32 {
    let Some(scratch) = Tables::<F>::scratch(env) else { return 0 };
    let (facts, choice) = (place!(scratch.facts), place!(scratch.choice));
    if choice.backend == 0 {
        env.note(Note::Unserved, choice.service, choice.none as u32);
    } else if facts.proto == TCP && flags & tcp::SYN as u32 == 0 {
        env.note(Note::TakenUp, choice.service, choice.backend);
    } else {
        env.note(Note::Given, choice.service, choice.backend);
    }
    0
}

#[inline(never)]
fn connection<F: Network, E: Env + Tables<F>>(env: &E, flags: u32) -> u32 {
    let (Some(scratch), Some(cpu)) = (Tables::<F>::scratch(env), env.trace_cpu()) else { return 0 };
    let (facts, choice, event) = (place!(scratch.facts), place!(scratch.choice), place!(cpu.event));
    begin(event, trace_kind::DECIDED, choice.service);
    address(&mut event.client, &facts.client);
    address(&mut event.vip, &facts.vip);
    (event.client_port, event.vip_port, event.proto) = (facts.client_port, facts.vip_port, facts.proto);
    if facts.proto == TCP && flags & tcp::SYN as u32 == 0 {
        event.flags = trace_flag::RECOVERED;
    }
    (event.version, event.backend) = (choice.version, choice.backend);
    if choice.backend == 0 {
        event.reason = choice.none as u8;
    }
    send(env)
}

/// A request of the connection `scratch.client`, whose head lies in `scratch`, was `placed`: see `splice::request`.
#[inline(always)]
pub fn asked<F: Network, E: Env + Tables<F>>(env: &E, entry: Ref<Spliced<F>>, placed: Placed) {
    if env.speaks() {
        placing(env, entry, placed);
    }
    if on(env) {
        request(env, entry, placed);
    }
}

#[inline(never)]
fn placing<F: Network, E: Env + Tables<F>>(env: &E, entry: Ref<Spliced<F>>, placed: Placed) -> u32 {
    let Some(scratch) = Tables::<F>::scratch(env) else { return 0 };
    let service = field!(entry.service);
    match placed {
        Placed::Stay => env.note(Note::Kept, service, field!(entry.owner).backend()),
        Placed::Open => env.note(Note::Sent, service, place!(scratch.choice).backend),
        // The node's answer is noted.
        _ => {}
    }
    0
}

#[inline(never)]
fn request<F: Network, E: Env + Tables<F>>(env: &E, entry: Ref<Spliced<F>>, placed: Placed) -> u32 {
    let (Some(scratch), Some(cpu)) = (Tables::<F>::scratch(env), env.trace_cpu()) else { return 0 };
    let (head, choice, event) = (place!(scratch.request), place!(scratch.choice), place!(cpu.event));
    http(env, place!(scratch.client), entry, trace_kind::DECIDED);
    let owner = field!(entry.owner);
    let backend = match placed {
        Placed::Stay => owner.backend(),
        Placed::Open => choice.backend,
        _ => 0,
    };
    event.backend = backend;
    event.version = if placed == Placed::Nobody { choice.version } else { version_of(env, backend) };
    event.at = field!(entry.body_end).wrapping_sub(head.head_len).wrapping_sub(head.length as u32);
    event.ruled = field!(scratch.ruled);
    (event.facts, event.key) = (head.facts, head.key);
    let keyed = if head.keyed != 0 { trace_flag::KEYED } else { 0 };
    let pinned = backend != 0 && owner.is(splice_flag::PINNED);
    event.flags |= keyed | if pinned { trace_flag::PINNED } else { 0 };
    event.reason = match (placed, head.verdict) {
        (Placed::Nobody, _) => choice.none as u8,
        (Placed::Refused, _) => Reason::HeadRefused as u8,
        (Placed::TooLarge, _) => Reason::HeadTooLong as u8,
        _ if !pinned => NO_REASON,
        (_, verdict::COMPLETE) => Reason::PinnedPipeline as u8,
        (_, verdict::PIN) => Reason::PinnedRequest as u8,
        (Placed::Open, _) => Reason::HeadTooLong as u8,
        _ if event.ruled == BASELINE_RULED => Reason::HeadTooLong as u8,
        _ => Reason::PinnedHead as u8,
    };
    let read = field!(scratch.read);
    event.text_len = if read < TRACE_TEXT as u32 { read as u16 } else { TRACE_TEXT as u16 };
    env.copy_start(&mut event.text, place!(scratch.text));
    send(env)
}

/// The connection `key` stays with the leg in use from now on, whatever it asks.
#[inline(always)]
pub fn pinned<F: Network, E: Env + Tables<F>>(env: &E, key: &FlowKey<F>, entry: Ref<Spliced<F>>, reason: Reason) {
    if env.speaks() {
        env.note(Note::Pinned, field!(entry.service), reason as u32);
    }
    if on(env) {
        stays(env, key, entry, reason as u32);
    }
}

#[inline(never)]
fn stays<F: Network, E: Env + Tables<F>>(env: &E, key: &FlowKey<F>, entry: Ref<Spliced<F>>, reason: u32) -> u32 {
    let (Some(scratch), Some(cpu)) = (Tables::<F>::scratch(env), env.trace_cpu()) else { return 0 };
    let event = place!(cpu.event);
    http(env, key, entry, trace_kind::DECIDED);
    let opens = field!(entry.state) != splice_state::ESTABLISHED && field!(scratch.step) == Verdict::CONNECT;
    event.backend = if opens { place!(scratch.choice).backend } else { field!(entry.owner).backend() };
    event.version = version_of(env, event.backend);
    event.flags |= trace_flag::PINNED;
    event.reason = reason as u8;
    send(env)
}

/// The node answers a request of `scratch.client` itself, with this status; 0: by a reset.
#[inline(always)]
pub fn refused<F: Network, E: Env + Tables<F>>(env: &E, entry: Ref<Spliced<F>>, status: u32) {
    if env.speaks() {
        env.note(Note::Answered, field!(entry.service), status);
    }
    if on(env) {
        unanswered(env, entry, opaque(status));
    }
}

#[inline(never)]
fn unanswered<F: Network, E: Env + Tables<F>>(env: &E, entry: Ref<Spliced<F>>, status: u32) -> u32 {
    let (Some(scratch), Some(cpu)) = (Tables::<F>::scratch(env), env.trace_cpu()) else { return 0 };
    let event = place!(cpu.event);
    http(env, place!(scratch.client), entry, trace_kind::REFUSED);
    event.status = status as u16;
    // A head that is refused was decided for nobody.
    if status == Placed::Refused as u32 {
        event.reason = Reason::HeadRefused as u8;
    } else {
        (event.reason, event.version) = (Reason::Unavailable as u8, place!(scratch.choice).version);
    }
    send(env)
}

/// The head of a response has come. `spent`: nanoseconds since the backend was given the request.
#[inline(always)]
pub fn answered<F: Network, E: Env>(env: &E, leg: Ref<Leg<F>>, status: u32, spent: u64) {
    if env.speaks() {
        let backend = env.backend(field!(leg.owner).backend());
        env.note(Note::Responded, backend.map_or(0, |backend| field!(backend.service)), status);
    }
    if on(env) {
        response(env, leg, status, spent);
    }
}

#[inline(never)]
fn response<F: Network, E: Env>(env: &E, leg: Ref<Leg<F>>, status: u32, spent: u64) -> u32 {
    let Some(cpu) = env.trace_cpu() else { return 0 };
    let event = place!(cpu.event);
    let id = field!(leg.owner).backend();
    let Some(backend) = env.backend(id) else { return 0 };
    begin(event, trace_kind::ANSWERED, field!(backend.service));
    address(&mut event.client, &F::mapped(&field!(leg.dst)));
    address(&mut event.vip, &F::mapped(&field!(leg.src)));
    let ports = field!(leg.ports);
    (event.client_port, event.vip_port) = (u16::from_be(destination_port(ports)), u16::from_be(source_port(ports)));
    (event.proto, event.flags) = (TCP, trace_flag::HTTP);
    (event.backend, event.version) = (id, field!(backend.version));
    (event.status, event.spent) = (status as u16, spent);
    // Not a call more: responses are read deep down.
    hand_over(env)
}

/// What all events of http begin with.
#[inline(always)]
fn http<F: Network, E: Env + Tables<F>>(env: &E, key: &FlowKey<F>, entry: Ref<Spliced<F>>, kind: u8) {
    let (Some(scratch), Some(cpu)) = (Tables::<F>::scratch(env), env.trace_cpu()) else { return };
    let (facts, event) = (place!(scratch.facts), place!(cpu.event));
    begin(event, kind, field!(entry.service));
    facts_of(key, facts);
    address(&mut event.client, &facts.client);
    address(&mut event.vip, &facts.vip);
    (event.client_port, event.vip_port) = (facts.client_port, facts.vip_port);
    (event.proto, event.flags) = (TCP, trace_flag::HTTP);
}

#[inline(always)]
fn begin(event: &mut TraceEvent, kind: u8, service: u32) {
    (event.spent, event.facts, event.key) = (0, 0, 0);
    (event.service, event.version, event.backend) = (service, 0, 0);
    (event.at, event.ruled) = (0, u32::MAX);
    (event.kind, event.flags, event.reason) = (kind, 0, NO_REASON);
    (event.status, event.text_len) = (0, 0);
}

#[inline(always)]
fn address(to: &mut [u32; 4], from: &Addr) {
    let (to, from) = (to.as_mut_ptr().cast::<u64>(), from.as_ptr());
    // SAFETY: 16 bytes each, and an event's addresses lie at multiples of 8.
    unsafe {
        to.write(load::<0>(from).to_le());
        to.add(1).write(load::<8>(from).to_le());
    }
}

#[inline(always)]
fn version_of<E: Env>(env: &E, backend: u32) -> u32 {
    if backend == 0 { 0 } else { env.backend(backend).map_or(0, |backend| field!(backend.version)) }
}

#[inline(never)]
fn send<E: Env>(env: &E) -> u32 {
    hand_over(env)
}

/// What stands in [`Env::told`] for the connection of an event while its request was told and its answer was not; the slot is in the high bits.
#[inline(always)]
fn mark_of(event: &TraceEvent) -> u64 {
    // Odd, of the golden ratio. Whoever makes connections meet here hides their answers from who looks, and nothing else.
    const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
    let mut mark = (event.client_port as u64) << 16 | event.vip_port as u64;
    let mut i = 0;
    while i < 4 {
        mark = (mark ^ (event.client[i] as u64) << 32 ^ event.vip[i] as u64).wrapping_mul(STEP);
        mark ^= mark >> 29;
        i += 1;
    }
    mark | 1
}

/// Hands the event of this CPU to the agent, when somebody looks at such, and not too fast. The end of a request that was told is told too, however
/// fast it comes; that of another one is of no use.
#[inline(always)]
fn hand_over<E: Env>(env: &E) -> u32 {
    let (Some(trace), Some(cpu)) = (env.trace(), env.trace_cpu()) else { return 0 };
    let event = place!(cpu.event);
    let (now, until) = (env.now(), field!(trace.until));
    if now >= until {
        // An agent that is gone has left it on. One that lives may be putting it off now. SAFETY: a Ref points to a live map value.
        unsafe { compare_exchange(&raw mut (*trace.as_ptr()).until, until, 0) };
        return 0;
    }
    let mark = mark_of(event);
    let Some(told) = env.told((mark >> 48) as u32 & (TRACE_MARKS - 1)) else { return 0 };
    // Whatever comes, the request before has its answer now, or gets none any more.
    let known = told.get() == mark;
    let asks = event.kind == trace_kind::DECIDED && event.text_len != 0;
    if known && (asks || event.kind != trace_kind::DECIDED) {
        told.set(0);
    }
    if event.kind != trace_kind::DECIDED && known {
        event.time = now;
        if !env.emit(event) {
            field!(cpu.full += 1);
        }
        return 1;
    }
    if event.kind == trace_kind::ANSWERED {
        return 0;
    }
    let (service, version) = (field!(trace.service), field!(trace.version));
    if service != 0 && service != event.service || version != 0 && version != event.version {
        return 0;
    }
    let (mask, client) = (field!(trace.mask), field!(trace.client));
    let mut i = 0;
    while i < 4 {
        if event.client[i] & mask[i] != client[i] {
            return 0;
        }
        i += 1;
    }
    let due = field!(cpu.due);
    if due > now && due - now > field!(trace.burst) {
        field!(cpu.over += 1);
        return 0;
    }
    field!(cpu.due = if due > now { due } else { now }.wrapping_add(field!(trace.interval)));
    event.time = now;
    if !env.emit(event) {
        field!(cpu.full += 1);
        return 1;
    }
    if asks {
        told.set(mark);
    }
    1
}
