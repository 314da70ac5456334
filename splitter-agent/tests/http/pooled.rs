//! Connections that many users share: clients that ask for HTTP/2 with plain requests, uploads in chunks, and a proxy in front whose kept
//! connections carry everybody's requests. What one of them sends decides nothing for the others.

use crate::{
    stage::{Stage, V1, V2, both_families, count, long, record, tagged},
    support::{Bed, Split, tool, vip},
};
use splitter_lab::{
    foreign::{self, Server, require},
    lab::Process,
};
use std::{
    fmt::Write,
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

const FRONT: u16 = 8000;

/// nginx (`b1`) is v1, Apache (`b2`) is v2: both ignore `Upgrade`.
fn two_servers(name: &str) -> Stage {
    let split = Split { versions: vec![(100, vec![1]), (0, vec![2])], ..Split::http(100, 0) }.with(foreign::Split::RULES);
    Stage::foreign(name, &both_families(&split), &[Server::Nginx, Server::Apache], None)
}

fn file(stage: &Stage, name: &str, text: &str) -> PathBuf {
    let path = stage.site.dir.join(name);
    fs::write(&path, text).expect("a file");
    path
}

/// `requests N wrong N`, and in what way, as the scripts below print it last.
fn verdict(output: &str) -> (u64, u64) {
    let line = output.lines().rfind(|line| line.starts_with("requests ")).unwrap_or_else(|| panic!("no verdict in {output:?}"));
    println!("{line}");
    let number = |i| line.split(' ').nth(i).and_then(|word| word.parse().ok()).unwrap_or_else(|| panic!("odd verdict {line:?}"));
    (number(1), number(3))
}

/// Requests of one curl process, one after the other; each `x-version`, and how many connections it opened.
fn curl(stage: &Stage, requests: &[(String, &str)]) -> (Vec<String>, u64) {
    let mut text = String::new();
    for (i, (options, _)) in requests.iter().enumerate() {
        let separator = if i == 0 { "" } else { "next\n" };
        write!(text, "{separator}{options}\noutput = /dev/null\nno-progress-meter\nmax-time = 20\n").unwrap();
        writeln!(text, "write-out = \"%{{http_code}} %header{{x-version}} %{{num_connects}}\\n\"").unwrap();
    }
    let mut command = stage.lab.client().command(require("curl").unwrap());
    command.arg("-g").arg("-K").arg(file(stage, "curl.conf", &text));
    let output = tool(command);
    let words = |line: &str| line.split(' ').map(str::to_owned).collect::<Vec<_>>();
    let lines: Vec<Vec<String>> = output.lines().map(words).collect();
    assert_eq!(lines.len(), requests.len(), "{output}");
    let connections = lines.iter().map(|line| line[2].parse::<u64>().unwrap_or(0)).sum();
    (lines.into_iter().map(|line| format!("{} {}", line[0], line[1])).collect(), connections)
}

/// `curl --http2` sends `Upgrade: h2c` with the first request of each connection.
#[test]
fn curl_that_asks_for_http2_is_split() {
    let stage = two_servers("h2ccurl");
    for v6 in [false, true] {
        let request = |(tag, name)| (format!("url = \"http://{}/\"\nhttp2\nheader = \"X-Canary: {tag}\"", vip(v6)), name);
        let turns = ["always", "never", "other", "always", "other"].into_iter().zip(["200 b2", "200 b1", "200 b1", "200 b2", "200 b1"]);
        let requests: Vec<_> = turns.cycle().take(count(40, 400) as usize).map(request).collect();
        let (answers, connections) = curl(&stage, &requests);
        let wrong = answers.iter().zip(&requests).filter(|(answer, (_, right))| answer != right).count();
        record("curl --http2", vip(v6), answers.len() as u64, wrong as u64);
        assert_eq!(wrong, 0, "{answers:?}");
        assert!(connections < answers.len() as u64 / 2, "{connections} connections for {} requests: none is kept", answers.len());
    }
}

/// The JDK's own client asks for h2c with every request that opens a connection, unless it is told not to.
#[test]
fn the_client_of_java_is_split() {
    let stage = two_servers("h2cjava");
    for v6 in [false, true] {
        let mut command = stage.lab.client().command(require("java").unwrap());
        command.arg("-Xmx128m").arg(file(&stage, "Users.java", JAVA)).arg(vip(v6).to_string()).arg(count(200, 4_000).to_string());
        let (requests, wrong) = verdict(&tool(command));
        record("the JDK's client", vip(v6), requests, wrong);
        assert!(wrong == 0 && requests >= 200, "{wrong} of {requests} are wrong");
    }
}

const JAVA: &str = r#"import java.net.URI;
import java.net.http.*;
import java.time.Duration;
public class Users {
  public static void main(String[] arguments) throws Exception {
    var client = HttpClient.newHttpClient();
    int wrong = 0, requests = Integer.parseInt(arguments[1]);
    String first = "";
    for (int i = 0; i < requests; i++) {
      String tag = new String[] {"always", "never", "other"}[i * 7 % 3];
      var uri = URI.create("http://" + arguments[0] + "/");
      var request = HttpRequest.newBuilder(uri).header("X-Canary", tag).timeout(Duration.ofSeconds(20)).build();
      var answer = client.send(request, HttpResponse.BodyHandlers.ofString());
      String name = answer.headers().firstValue("x-version").orElse("");
      if (answer.statusCode() != 200 || name.equals("b2") != tag.equals("always")) {
        wrong++;
        if (first.isEmpty()) first = tag + " answered by " + name;
      }
    }
    System.out.println("requests " + requests + " wrong " + wrong + " " + first);
  }
}
"#;

/// Uploads whose length curl does not know, between tagged requests on the same connection.
#[test]
fn uploads_of_curl_in_chunks_are_followed() {
    let stage = Stage::new("upload", &both_families(&tagged(100, 0)));
    let body = stage.site.dir.join("body");
    // Full of requests, and of ends of chunks.
    fs::write(&body, b"0\r\n\r\nGET / HTTP/1.1\r\nHost: x\r\nX-Canary: never\r\n\r\n".repeat(6_000)).expect("a file");
    for v6 in [false, true] {
        let upload = |tag: &str| {
            let chunked = "header = \"Transfer-Encoding: chunked\"\nrequest = POST";
            format!("url = \"http://{}/echo\"\nheader = \"X-Canary: {tag}\"\n{chunked}\nupload-file = \"{}\"", vip(v6), body.display())
        };
        let get = |tag: &str| format!("url = \"http://{}/\"\nheader = \"X-Canary: {tag}\"", vip(v6));
        let turn =
            [(upload("always"), "v2"), (get("never"), "v1"), (upload("never"), "v1"), (get("always"), "v2"), (upload("always"), "v2")];
        let requests: Vec<_> = turn.into_iter().cycle().take(count(20, 200) as usize).collect();
        let (answers, connections) = curl(&stage, &requests);
        let right = |answer: &str, version: &str| {
            let names = if version == "v1" { V1 } else { V2 };
            names.iter().any(|name| answer == format!("200 {name}"))
        };
        let wrong = answers.iter().zip(&requests).filter(|(answer, (_, version))| !right(answer, version)).count();
        record("curl's uploads in chunks", vip(v6), answers.len() as u64, wrong as u64);
        assert_eq!(wrong, 0, "{answers:?}");
        assert!(connections <= 2, "{connections} connections: none is kept");
    }
}

/// A proxy in front, beside the clients: a few kept connections for everybody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Front {
    /// `keepalive 8`. Bodies go on as they come.
    Nginx,
    /// `http-reuse always`.
    Haproxy,
}

impl Front {
    fn program(self) -> &'static str {
        match self {
            Front::Nginx => "nginx",
            Front::Haproxy => "haproxy",
        }
    }

    fn start(self, stage: &Stage, to: SocketAddr) -> Process {
        let files = stage.site.dir.join(format!("front-{}-{}", self.program(), if to.is_ipv4() { 4 } else { 6 }));
        fs::create_dir_all(&files).expect("a folder");
        let configuration = files.join("front.conf");
        fs::write(&configuration, if self == Front::Nginx { nginx(&files, to) } else { haproxy(to) }).expect("a file");
        let log = fs::File::create(files.join("log")).expect("a file");
        let mut command = stage.lab.client().command(require(self.program()).unwrap());
        match self {
            Front::Nginx => command.arg("-p").arg(&files).arg("-c").arg(configuration).args(["-e", "stderr"]),
            Front::Haproxy => command.arg("-db").arg("-f").arg(configuration),
        };
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let process = Process::spawn("front", &mut command).expect("a proxy");
        let local = SocketAddr::from((Ipv4Addr::LOCALHOST, FRONT));
        stage.lab.client().run(|| process.wait_listening(local, Duration::from_secs(20))).expect("a namespace").expect("it listens");
        process
    }
}

fn nginx(files: &Path, to: SocketAddr) -> String {
    let places = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"].map(|name| format!("{name}_temp_path {}/{name};\n", files.display()));
    format!(
        "daemon off;\nmaster_process off;\nuser root;\npid {}/nginx.pid;\nevents {{ worker_connections 1024; }}\nhttp {{\naccess_log off;\n{}\
         upstream vip {{ server {to}; keepalive 8; }}\nmap $http_upgrade $hop {{ default upgrade; '' ''; }}\n\
         server {{\nlisten {FRONT};\nlocation / {{\nproxy_pass http://vip;\nproxy_http_version 1.1;\nproxy_request_buffering off;\n\
         proxy_next_upstream off;\nproxy_buffer_size 16k;\nproxy_buffers 8 16k;\n\
         client_max_body_size 0;\nproxy_set_header Host shop;\nproxy_set_header Upgrade $http_upgrade;\nproxy_set_header Connection $hop;\n}}\n}}\n}}\n",
        files.display(),
        places.concat()
    )
}

/// It sends nothing twice: what fails is seen.
fn haproxy(to: SocketAddr) -> String {
    format!(
        "global\n  nbthread 1\n  maxconn 1000\ndefaults\n  mode http\n  option http-keep-alive\n  http-reuse always\n  retries 0\n  \
         timeout client 1h\n  timeout server 1h\n  timeout tunnel 1h\n  timeout connect 20s\nfrontend in\n  bind 127.0.0.1:{FRONT}\n  \
         default_backend vip\nbackend vip\n  server vip {to}\n"
    )
}

/// `users.py REQUESTS UPGRADES PATH V1 V2`: eight users of the front, of whose requests a tenth are uploads in chunks to `PATH` (none when it is
/// empty) and a share of `UPGRADES` ask for a tunnel, as a WebSocket is one: who gets it (101) says something in it, hears it again, and goes.
const USERS: &str = r#"import http.client, random, sys, threading
requests, upgrades, path, names = int(sys.argv[1]), float(sys.argv[2]), sys.argv[3], {"v1": sys.argv[4].split(","), "v2": sys.argv[5].split(",")}
lock, seen, wrong, tunnels, first = threading.Lock(), 0, 0, 0, ""
def echoes(sock):
    sock.sendall(b"hello" * 20)
    heard = b""
    while len(heard) < 100:
        more = sock.recv(100)
        if not more:
            return False
        heard += more
    return heard == b"hello" * 20
def work(number):
    global seen, wrong, tunnels, first
    chance, connection = random.Random(number), None
    for i in range(requests // 8):
        tag, version = chance.choice([("always", "v2"), ("never", "v1"), ("other", "v1")])
        headers, what, answer, tunnel = {"X-Canary": tag}, chance.random(), None, False
        try:
            if connection is None or i % 20 == 19:
                connection = http.client.HTTPConnection("127.0.0.1", 8000, timeout=20)
            if what < 0.1 and path:
                pieces = [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * chance.choice([1, 50, 500]) for _ in range(chance.choice([1, 3]))]
                kind, right = "upload", (200, 405)
                connection.request("POST", path, iter(pieces), headers, encode_chunked=True)
            elif what > 1 - upgrades:
                kind, right = "upgrade", (200, 101)
                connection.request("GET", "/", headers={**headers, "Connection": "Upgrade", "Upgrade": "echo"})
            else:
                kind, right = "get", (200,)
                connection.request("GET", "/", headers=headers)
            response = connection.getresponse()
            response.read()
            answer = f"{response.status} {response.getheader('x-version')}"
            good = response.status in right and response.getheader("x-version") in names[version]
            tunnel = response.status == 101
            if tunnel:
                good = echoes(connection.sock) and good
                connection.close()
            # An answer that comes before the body was read ends the user's own connection, not the proxy's.
            if tunnel or response.will_close or kind == "upload":
                connection = None
        except Exception as error:
            good, answer, connection = False, repr(error), None
        with lock:
            seen += 1
            tunnels += tunnel
            if not good:
                wrong += 1
                first = first or f"{kind} {tag}: {answer}"
threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
print(f"requests {seen} wrong {wrong} tunnels {tunnels} {first}")
"#;

/// Users of a front: what they ask for beside plain requests, and whose answers are right.
#[derive(Clone, Copy)]
struct Users<'a> {
    front: Front,
    /// Share of the requests that ask for a tunnel.
    upgrades: f64,
    /// Of uploads in chunks; empty: none.
    path: &'a str,
    names: [&'a [&'a str]; 2],
}

/// Everybody's requests come by the same few connections, some of which pinned them once.
fn shared(stage: &Stage, what: &str, users: Users) {
    for v6 in [false, true] {
        let _front = users.front.start(stage, vip(v6));
        let mut command = stage.lab.client().command(require("python3").unwrap());
        command.arg(file(stage, "users.py", USERS)).arg(count(800, 20_000).to_string()).arg(users.upgrades.to_string());
        command.arg(users.path).args(users.names.map(|names| names.join(",")));
        let (requests, wrong) = verdict(&tool(command));
        record(what, vip(v6), requests, wrong);
        assert!(wrong == 0 && requests >= 800, "{what}: {wrong} of {requests} are wrong");
    }
}

#[test]
fn users_of_a_proxy_in_front_do_not_decide_for_each_other() {
    let ignored = Users { front: Front::Nginx, upgrades: 0.1, path: "/", names: [&["b1"], &["b2"]] };
    shared(&two_servers("pooled"), "nginx in front, uploads and upgrades", ignored);
    let stage = Stage::new("pooleduploads", &both_families(&tagged(100, 0)));
    shared(&stage, "nginx in front, uploads", Users { upgrades: 0.0, path: "/echo", names: [V1, V2], ..ignored });
}

/// One request in twenty gets a tunnel (101), whose connection belongs to a version from then on; the next user's does not.
#[test]
fn users_with_a_tunnel_decide_for_nobody_else() {
    let stage = Stage::begin(Bed::prepare("pinning", Default::default(), &both_families(&tagged(100, 0))), &[], None);
    for front in [Front::Nginx, Front::Haproxy] {
        let users = Users { front, upgrades: 0.05, path: "/echo", names: [V1, V2] };
        shared(&stage, &format!("{front:?} in front, uploads, 5% with a 101"), users);
    }
    let switched: u64 = stage.service("web").versions.iter().map(|version| version.switches).sum();
    assert!(switched > 100, "{switched} changes of the version: no connection carries requests of several users");
    assert_eq!(stage.locks_held(), 0);
}

/// Heads of 5 KB, as Java and Go send them: v1 is one, v2 the other and Node, which takes every `Upgrade`.
#[test]
fn long_heads_of_servers_behind_proxies_are_read() {
    // Go is installed for the long run only.
    let other = if long() { Server::Go } else { Server::Java };
    let split = Split { versions: vec![(100, vec![1]), (0, vec![2, 3])], ..Split::http(100, 0) }.with(foreign::Split::RULES);
    let stage = Stage::foreign("longheads", &both_families(&split), &[Server::Java, other, Server::Node], None);
    for front in [Front::Nginx, Front::Haproxy] {
        let users = Users { front, upgrades: 0.05, path: "/echo", names: [&["b1"], &["b2", "b3"]] };
        shared(&stage, &format!("{front:?} in front of Java, {other:?} and Node, heads of 5 KB, 5% with a 101"), users);
    }
}
