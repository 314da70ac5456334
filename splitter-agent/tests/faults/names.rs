//! Backends by name: addresses that come, leave and fail to be found, under real traffic.

use crate::support::{Bed, PORT, Split, client_ip, connections, document, socket::conversations, vip};
use hickory_resolver::proto::{
    op::{Message, ResponseCode},
    rr::{
        Name, RData, Record,
        rdata::{A, SRV},
    },
};
use splitter_lab::{lab::Namespace, load::Plan};
use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread::JoinHandle,
    time::Duration,
};

/// Where the node asks.
const SERVER: &str = "127.0.0.1:5300";

/// A DNS server in the node's namespace, until it is dropped.
struct Server {
    records: Arc<Mutex<HashMap<String, Vec<RData>>>>,
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    fn start(node: &Namespace) -> Server {
        let socket = node.run(|| UdpSocket::bind(SERVER).expect("a socket for DNS")).expect("the node's namespace");
        socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        let (records, over) = (Arc::<Mutex<HashMap<String, Vec<RData>>>>::default(), Arc::<AtomicBool>::default());
        let (known, ended) = (records.clone(), over.clone());
        let thread = std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while !ended.load(Relaxed) {
                if let Ok((length, from)) = socket.recv_from(&mut buffer) {
                    let answer = answer(&buffer[..length], &known.lock().unwrap());
                    let _ = socket.send_to(&answer, from);
                }
            }
        });
        Server { records, over, thread: Some(thread) }
    }

    fn says(&self, name: &str, records: impl IntoIterator<Item = RData>) {
        self.records.lock().unwrap().insert(name.into(), records.into_iter().collect());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.over.store(true, Relaxed);
        self.thread.take().unwrap().join().unwrap();
    }
}

/// Records of a name and type, valid for a second; else that there is no such name.
fn answer(question: &[u8], records: &HashMap<String, Vec<RData>>) -> Vec<u8> {
    let question = Message::from_vec(question).expect("a question");
    let query = question.queries[0].clone();
    let mut answer = Message::response(question.metadata.id, question.metadata.op_code);
    answer.metadata.response_code = ResponseCode::NXDomain;
    if let Some(records) = records.get(&query.name().to_string().to_lowercase()) {
        answer.metadata.response_code = ResponseCode::NoError;
        let wanted = records.iter().filter(|record| record.record_type() == query.query_type());
        answer.add_answers(wanted.map(|record| Record::from_rdata(query.name().clone(), 1, record.clone())));
    }
    answer.add_query(query);
    answer.to_vec().expect("an answer")
}

fn a(address: SocketAddr) -> RData {
    let IpAddr::V4(address) = address.ip() else { panic!("{address} is not IPv4") };
    RData::A(A(address))
}

fn srv(priority: u16, port: u16, target: &str) -> RData {
    RData::SRV(SRV::new(priority, 0, port, Name::from_ascii(target).unwrap()))
}

/// The policy with names in the place of addresses, `b1` and `b2` behind `v1`, `b3` behind `v2`.
fn named(bed: &Bed, v1: u32, v2: u32) -> String {
    let text = document(&bed.lab, &[Split::tcp(v1, v2)]);
    let (mut lines, mut names) = (Vec::new(), ["{dns: web.test, port: 8080, drain: 2s}", "[{dns: _http._tcp.canary.test}]"].into_iter());
    for line in text.lines() {
        lines.push(match line.split_once("backends: ") {
            Some((before, _)) => format!("{before}backends: {}}}", names.next().unwrap()),
            None => line.to_owned(),
        });
    }
    lines.join("\n") + "\n"
}

/// State of each backend of `v1`, by address.
fn states(bed: &Bed) -> HashMap<String, String> {
    bed.status().services[0].versions[0].backends.iter().map(|backend| (backend.address.clone(), backend.state.clone())).collect()
}

#[test]
fn names_are_looked_up_and_what_leaves_drains() {
    assert_eq!(PORT, 8080);
    let mut bed = Bed::prepare("names", Default::default(), &[Split::tcp(50, 50)]);
    bed.site.options.extend(["--resolver", SERVER].map(String::from));
    let [b1, b2, b3] = [1, 2, 3].map(|i| bed.lab.backend_addr(i, false, PORT));
    let dns = Server::start(&bed.lab.node);
    dns.says("web.test.", [a(b1)]);
    // A lower priority counts alone.
    dns.says("_http._tcp.canary.test.", [srv(10, PORT, "three.test."), srv(20, 9, "two.test.")]);
    dns.says("two.test.", [a(b2)]);
    dns.says("three.test.", [a(b3), RData::A(A(Ipv4Addr::UNSPECIFIED))]);
    bed.write_policy(&named(&bed, 50, 50));
    bed.start();
    let reload = |bed: &Bed| bed.agent.as_ref().unwrap().signal(libc::SIGHUP);

    // From the first connection on: the agent has waited for the names.
    let all = bed.clean(Plan::http(vip(false)), 400);
    assert!(connections(&all, &["b1"]) > 100 && connections(&all, &["b3"]) > 100 && connections(&all, &["b2"]) == 0, "{:?}", all.versions);

    // b1 leaves, b2 comes: nothing new goes to b1, and what it has lives until it has drained.
    let mut living = conversations(bed.lab.client(), client_ip(&bed, false), vip(false), 30_000, 8);
    living.iter_mut().for_each(|one| drop(one.ask().expect("an answer")));
    dns.says("web.test.", [a(b2)]);
    reload(&bed);
    bed.wait("b1 drains", |_| states(&bed).get(&b1.to_string()).is_some_and(|state| state == "draining"));
    let all = bed.clean(Plan::http(vip(false)), 400);
    assert!(connections(&all, &["b2"]) > 100 && connections(&all, &["b1"]) == 0, "{:?}", all.versions);
    living.iter_mut().for_each(|one| drop(one.ask().expect("an answer while it drains")));
    bed.wait("b1 is gone", |_| !states(&bed).contains_key(&b1.to_string()));

    // No such name: what was known stays, and people are told.
    dns.records.lock().unwrap().remove("web.test.");
    reload(&bed);
    let status = bed.wait("the failure is told", |status| status.desired.failing_lookups == 1);
    let said = status.desired.warnings.iter().find(|warning| warning.contains("web.test")).expect("a warning");
    assert!(said.ends_with("TrafficSplit web: version v1: dns web.test: there is no such name; the last address stays"), "{said}");
    assert_eq!(status.desired.state, "ok");
    assert!(bed.cli(&["status"]).contains("the last address stays"));
    bed.clean(Plan::http(vip(false)), 400);

    // Nobody answers at all, and the agent is a new one, with another policy: it still knows.
    drop(dns);
    bed.kill_agent();
    bed.write_policy(&named(&bed, 100, 0));
    bed.start();
    let all = bed.clean(Plan::http(vip(false)), 400);
    assert_eq!(connections(&all, &["b2"]), all.connections(), "{:?}", all.versions);
    bed.wait("both failures are told", |status| status.desired.failing_lookups == 2);

    // Refused objects and new addresses at the same time.
    let dns = Server::start(&bed.lab.node);
    dns.says("web.test.", [a(b1)]);
    dns.says("_http._tcp.canary.test.", [srv(1, PORT, "three.test.")]);
    dns.says("three.test.", [a(b3)]);
    bed.write_policy("garbage: [\n");
    bed.wait("the policy is refused", |status| status.desired.state == "rejected");
    reload(&bed);
    bed.wait("the addresses are taken all the same", |status| {
        status.desired.failing_lookups == 0 && states(&bed).get(&b1.to_string()).is_some_and(|state| state == "ready")
    });
    assert_eq!(bed.status().desired.state, "rejected", "the new addresses do not make the policy good");
}
