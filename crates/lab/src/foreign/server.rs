//! Web servers as backends: nginx, Apache httpd, Node, Python, Java, Go. All answer as far as they can as the lab's own server does.
//!
//! `/` answers the name and a line feed, `/bytes/N` (N of [`SIZES`]) the checked pattern. `x-version` carries the name, `x-echo` the request's
//! `X-Canary`: whoever cannot tell which request an answer belongs to, as wrk, judges by the two. Node and Python know `/echo` too; Node
//! answers in chunks, takes every `Upgrade` (101), and serves [`page`]. Java and Go know `/echo` as well, and send 5 KB of header fields with
//! every answer: more than the buffer from which Go writes, so that a head comes in two pieces.

use super::{require, start};
use crate::{
    http::body_byte,
    lab::{Namespace, Process},
};
use anyhow::{Result, ensure};
use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

const PATIENCE: Duration = Duration::from_secs(15);
/// Bodies that every server has.
pub const SIZES: [u64; 3] = [1_000, 20_000, 1_000_000];

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Server {
    Nginx,
    Apache,
    Node,
    Python,
    /// The JDK's own `HttpServer`.
    Java,
    /// `net/http`. `go` is installed for `cargo xtask proof` only.
    Go,
}

impl Server {
    /// Its program's name.
    pub fn program(self) -> &'static str {
        match self {
            Server::Nginx => "nginx",
            Server::Apache => "apache2",
            Server::Node => "node",
            Server::Python => "python3",
            Server::Java => "java",
            Server::Go => "go",
        }
    }

    /// Starts it on every address of the namespace; `folder` gets a folder for its files. Two of nginx may share a port.
    pub fn start(self, namespace: &Namespace, name: &str, port: u16, folder: &Path) -> Result<Process> {
        let program = require(self.program())?;
        let title = format!("{}-{name}", self.program());
        let files = folder.join(&title);
        let root = root(&files, name)?;
        let write = |file: &str, text: String| -> Result<PathBuf> {
            fs::write(files.join(file), text)?;
            Ok(files.join(file))
        };
        let mut command: Command = namespace.command(program);
        match self {
            Server::Nginx => {
                let configuration = write("nginx.conf", nginx(&files, &root, name, port))?;
                command.arg("-p").arg(&files).arg("-c").arg(configuration).args(["-e", "stderr"]);
            }
            Server::Apache => {
                let configuration = write("apache.conf", apache(&files, &root, name, port))?;
                // One process that stays in the foreground.
                command.arg("-X").arg("-f").arg(configuration);
            }
            Server::Node => {
                command.arg(write("server.js", NODE.into())?).arg(name).arg(port.to_string()).arg(write("page.html", page())?);
            }
            Server::Python => {
                command.arg(write("server.py", PYTHON.into())?).arg(name).arg(port.to_string());
            }
            Server::Java => {
                // Small answers are not kept back for an acknowledgement.
                command.args(["-Xmx256m", "-Dsun.net.httpserver.nodelay=true"]);
                command.arg(write("Server.java", JAVA.into())?).arg(name).arg(port.to_string());
            }
            Server::Go => {
                let built = files.join("server");
                build_go(&write("server.go", GO.into())?, &built)?;
                command = namespace.command(&built);
                command.arg(name).arg(port.to_string());
            }
        }
        start(&title, &mut command, folder, |process| {
            let local = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port);
            namespace.run(|| process.wait_listening(local, PATIENCE))?
        })
    }
}

/// Without modules, which would be asked for on the network.
fn build_go(source: &Path, program: &Path) -> Result<()> {
    let cache = source.with_file_name("cache");
    let mut command = Command::new(require("go")?);
    command.env("GO111MODULE", "off").env("CGO_ENABLED", "0").env("GOCACHE", &cache).env("GOPATH", &cache).env("GOFLAGS", "");
    let output = command.arg("build").arg("-o").arg(program).arg(source).output()?;
    ensure!(output.status.success(), "go build: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}

/// A folder of static files, readable by whatever user a server becomes.
fn root(files: &Path, name: &str) -> Result<PathBuf> {
    let root = files.join("root");
    fs::create_dir_all(root.join("bytes"))?;
    for folder in [files, &root, &root.join("bytes")] {
        fs::set_permissions(folder, fs::Permissions::from_mode(0o755))?;
    }
    fs::write(root.join("index.txt"), format!("{name}\n"))?;
    for size in SIZES {
        fs::write(root.join(format!("bytes/{size}")), (0..size).map(body_byte).collect::<Vec<u8>>())?;
    }
    Ok(root)
}

fn nginx(files: &Path, root: &Path, name: &str, port: u16) -> String {
    let (files, root) = (files.display(), root.display());
    let places = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"].map(|name| format!("  {name}_temp_path {files}/{name};\n"));
    format!(
        "daemon off;\nmaster_process off;\nuser root;\npid {files}/nginx.pid;\nevents {{ worker_connections 4096; }}\nhttp {{\n\
         {}  access_log off;\n  sendfile on;\n  tcp_nopush on;\n  default_type text/plain;\n  keepalive_requests 1000000000;\n  \
         keepalive_timeout 1h;\n  large_client_header_buffers 4 32k;\n  server {{\n    listen {port} backlog=16384 reuseport;\n    listen [::]:{port} backlog=16384 reuseport;\n    \
         root {root};\n    index index.txt;\n    add_header x-version {name} always;\n    add_header x-echo \"$http_x_canary\" always;\n    \
         location / {{ }}\n    location = / {{ return 200 \"{name}\\n\"; }}\n  }}\n}}\n",
        places.concat()
    )
}

fn apache(files: &Path, root: &Path, name: &str, port: u16) -> String {
    let (files, root) = (files.display(), root.display());
    let modules = ["mpm_event", "authz_core", "headers", "dir", "mime"]
        .map(|module| format!("LoadModule {module}_module /usr/lib/apache2/modules/mod_{module}.so\n"));
    format!(
        "ServerRoot {files}\nServerName {name}\n{}Listen {port}\nPidFile {files}/apache.pid\nErrorLog /dev/stderr\nLogLevel warn\n\
         User www-data\nGroup www-data\nTypesConfig /dev/null\nDocumentRoot {root}\nDirectoryIndex index.txt\nKeepAlive On\n\
         MaxKeepAliveRequests 0\nKeepAliveTimeout 600\nServerLimit 1\nThreadsPerChild 64\nMaxRequestWorkers 64\nLimitRequestFieldSize 16000\n\
         <Directory {root}>\n  Require all granted\n</Directory>\nHeader always set x-version {name}\n\
         Header always set x-echo \"expr=%{{HTTP:X-Canary}}\"\n",
        modules.concat()
    )
}

/// `node server.js NAME PORT PAGE`. No length is given, so that bodies go out in chunks.
const NODE: &str = r#"const http = require("http"), fs = require("fs");
const [name, port, page] = process.argv.slice(2);
function digest(body) {
  let hash = 0xcbf29ce484222325n;
  for (const byte of body) hash = ((hash ^ BigInt(byte)) * 0x100000001b3n) & 0xffffffffffffffffn;
  return hash.toString(16).padStart(16, "0");
}
function pattern(size) {
  const body = Buffer.alloc(size);
  for (let i = 0; i < size; i++) body[i] = i % 251;
  return body;
}
const server = http.createServer({ maxHeaderSize: 32768 }, (request, response) => {
  response.setHeader("x-version", name);
  response.setHeader("x-echo", request.headers["x-canary"] || "");
  const [, kind, argument] = request.url.split("/");
  if (kind === "bytes") { response.write(pattern(Number(argument))); return response.end(); }
  if (kind === "page") { response.setHeader("content-type", "text/html"); response.write(fs.readFileSync(page)); return response.end(); }
  if (kind === "echo") {
    const parts = [];
    request.on("data", part => parts.push(part));
    request.on("end", () => { const body = Buffer.concat(parts); response.write(`${name} ${body.length} ${digest(body)}\n`); response.end(); });
    return;
  }
  response.write(name + "\n");
  response.end();
});
server.keepAliveTimeout = 3600000;
server.requestTimeout = 0;
server.headersTimeout = 3600000;
server.on("upgrade", (request, socket) => {
  socket.write(`HTTP/1.1 101 Switching Protocols\r\nx-version: ${name}\r\nupgrade: echo\r\nconnection: upgrade\r\n\r\n`);
  socket.pipe(socket);
});
server.listen({ host: "::", port: Number(port), backlog: 16384 });
"#;

/// `python3 server.py NAME PORT`.
const PYTHON: &str = r#"import socket, sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
name, port = sys.argv[1], int(sys.argv[2])
def digest(body):
    value = 0xcbf29ce484222325
    for byte in body:
        value = ((value ^ byte) * 0x100000001b3) & 0xffffffffffffffff
    return value
pattern = bytes(i % 251 for i in range(1000000))
class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    def log_message(self, *_):
        pass
    def answer(self, body):
        self.send_response(200)
        self.send_header("x-version", name)
        self.send_header("x-echo", self.headers.get("x-canary", ""))
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def do_GET(self):
        word, _, number = self.path[1:].partition("/")
        self.answer(pattern[:int(number)] if word == "bytes" else f"{name}\n".encode())
    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        self.answer(f"{name} {len(body)} {digest(body):016x}\n".encode())
class Server(ThreadingHTTPServer):
    address_family = socket.AF_INET6
    request_queue_size = 4096
    daemon_threads = True
Server(("::", port), Handler).serve_forever()
"#;

/// `java Server.java NAME PORT`.
const JAVA: &str = r#"import com.sun.net.httpserver.HttpServer;
import java.net.InetSocketAddress;
import java.util.concurrent.Executors;
public class Server {
  public static void main(String[] arguments) throws Exception {
    String name = arguments[0], filler = "x".repeat(100);
    byte[] pattern = new byte[1_000_000];
    for (int i = 0; i < pattern.length; i++) pattern[i] = (byte) (i % 251);
    var server = HttpServer.create(new InetSocketAddress(Integer.parseInt(arguments[1])), 4096);
    server.setExecutor(Executors.newFixedThreadPool(64));
    server.createContext("/", exchange -> {
      byte[] asked = exchange.getRequestBody().readAllBytes();
      String[] words = exchange.getRequestURI().getPath().split("/");
      String kind = words.length > 1 ? words[1] : "";
      byte[] body;
      if (kind.equals("bytes")) body = java.util.Arrays.copyOf(pattern, Integer.parseInt(words[2]));
      else if (kind.equals("echo")) {
        long digest = 0xcbf29ce484222325L;
        for (byte octet : asked) digest = (digest ^ (octet & 255)) * 0x100000001b3L;
        body = String.format("%s %d %016x\n", name, asked.length, digest).getBytes();
      } else body = (name + "\n").getBytes();
      String tag = exchange.getRequestHeaders().getFirst("x-canary");
      var headers = exchange.getResponseHeaders();
      headers.set("x-version", name);
      headers.set("x-echo", tag == null ? "" : tag);
      for (int i = 0; i < 50; i++) headers.set("x-filler-" + i, filler);
      exchange.sendResponseHeaders(200, body.length);
      exchange.getResponseBody().write(body);
      exchange.close();
    });
    server.start();
  }
}
"#;

/// `server NAME PORT`.
const GO: &str = r#"package main

import (
	"fmt"
	"hash/fnv"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
)

func main() {
	name, filler := os.Args[1], strings.Repeat("x", 100)
	pattern := make([]byte, 1000000)
	for i := range pattern {
		pattern[i] = byte(i % 251)
	}
	http.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		asked, _ := io.ReadAll(r.Body)
		words := append(strings.Split(r.URL.Path, "/"), "", "")
		body := []byte(name + "\n")
		switch words[1] {
		case "bytes":
			size, _ := strconv.Atoi(words[2])
			body = pattern[:size]
		case "echo":
			digest := fnv.New64a()
			digest.Write(asked)
			body = []byte(fmt.Sprintf("%s %d %016x\n", name, len(asked), digest.Sum64()))
		}
		w.Header().Set("x-version", name)
		w.Header().Set("x-echo", r.Header.Get("x-canary"))
		for i := 0; i < 50; i++ {
			w.Header().Set("x-filler-"+strconv.Itoa(i), filler)
		}
		w.Header().Set("content-length", strconv.Itoa(len(body)))
		w.Write(body)
	})
	fmt.Fprintln(os.Stderr, http.ListenAndServe(":"+os.Args[2], nil))
}
"#;

/// A page for a browser: 40 resources by tags of their own, then 40 requests with the tag of v2 in a header, then 40 with the cookie. What
/// answered ends up in the document as `name=count` behind `first`, `header` and `cookie`.
pub fn page() -> String {
    let images: Vec<String> = (0..40).map(|i| format!("<script src=\"/?resource-{i}\" type=\"text/none\"></script>")).collect();
    String::from("<!doctype html><title>page</title><body>") + &images.concat() + PAGE_SCRIPT
}

const PAGE_SCRIPT: &str = r#"<pre id="result"></pre><script>
async function round(name, headers) {
  const counts = {};
  const one = async i => {
    const answer = await fetch(`/?${name}-${i}`, { headers, cache: "no-store" });
    const text = (await answer.text()).trim(), version = answer.headers.get("x-version");
    const key = answer.ok && text === version ? version : "wrong";
    counts[key] = (counts[key] || 0) + 1;
  };
  await Promise.all(Array.from({ length: 40 }, (_, i) => one(i)));
  return name + " " + Object.entries(counts).sort().map(([key, count]) => `${key}=${count}`).join(" ") + ";";
}
(async () => {
  document.cookie = "canary=0; path=/";
  let text = await round("first", {});
  text += await round("header", { "X-Canary": "always" });
  document.cookie = "canary=1; path=/";
  text += await round("cookie", {});
  document.getElementById("result").textContent = text + "done";
})();
</script></body>"#;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configurations_are_balanced() {
        let (files, root) = (Path::new("/x"), Path::new("/x/root"));
        let text = nginx(files, root, "b1", 8080);
        assert_eq!(text.matches('{').count(), text.matches('}').count());
        assert!(text.contains("return 200 \"b1\\n\"") && text.contains("listen [::]:8080 "), "{text}");
        let text = apache(files, root, "b3", 81);
        assert!(text.contains("Header always set x-version b3\n") && text.contains("%{HTTP:X-Canary}"), "{text}");
        assert_eq!(page().matches("/?resource-").count(), 40);
    }
}
