//! Clients and backends that are processes of the node itself.

use crate::support::{Bed, PORT, Split, client_ip, document, share_of_v2, socket::conversations, vip};
use splitter_lab::{
    load::{Load, Plan},
    serve::{self, Background},
};

#[test]
fn a_client_on_the_node_reaches_the_service() {
    let services = [Split::tcp(75, 25), Split::tcp(75, 25).v6().named("web6"), Split::tcp(75, 25).udp().named("dns")];
    let bed = Bed::new("local", &services);
    // The VIP needs a route, as from any host; which one does not matter.
    let (v4, v6) = (client_ip(&bed, false), client_ip(&bed, true));
    bed.lab.node.batch(&format!("route add default via {v4}\nroute add default via {v6}\n")).unwrap();
    for plan in [Plan::http(vip(false)), Plan::http(vip(true)), Plan::udp(vip(false))] {
        let what = format!("{:?} to {}", plan.protocol, plan.target);
        let total = Load::run(Some(&bed.lab.node), Plan { requests: Some(800), ..plan }).unwrap().total();
        crate::support::no_failures(&what, &total);
        share_of_v2(&what, &total, 0.25);
    }
}

#[test]
fn a_backend_on_the_node_answers() {
    let splits = [Split::tcp(50, 50), Split::tcp(50, 50).v6().named("web6")];
    let mut bed = Bed::prepare("onnode", Default::default(), &splits);
    let options = ["--listen", &format!("[::]:{PORT}"), "--name", "b3"].map(String::from);
    let _server = Background::start(&bed.lab.node, &serve::Options::parse(options).unwrap()).unwrap();
    bed.stop_server(3);
    let mut policy = document(&bed.lab, &splits);
    for v6 in [false, true] {
        let (old, new) = (bed.lab.backend_addr(3, v6, PORT), std::net::SocketAddr::new(bed.lab.node_ip(0, v6), PORT));
        policy = policy.replace(&old.to_string(), &new.to_string());
    }
    bed.write_policy(&policy);
    bed.start();
    for v6 in [false, true] {
        share_of_v2("a backend on the node", &bed.clean(Plan::http(vip(v6)), 600), 0.5);
        let mut kept = conversations(bed.lab.client(), client_ip(&bed, v6), vip(v6), 20_000, 20);
        kept.iter_mut().for_each(|conversation| assert_eq!(conversation.ask().unwrap(), conversation.backend));
    }
}
