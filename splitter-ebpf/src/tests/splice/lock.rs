//! One packet of a connection at a time.
use super::*;
use crate::env::Env;

impl Http {
    /// What comes out while another CPU holds every lock: nothing, and nothing changes.
    fn while_held(&self, wire: &Wire, side: u32) {
        let (entries, contended) = (self.entries(), self.counted(Reason::Contended));
        self.maps.hold_all_locks(Some(self.maps.ticks()));
        assert_eq!((self.run(wire, side), self.last.get()), (vec![], Action::Drop), "{wire:?}");
        assert_eq!((self.entries(), self.counted(Reason::Contended)), (entries, contended + 1));
        self.maps.hold_all_locks(None);
    }
}

#[test]
fn what_changes_a_flow_waits_for_another_cpu() {
    for lab in Http::both() {
        let mut client = lab.client();
        lab.while_held(&client.wire(ACK | PSH, GET), client.side);
        let syn = one(client.say(GET));
        let (_, syn_ack) = lab.backend_of(&syn);
        lab.while_held(&syn_ack, BACKEND_SIDE);
        let mut server = lab.accept(&syn, GET);
        lab.respond(&mut client, &mut server, OK);
        lab.while_held(&client.wire(ACK | PSH, GET), client.side);
        let seen = one(client.say(GET));
        assert_eq!((&seen.payload[..], seen.dst), (GET, server.me));
        server.hear(&seen);
        lab.while_held(&server.wire(FIN | ACK, &[]), BACKEND_SIDE);
        lab.while_held(&client.wire(RST, &[]), client.side);
        client.send(RST, &[]);
        assert_eq!(lab.entries(), [0, 0]);
    }
}

#[test]
fn plain_packets_do_without() {
    for lab in Http::both() {
        let (mut client, mut server) = lab.ready();
        server.hear(&one(client.say(GET)));
        lab.maps.hold_all_locks(Some(lab.maps.ticks()));
        lab.respond(&mut client, &mut server, OK);
        assert_eq!(lab.counted(Reason::Contended), 0);
        lab.maps.hold_all_locks(None);
        client.send(RST, &[]);
    }
}

#[test]
fn a_forgotten_lock_is_taken_away() {
    for lab in Http::both() {
        let mut client = lab.client();
        lab.maps.hold_all_locks(Some(lab.maps.ticks().wrapping_sub(51)));
        let all = lab.maps.locks_held();
        let syn = one(client.say(GET));
        assert_eq!((syn.flags, lab.maps.locks_held()), (SYN, all - 1), "the one that was taken is given back");
        lab.maps.hold_all_locks(None);
        client.send(RST, &[]);
    }
}
