//! What a client says without data: acknowledgements, windows that close and open. It goes to the leg in use, and the leg that was left hears of
//! the end.

use crate::{
    stage::{Stage, both_families, tagged, through},
    support::{
        capture::{ACK, Capture, FIN, RST, SYN, Seen},
        eventually, vip,
    },
    wire::{TO_V1, TO_V2, Wire, get},
};
use std::{collections::HashMap, os::fd::AsRawFd, time::Duration};

fn is_bare(seen: &Seen) -> bool {
    seen.len == 0 && seen.flags & (SYN | FIN | RST) == 0 && seen.flags & ACK != 0
}

fn set(wire: &Wire, level: libc::c_int, option: libc::c_int, value: libc::c_int) {
    let size = size_of_val(&value) as libc::socklen_t;
    // SAFETY: the option is as long as said.
    let done = unsafe { libc::setsockopt(wire.stream.as_raw_fd(), level, option, (&raw const value).cast(), size) };
    assert_eq!(done, 0, "option {option}: {}", std::io::Error::last_os_error());
}

/// A backend's side of a client's connection.
struct Leg {
    capture: Capture,
    port: u16,
    /// Bare acknowledgements that came since the last request.
    heard: Vec<Seen>,
    /// The end of what it has sent, and what it was told that the client has. Numbers.
    sent: u32,
    told: u32,
}

impl Leg {
    fn listen(&mut self) -> &Leg {
        for seen in self.capture.take() {
            if seen.dst.port() == self.port && seen.len != 0 {
                self.sent = seen.seq.wrapping_add(seen.len as u32);
            } else if seen.src.port() == self.port && is_bare(&seen) {
                self.told = seen.ack;
                self.heard.push(seen);
            }
        }
        self
    }
}

#[test]
fn windows_reach_the_leg_in_use_and_the_end_the_one_that_was_left() {
    if through().is_some() {
        return;
    }
    let stage = Stage::new("acks", &both_families(&tagged(100, 0)));
    let mut closed = false;
    for v6 in [false, true] {
        let mut wire = Wire::open(stage.lab.client(), vip(v6));
        // It fills while nobody reads, and is read empty later.
        set(&wire, libc::SOL_SOCKET, libc::SO_RCVBUF, 20_000);
        let port = wire.stream.local_addr().expect("an address").port();
        let client = Capture::start(stage.lab.client());
        let leg = |i| Leg { capture: Capture::start(stage.lab.backend(i)), port, heard: Vec::new(), sent: 0, told: 0 };
        let mut legs: HashMap<String, Leg> = (1..=3).map(|i| (format!("b{i}"), leg(i))).collect();
        let mut before: Option<String> = None;
        for round in 0..8 {
            legs.values_mut().for_each(|leg| leg.heard.clear());
            wire.send(get("/bytes/400000", &[if round % 2 == 0 { TO_V1 } else { TO_V2 }]));
            std::thread::sleep(Duration::from_millis(50));
            let answer = wire.answer().expect("an answer");
            assert_eq!(answer.body.len(), 400_000, "round {round}");
            let what = format!("IPv{}, round {round}, {}", if v6 { 6 } else { 4 }, answer.version);
            let said: Vec<Seen> = client.take().into_iter().filter(|seen| seen.src.port() == port && is_bare(seen)).collect();
            closed |= said.iter().any(|seen| seen.window == 0);
            // A backend may hear more: the end of its handshake.
            let leg = legs.get_mut(&answer.version).expect("a backend");
            eventually(&format!("{what} hears all of it"), || {
                let mut rest = leg.listen().heard.iter();
                said.iter().all(|said| rest.any(|heard| heard.window == said.window)).then_some(())
            });
            if let Some(left) = before.replace(answer.version) {
                let leg = legs.get_mut(&left).expect("a backend");
                eventually(&format!("{what}: {left}, which was left, is told"), || {
                    let leg = leg.listen();
                    (leg.told == leg.sent).then_some(())
                });
            }
        }
    }
    assert!(closed, "no window was closed");
}

/// A client whose next request is all that acknowledges a response.
#[test]
fn nobody_has_to_send_the_end_of_a_response_again() {
    if through().is_some() {
        return;
    }
    let stage = Stage::new("ends", &both_families(&tagged(100, 0)));
    let mut wires = [false, true].map(|v6| Wire::open(stage.lab.client(), vip(v6)));
    for round in 0..9 {
        for wire in &mut wires {
            // It waits for 40 ms with its acknowledgement.
            set(wire, libc::IPPROTO_TCP, libc::TCP_QUICKACK, 0);
            wire.get("/", &[if round % 2 == 0 { TO_V1 } else { TO_V2 }]);
        }
    }
    // Longer than the backend's timer.
    std::thread::sleep(Duration::from_millis(600));
    assert_eq!(stage.reason("idle_leg"), 0);
}
