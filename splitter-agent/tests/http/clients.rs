//! Clients that nobody here wrote, against servers that nobody here wrote: curl, wrk, Python's http.client, Node's agent, hyper, a browser.
//!
//! v1 is nginx (`b1`) and Node (`b2`), v2 is Apache (`b3`) and Python (`b4`). Every client checks each answer itself; a known good proxy in the
//! place of the agent, and one that splits wrongly, show that the checks let right through and find wrong.

use crate::{
    stage::{Stage, both_families, count, record, through},
    support::{
        Split,
        loss::{Faulty, LOSSY, ROUGH, words},
        tool, vip,
    },
};
use http_body_util::{BodyExt, Empty, Full};
use hyper::{Request, body::Bytes, client::conn::http1};
use hyper_util::rt::TokioIo;
use splitter_lab::{
    faults::Faults,
    foreign::{self, Proxy, Server, require},
};
use std::{fmt::Write, fs, net::SocketAddr, path::PathBuf};

const SERVERS: [Server; 4] = [Server::Nginx, Server::Node, Server::Apache, Server::Python];
const V1: &[&str] = &["b1", "b2"];
const V2: &[&str] = &["b3", "b4"];

fn split() -> Split {
    Split { versions: vec![(100, vec![1, 2]), (0, vec![3, 4])], ..Split::http(100, 0) }.with(foreign::Split::RULES)
}

fn stage(name: &str, through: Option<Proxy>) -> Stage {
    Stage::foreign(name, &both_families(&split()), &SERVERS, through)
}

/// What a client says of its requests: how many, how many of them wrong or failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Verdict {
    requests: u64,
    wrong: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Client {
    Curl,
    Wrk,
    Python,
    Node,
    Hyper,
    Browser,
}

impl Client {
    const ALL: [Client; 6] = [Client::Curl, Client::Wrk, Client::Python, Client::Node, Client::Hyper, Client::Browser];

    /// About `requests` requests to a frontend.
    fn run(self, stage: &Stage, to: SocketAddr, requests: u64) -> Verdict {
        match self {
            Client::Curl => curl(stage, to, requests),
            Client::Wrk => wrk(stage, to, requests),
            Client::Python => script(stage, "python3", "client.py", PYTHON, to, requests),
            Client::Node => script(stage, "node", "client.js", NODE, to, requests),
            Client::Hyper => hyper(stage, to, requests),
            Client::Browser => browser(stage, to),
        }
    }
}

fn file(stage: &Stage, name: &str, text: &str) -> PathBuf {
    let path = stage.site.dir.join(name);
    fs::write(&path, text).expect("a file");
    path
}

/// The last line of what a program printed: `requests N wrong N`, and in what way.
fn verdict(output: &str) -> Verdict {
    let line = output.lines().rfind(|line| line.starts_with("requests ")).unwrap_or_else(|| panic!("no verdict in {output:?}"));
    let words: Vec<&str> = line.split(' ').collect();
    let number = |i: usize| words.get(i).and_then(|word| word.parse().ok()).unwrap_or_else(|| panic!("odd verdict {line:?}"));
    let verdict = Verdict { requests: number(1), wrong: number(3) };
    if verdict.wrong > 0 {
        println!("{line}");
    }
    verdict
}

/// Tags in turn: a line of the head, and the version that answers.
const TAGS: [(&str, &[&str]); 6] = [
    ("X-Canary: always", V2),
    ("X-Canary: never", V1),
    ("Cookie: a=b; canary=1; c=d", V2),
    ("Cookie: canary=0", V1),
    ("X-Other: always", V1),
    ("Accept-Language: de", V1),
];

fn tag(i: u64) -> (&'static str, &'static [&'static str]) {
    TAGS[(i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as usize % TAGS.len()]
}

/// One process, whose connection is kept over all its requests.
fn curl(stage: &Stage, to: SocketAddr, requests: u64) -> Verdict {
    let mut text = String::new();
    for i in 0..requests {
        let separator = if i == 0 { "" } else { "next\n" };
        let (line, _) = tag(i);
        let path = ["/", "/bytes/1000", "/bytes/20000"][i as usize % 3];
        writeln!(text, "{separator}url = \"http://{to}{path}\"\nheader = \"{line}\"\noutput = /dev/null\nno-progress-meter").unwrap();
        writeln!(text, "write-out = \"%{{http_code}} %header{{x-version}} %{{num_connects}} %{{size_download}}\\n\"\nmax-time = 20")
            .unwrap();
    }
    let configuration = file(stage, "curl.conf", &text);
    let mut command = stage.lab.client().command(require("curl").unwrap());
    let output = tool({
        command.arg("-g").arg("-K").arg(configuration);
        command
    });
    let (mut wrong, mut lines, mut connections) = (0, 0, 0);
    for (i, line) in (0..).zip(output.lines()) {
        let words: Vec<&str> = line.split(' ').collect();
        let size = [3, 1_000, 20_000][i as usize % 3];
        let right = words[0] == "200" && tag(i).1.contains(&words[1]) && words[3] == size.to_string();
        wrong += u64::from(!right);
        if wrong == 1 && !right {
            println!("curl: {line} for {:?}", tag(i));
        }
        connections += words[2].parse::<u64>().unwrap_or(0);
        lines += 1;
    }
    assert!(connections < requests.max(10) / 2, "curl opened {connections} connections for {requests} requests: none is kept");
    Verdict { requests: lines, wrong }
}

/// Two threads, 32 connections, a tag a request. An answer says itself which tag it is for: `x-echo`.
fn wrk(stage: &Stage, to: SocketAddr, requests: u64) -> Verdict {
    let script = file(stage, "wrk.lua", WRK);
    // As many seconds as a slow machine needs for about that many.
    let seconds = (requests / 5_000).clamp(1, 60);
    let mut command = stage.lab.client().command(require("wrk").unwrap());
    command.args(["-t2", "-c32", &format!("-d{seconds}s"), "--timeout", "20s", "-s"]).arg(script).arg(format!("http://{to}/"));
    verdict(&tool(command))
}

const WRK: &str = r#"local threads = {}
function setup(thread) table.insert(threads, thread) end
function init() seen, wrong, first, turn = 0, 0, "", 0 end
local tags = { "always", "never", "other" }
function request()
  turn = turn + 1
  return wrk.format("GET", turn % 5 == 0 and "/bytes/20000" or "/", { ["X-Canary"] = tags[turn * 7 % 3 + 1] })
end
function response(status, headers, body)
  local tag, name = "", ""
  for key, value in pairs(headers) do
    if key:lower() == "x-echo" then tag = value elseif key:lower() == "x-version" then name = value end
  end
  seen = seen + 1
  local v2 = name == "b3" or name == "b4"
  if status ~= 200 or tag == "" or v2 ~= (tag == "always") then
    wrong = wrong + 1
    if first == "" then first = status .. " " .. tag .. " " .. name end
  end
end
function done(summary)
  local seen, wrong, first, e = 0, 0, "", summary.errors
  for _, thread in ipairs(threads) do
    seen, wrong, first = seen + thread:get("seen"), wrong + thread:get("wrong"), first .. " " .. thread:get("first")
  end
  wrong = wrong + e.connect + e.read + e.write + e.timeout
  io.write(string.format("\nrequests %d wrong %d %s connect %d read %d write %d timeout %d\n", seen, wrong, first, e.connect, e.read, e.write, e.timeout))
end
"#;

/// `PROGRAM FILE HOST PORT REQUESTS` with the tags as JSON on the command line.
fn script(stage: &Stage, program: &str, name: &str, text: &str, to: SocketAddr, requests: u64) -> Verdict {
    let script = file(stage, name, text);
    let tags: Vec<_> = TAGS.iter().map(|(line, expected)| (line.split_once(": ").expect("a header"), expected)).collect();
    let mut command = stage.lab.client().command(require(program).unwrap());
    command.arg(script).args([to.ip().to_string(), to.port().to_string(), requests.to_string(), serde_json::to_string(&tags).unwrap()]);
    verdict(&tool(command))
}

/// Eight threads with a kept connection each; every tenth request a POST to whoever can echo, every fiftieth a new connection.
const PYTHON: &str = r#"import http.client, json, random, sys, threading
host, port, requests, tags = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), json.loads(sys.argv[4])
lock, seen, wrong, first = threading.Lock(), 0, 0, ""
def digest(body):
    value = 0xcbf29ce484222325
    for byte in body:
        value = ((value ^ byte) * 0x100000001b3) & 0xffffffffffffffff
    return value
def work(number):
    global seen, wrong, first
    chance, connection = random.Random(number), None
    for i in range(requests // 8):
        (name, value), expected = chance.choice(tags)
        answer = None
        try:
            if connection is None or i % 50 == 49:
                connection = http.client.HTTPConnection(host, port, timeout=20)
            size = chance.choice([0, 0, 0, 1000, 20000])
            path = f"/bytes/{size}" if size else "/"
            connection.request("GET", path, headers={name: value})
            response = connection.getresponse()
            body, answer = response.read(), response.getheader("x-version")
            right = response.status == 200 and answer in expected
            right = right and body == (bytes(k % 251 for k in range(size)) if size else f"{answer}\n".encode())
        except Exception as error:
            right, answer, connection = False, repr(error), None
        with lock:
            seen += 1
            if not right:
                wrong += 1
                first = first or f"{name}: {value} answered by {answer}"
threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
print(f"requests {seen} wrong {wrong} {first}")
"#;

/// 16 kept sockets of an agent; GETs, and chunked or counted POSTs to v2's Python or v1's Node where those answer.
const NODE: &str = r#"const http = require("http");
const [host, port, requests, text] = process.argv.slice(2);
const tags = JSON.parse(text), agent = new http.Agent({ keepAlive: true, maxSockets: 16 });
let seen = 0, wrong = 0, first = "", begun = 0, state = 12345;
const random = n => { state = (Math.imul(state, 1103515245) + 12345) >>> 0; return (state >>> 16) % n; };
function one() {
  if (begun++ >= Number(requests)) return Promise.resolve();
  const [[name, value], expected] = tags[random(tags.length)], size = [0, 0, 1000, 20000][random(4)];
  return new Promise(resolve => {
    const finish = (right, what) => {
      seen++;
      if (!right) { wrong++; first = first || `${name}: ${value}: ${what}`; }
      resolve();
    };
    const options = { host, port, agent, path: size ? `/bytes/${size}` : "/", headers: { [name]: value }, timeout: 20000 };
    const request = http.request(options, response => {
      const parts = [];
      response.on("data", part => parts.push(part));
      response.on("error", error => finish(false, error));
      response.on("end", () => {
        const body = Buffer.concat(parts), version = response.headers["x-version"];
        let right = response.statusCode === 200 && expected.includes(version);
        if (size) { right = right && body.length === size && body.every((byte, i) => byte === i % 251); }
        else right = right && body.toString() === version + "\n";
        finish(right, `${response.statusCode} ${version} ${body.length}`);
      });
    });
    request.on("error", error => finish(false, error));
    request.on("timeout", () => request.destroy(new Error("timeout")));
    request.end();
  }).then(one);
}
Promise.all(Array.from({ length: 16 }, one)).then(() => {
  console.log(`requests ${seen} wrong ${wrong} ${first}`);
  process.exit(0);
});
"#;

/// Eight kept connections; GETs, and POSTs to the echo of Node (v1) and Python (v2) where one answers.
fn hyper(stage: &Stage, to: SocketAddr, requests: u64) -> Verdict {
    let connect = || std::net::TcpStream::connect(to);
    let streams: Vec<_> = (0..8).map(|_| stage.lab.client().run(connect).expect("a namespace").expect("a connection")).collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let mut tasks = tokio::task::JoinSet::new();
        for (number, stream) in (0u64..).zip(streams) {
            tasks.spawn(async move {
                stream.set_nonblocking(true)?;
                stream.set_nodelay(true)?;
                let (mut sender, connection) = http1::handshake(TokioIo::new(tokio::net::TcpStream::from_std(stream)?)).await?;
                let driver = tokio::spawn(connection);
                let mut verdict = Verdict { requests: 0, wrong: 0 };
                for i in 0..requests / 8 {
                    let (line, expected) = tag(number * 1_000_003 + i);
                    let (name, value) = line.split_once(": ").expect("a header");
                    let builder = Request::builder().uri("/bytes/1000").header("host", "shop").header(name, value);
                    let post = i % 10 == 9;
                    // nginx and Apache answer a POST to a static file with 405: who answered is all that counts.
                    let request = if post {
                        builder.method("POST").body(Full::new(Bytes::from(vec![b'x'; 3_000])).map_err(|never| match never {}).boxed())?
                    } else {
                        builder.body(Empty::<Bytes>::new().boxed())?
                    };
                    let answer = sender.send_request(request).await?;
                    let version = answer.headers().get("x-version").and_then(|name| name.to_str().ok()).unwrap_or_default().to_owned();
                    let status = answer.status();
                    let body = answer.into_body().collect().await?.to_bytes();
                    let whole = post || status == 200 && body.len() == 1_000 && (0..).zip(&body).all(|(k, byte)| *byte == (k % 251) as u8);
                    verdict.requests += 1;
                    if !whole || !expected.contains(&version.as_str()) {
                        verdict.wrong += 1;
                        if verdict.wrong == 1 {
                            println!("hyper: {line}: {status} {version:?} {} bytes", body.len());
                        }
                    }
                }
                drop(sender);
                driver.abort();
                anyhow::Ok(verdict)
            });
        }
        let mut all = Verdict { requests: 0, wrong: 0 };
        while let Some(one) = tasks.join_next().await {
            match one.expect("a task") {
                Ok(one) => all = Verdict { requests: all.requests + one.requests, wrong: all.wrong + one.wrong },
                Err(error) => {
                    println!("hyper: {error:#}");
                    all.wrong += 1;
                }
            }
        }
        all
    })
}

/// A page of Node's with 40 resources, then 40 fetches without a tag, with the header, with the cookie.
fn browser(stage: &Stage, to: SocketAddr) -> Verdict {
    let profile = stage.site.dir.join("profile");
    let mut wrong = 0;
    let mut requests = 0;
    for try_again in 0.. {
        // nginx, the other server of v1, has no such page: a new connection may get Node.
        let mut command = stage.lab.client().command(require("chromium-headless-shell").unwrap());
        command.args(["--no-sandbox", "--disable-gpu", "--dump-dom", "--virtual-time-budget=20000"]);
        command.arg(format!("--user-data-dir={}", profile.display())).arg(format!("http://{to}/page"));
        let output = tool(command);
        let Some(result) = output.split("<pre id=\"result\">").nth(1).and_then(|rest| rest.split("</pre>").next()) else {
            assert!(try_again < 20, "the browser got no page: {output}");
            continue;
        };
        for (name, expected) in [("first", V1), ("header", V2), ("cookie", V2)] {
            let round = result.split(';').find_map(|round| round.trim().strip_prefix(&format!("{name} "))).unwrap_or_default();
            let mut seen = 0;
            for (server, count) in round.split(' ').filter_map(|pair| pair.split_once('=')) {
                let count: u64 = count.parse().unwrap_or(0);
                seen += count;
                wrong += if expected.contains(&server) { 0 } else { count };
            }
            if seen != 40 {
                println!("browser: round {name} in {result:?}");
                wrong += 1;
            }
            requests += seen;
        }
        break;
    }
    Verdict { requests, wrong }
}

/// All clients one after the other; what they complain of.
fn all(what: &str, stage: &Stage, v6: bool, requests: u64) -> Vec<String> {
    let mut complaints = Vec::new();
    for client in Client::ALL {
        let verdict = client.run(stage, vip(v6), requests);
        record(&format!("{client:?}{what}"), vip(v6), verdict.requests, verdict.wrong);
        let enough = if client == Client::Browser { 120 } else { requests / 2 };
        if verdict.wrong > 0 || verdict.requests < enough {
            complaints.push(format!("{client:?} over IPv{}: {verdict:?}, {enough} are enough", if v6 { 6 } else { 4 }));
        }
    }
    complaints
}

/// Of each client: together more than 100,000 in a long run.
fn requests(normal: u64) -> u64 {
    count(normal, 25_000)
}

#[test]
fn every_client_meets_every_server() {
    let stage = stage("clients", through());
    let complaints: Vec<String> = [false, true].into_iter().flat_map(|v6| all("", &stage, v6, requests(600))).collect();
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
}

fn every_client_gets_through(name: &str, faults: Faults) {
    let stage = stage(name, through());
    let _network = Faulty::ends(&stage.lab, faults);
    let what = format!(" with {}", words(faults));
    let complaints: Vec<String> = [false, true].into_iter().flat_map(|v6| all(&what, &stage, v6, requests(200))).collect();
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
}

#[test]
fn every_client_gets_through_loss() {
    every_client_gets_through("lossy", LOSSY);
}

#[test]
fn every_client_gets_through_doubles_and_disorder() {
    every_client_gets_through("disorder", ROUGH);
}

/// The checks themselves: they pass what a proxy splits rightly, and every client finds that a proxy ignores the tags.
#[test]
fn a_right_split_passes_and_a_wrong_one_is_found() {
    let right = stage("right", Some(Proxy::Haproxy));
    let complaints = all(" through HAProxy", &right, false, 100);
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
    drop(right);
    // v1's and v2's servers exchanged.
    let swapped = Split { versions: vec![(100, vec![3, 4]), (0, vec![1, 2])], ..split() };
    let wrong = Stage::foreign("wrong", &both_families(&swapped), &SERVERS, Some(Proxy::Haproxy));
    for client in [Client::Curl, Client::Wrk, Client::Python, Client::Node, Client::Hyper] {
        let verdict = client.run(&wrong, vip(false), 100);
        assert!(verdict.wrong > verdict.requests / 2, "{client:?} finds {verdict:?} on exchanged versions");
    }
}
