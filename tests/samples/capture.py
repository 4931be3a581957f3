"""Captures what real clients send, for observer/samples. Run by `cargo xtask capture`.

Starts itself again in namespaces of its own, where the loopback device is the only one, /etc/hosts and /etc/resolv.conf are
made up, and the host name is not this machine's. So nothing leaves the machine, clients find the service names that they
are given, and nothing of this machine gets into a sample. Clients that are missing are named and left out.
"""

import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time

HERE = os.path.dirname(os.path.abspath(__file__))
CLIENTS = os.path.join(HERE, "clients")

REVIEWS = "reviews.default.svc.cluster.local"
RATINGS = "ratings.default.svc.cluster.local"
DETAILS = "details.prod.svc.cluster.local"
PORT = 9080
DNS_PORT = 5300
WAIT = 20

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS, SETTINGS_ACK = b"\0\0\0\x04\0\0\0\0\0", b"\0\0\0\x04\x01\0\0\0\0"
# ":status: 200", "content-type: application/grpc" and "grpc-status: 0" as HPACK literals: ends a call and a request alike.
TRAILERS = b"\x88\x0f\x10\x10application/grpc\x00\x0bgrpc-status\x010"


class Connection(threading.Thread):
    """One accepted connection: keeps all that comes, and answers as little as the client needs to go on."""

    def __init__(self, stream):
        super().__init__(daemon=True)
        self.stream = stream
        self.bytes = b""

    def run(self):
        self.stream.settimeout(WAIT)
        try:
            self.serve()
        except OSError:
            pass
        finally:
            self.stream.close()

    def more(self):
        piece = self.stream.recv(65536)
        if not piece:
            raise ConnectionResetError
        self.bytes += piece

    def serve(self):
        self.more()
        if self.bytes[0] == 22:
            return self.hello()
        while len(self.bytes) < len(PREFACE) and PREFACE.startswith(self.bytes):
            self.more()
        if self.bytes.startswith(PREFACE):
            self.stream.sendall(SETTINGS)
            return self.frames(len(PREFACE))
        self.requests()

    def hello(self):
        """Until the last record of the ClientHello is there."""
        at = message = 0
        wanted = None
        while wanted is None or message < wanted:
            while len(self.bytes) < at + 5 + int.from_bytes(self.bytes[at + 3 : at + 5], "big") or len(self.bytes) < at + 5:
                self.more()
            length = int.from_bytes(self.bytes[at + 3 : at + 5], "big")
            if wanted is None:
                wanted = 4 + int.from_bytes(self.bytes[at + 6 : at + 9], "big")
            message += length
            at += 5 + length

    def requests(self):
        at = 0
        while True:
            while b"\r\n\r\n" not in self.bytes[at:]:
                self.more()
            end = self.bytes.index(b"\r\n\r\n", at) + 4
            head = self.bytes[at:end].lower()
            length = [line.split(b":")[1] for line in head.split(b"\r\n") if line.startswith(b"content-length:")]
            end += int(length[0]) if length else 0
            while len(self.bytes) < end:
                self.more()
            at = end
            if b"\r\nupgrade: h2c" in head:
                self.stream.sendall(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n")
                self.stream.sendall(SETTINGS)
                while len(self.bytes) < at + len(PREFACE):
                    self.more()
                self.answer(1)
                return self.frames(at + len(PREFACE))
            self.stream.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    def frames(self, at):
        while True:
            while len(self.bytes) < at + 9 or len(self.bytes) < at + 9 + int.from_bytes(self.bytes[at : at + 3], "big"):
                self.more()
            kind, flags = self.bytes[at + 3], self.bytes[at + 4]
            stream = int.from_bytes(self.bytes[at + 5 : at + 9], "big") & 0x7FFFFFFF
            payload = self.bytes[at + 9 : at + 9 + int.from_bytes(self.bytes[at : at + 3], "big")]
            at += 9 + len(payload)
            if kind == 4 and not flags & 1:
                self.stream.sendall(SETTINGS_ACK)
            elif kind == 6 and not flags & 1:
                self.stream.sendall(b"\0\0\x08\x06\x01\0\0\0\0" + payload)
            elif kind in (0, 1) and flags & 1:
                self.answer(stream)

    def answer(self, stream):
        head = len(TRAILERS).to_bytes(3, "big") + b"\x01\x05" + stream.to_bytes(4, "big")
        self.stream.sendall(head + TRAILERS)


class Server(threading.Thread):
    """Keeps the connections of one client."""

    def __init__(self):
        super().__init__(daemon=True)
        self.connections = []
        self.listener = socket.create_server(("::", PORT), family=socket.AF_INET6, dualstack_ipv6=True)

    def run(self):
        while True:
            stream, _ = self.listener.accept()
            connection = Connection(stream)
            self.connections.append(connection)
            connection.start()

    def take(self):
        """What the connections made since the last call have sent, without those that a client opened to spare."""
        connections, self.connections = self.connections, []
        for connection in connections:
            connection.join(2)
        return [connection.bytes for connection in connections if connection.bytes]


class Resolver:
    """Stands on port 53 before a name server, and keeps its answers."""

    def __init__(self):
        self.answers = []
        udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        udp.bind(("127.0.0.1", 53))
        threading.Thread(target=self.datagrams, args=(udp,), daemon=True).start()
        tcp = socket.create_server(("127.0.0.1", 53))
        threading.Thread(target=self.streams, args=(tcp,), daemon=True).start()

    def datagrams(self, udp):
        while True:
            question, client = udp.recvfrom(65535)
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as upstream:
                upstream.settimeout(5)
                try:
                    upstream.sendto(question, ("127.0.0.1", DNS_PORT))
                    answer = upstream.recv(65535)
                except OSError:
                    continue
            self.answers.append(("udp", answer))
            udp.sendto(answer, client)

    def streams(self, tcp):
        while True:
            client, _ = tcp.accept()
            upstream = socket.create_connection(("127.0.0.1", DNS_PORT))
            threading.Thread(target=self.pump, args=(client, upstream, None), daemon=True).start()
            threading.Thread(target=self.pump, args=(upstream, client, self.answers), daemon=True).start()

    @staticmethod
    def pump(source, sink, answers):
        whole = b""
        try:
            while piece := source.recv(65536):
                whole += piece
                sink.sendall(piece)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            pass
        if answers is not None and whole:
            answers.append(("tcp", whole))

    def take(self):
        time.sleep(0.3)
        answers, self.answers = self.answers, []
        return answers


class Capture:
    """Runs clients and writes what they sent."""

    def __init__(self, out, work):
        self.out, self.work = out, work
        self.samples, self.missing = [], []
        self.server = Server()
        self.server.start()

    def miss(self, what, why):
        print(f"    missing: {what}: {why}", flush=True)
        self.missing.append(what)

    def run(self, command, **kwargs):
        kwargs.setdefault("timeout", WAIT)
        try:
            return subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **kwargs)
        except subprocess.TimeoutExpired as late:
            return subprocess.CompletedProcess(command, 124, late.stdout or b"")

    def version(self, command):
        if shutil.which(command[0]) is None:
            return None
        lines = self.run(command).stdout.decode(errors="replace").splitlines()
        return lines[0].strip() if lines else ""

    def client(self, name, kind, client, command, hosts, say=""):
        """One sample for all that `command` makes: its connections one after the other have names of their own."""
        result = self.run(command)
        connections = self.server.take()
        if not connections:
            return self.miss(name, f"made no connection: {result.stdout.decode(errors='replace')[-300:]}")
        # A failed handshake may be tried again: the first connection tells.
        for index, sent in enumerate(connections if kind == "http1" else connections[:1]):
            suffix = f"-{index + 1}" if index else ""
            self.write(f"{name}{suffix}", kind, client, sent, hosts=hosts, say=say)

    def write(self, name, kind, client, sent, say="", **expect):
        file = f"{name}.bin"
        with open(os.path.join(self.out, file), "wb") as sample:
            sample.write(sent)
        self.samples.append({"file": file, "kind": kind, "client": client, "what": say, **expect})
        print(f"    {file}: {len(sent)} bytes", flush=True)


def http1_and_tls(capture, tools):
    url, secure = f"http://{REVIEWS}:{PORT}", f"https://{REVIEWS}:{PORT}/"
    if curl := capture.version(["curl", "--version"]):
        curl = " ".join(curl.split()[:2])
        base = ["curl", "-sk", "--noproxy", "*"]
        two = ["-o", "/dev/null", "-o", "/dev/null"]
        capture.client("http1-curl-get", "http1", curl, base + [url + "/reviews/0"], [REVIEWS], "GET")
        capture.client(
            "http1-curl-post", "http1", curl,
            base + ["-H", "Cookie: session=1", "-d", "rating=5", url + "/ratings"], [REVIEWS], "POST with a body and a cookie",
        )
        capture.client(
            "http1-curl-proxy", "http1", curl,
            ["curl", "-s", "--noproxy", "", "-x", f"http://{DETAILS}:{PORT}"]
            + two + [f"http://{REVIEWS}/a", f"http://{RATINGS}/b"],
            [REVIEWS, RATINGS], "absolute targets, two hosts on one connection to a proxy",
        )
        capture.client(
            "http1-curl-connect", "http1", curl,
            ["curl", "-s", "--noproxy", "", "-p", "-x", f"http://{DETAILS}:{PORT}", f"http://{REVIEWS}:9443/"],
            [REVIEWS, REVIEWS], "CONNECT, then a request within the tunnel",
        )
        capture.client(
            "proxy-v1-curl", "proxy-http1", curl, base + ["--haproxy-protocol", url + "/"], [REVIEWS],
            "PROXY protocol version 1 before the request",
        )
        capture.client("tls-curl", "tls", curl, base + [secure], [REVIEWS], "ClientHello")
        if "HTTP2" in capture.run(["curl", "--version"]).stdout.decode():
            prior = base + ["--http2-prior-knowledge"]
            capture.client("http2-curl", "http2", curl, prior + [url + "/reviews/0"], [REVIEWS], "prior knowledge")
            capture.client(
                "h2c-curl", "h2c", curl, base + ["--http2"] + two + [url + "/a", url + "/b"], [REVIEWS, REVIEWS],
                "upgrade to HTTP/2, then a second request",
            )
    else:
        capture.miss("curl", "not found")

    if openssl := capture.version(["openssl", "version"]):
        openssl = " ".join(openssl.split()[:2])
        base = ["openssl", "s_client", "-connect", f"{REVIEWS}:{PORT}"]
        capture.client("tls-openssl", "tls", openssl, base + ["-servername", REVIEWS], [REVIEWS], "ClientHello")
        capture.client("tls-openssl-none", "tls", openssl, base + ["-noservername"], [], "ClientHello without a name")
        capture.client(
            "tls-openssl-fragments", "tls", openssl,
            base + ["-servername", REVIEWS, "-max_send_frag", "512", "-alpn", ",".join(f"protocol-{i}" for i in range(60))],
            [REVIEWS], "ClientHello in several records",
        )
        capture.client("tls12-openssl", "tls", openssl, base + ["-servername", REVIEWS, "-tls1_2"], [REVIEWS], "TLS 1.2")
    else:
        capture.miss("openssl", "not found")

    python = "Python " + sys.version.split()[0]
    script = [tools["python"], os.path.join(CLIENTS, "client.py")]
    for name, kind, module, say in [
        ("http1-python", "http1", "http.client", "http.client, GET and POST on one connection"),
        ("http1-python-requests", "http1", "requests", "requests"),
        ("http1-python-urllib3", "http1", "urllib3", "urllib3"),
        ("tls-python", "tls", "ssl", f"ssl with {ssl.OPENSSL_VERSION}"),
        ("http2-python-httpx", "http2", "httpx", "httpx with h2"),
        ("http2-grpc-python", "http2", "grpc", "grpcio, two calls"),
    ]:
        found = capture.run([tools["python"], "-c", f"import {module}; print(getattr({module}, '__version__', ''))"])
        if found.returncode != 0:
            capture.miss(name, f"no module {module} for {tools['python']}")
            continue
        hosts = {"http.client": [REVIEWS] * 2, "grpc": [REVIEWS] * 2}.get(module, [REVIEWS])
        client = f"{python}, {module} {found.stdout.decode().strip()}".strip()
        capture.client(name, kind, client, script + [module, REVIEWS, str(PORT)], hosts, say)

    if node := capture.version(["node", "--version"]):
        script = ["node", os.path.join(CLIENTS, "client.mjs")]
        for name, kind, mode, hosts in [
            ("http1-node", "http1", "http", [REVIEWS]),
            ("http1-node-fetch", "http1", "fetch", [REVIEWS]),
            ("tls-node", "tls", "tls", [REVIEWS]),
            ("http2-node", "http2", "http2", [REVIEWS, RATINGS, REVIEWS]),
        ]:
            capture.client(name, kind, f"Node {node}", script + [mode, REVIEWS, RATINGS, str(PORT)], hosts, mode)
    else:
        capture.miss("node", "not found")

    if java := capture.version(["java", "--version"]):
        script = ["java", os.path.join(CLIENTS, "Client.java")]
        for name, kind, mode, hosts, say in [
            ("http1-java", "http1", "http1", [REVIEWS], "HttpClient, HTTP/1.1"),
            ("http1-java-url", "http1", "url", [REVIEWS], "HttpURLConnection"),
            ("h2c-java", "h2c", "http2", [REVIEWS, REVIEWS], "HttpClient, upgrade to HTTP/2, then a second request"),
            ("tls-java", "tls", "tls", [REVIEWS], "HttpClient"),
        ]:
            capture.client(name, kind, java, script + [mode, REVIEWS, str(PORT)], hosts, say)
    else:
        capture.miss("java", "not found")

    if tools.get("go"):
        version = capture.version(["go", "version"])
        for name, kind, mode, hosts, say in [
            ("http1-go", "http1", "http1", [REVIEWS, REVIEWS], "net/http, GET and POST on one connection"),
            ("tls-go", "tls", "tls", [REVIEWS], "net/http with a post-quantum key share"),
            ("http2-go", "http2", "http2", [REVIEWS, RATINGS, REVIEWS], "x/net/http2, two hosts on one connection"),
            ("http2-go-large", "http2", "http2-large", [REVIEWS], "x/net/http2, header fields that need CONTINUATION"),
            ("http2-grpc-go", "http2", "grpc", [REVIEWS, REVIEWS], "grpc-go, two calls"),
            ("http2-grpc-go-authority", "http2", "grpc-authority", [RATINGS], "grpc-go, authority set by the program"),
        ]:
            capture.client(name, kind, version, [tools["go"], mode, REVIEWS, RATINGS, str(PORT)], hosts, say)

    if nghttp := capture.version(["nghttp", "--version"]):
        url = f"http://{REVIEWS}:{PORT}/"
        capture.client("http2-nghttp", "http2", nghttp, ["nghttp", "-n", url], [REVIEWS], "prior knowledge, with priorities")
        capture.client("h2c-nghttp", "h2c", nghttp, ["nghttp", "-nu", url], [REVIEWS], "upgrade to HTTP/2")
        capture.client(
            "http2-nghttp-continuation", "http2", nghttp, ["nghttp", "-n", "--continuation", url], [REVIEWS],
            "large header fields in CONTINUATION",
        )
        capture.client(
            "http2-nghttp-padding", "http2", nghttp, ["nghttp", "-n", "-b", "32", url], [REVIEWS], "padded HEADERS"
        )
    else:
        capture.miss("nghttp", "not found (Debian: nghttp2-client)")


# Zone of both name servers: name, type, value.
ZONE = {
    "db.example.test": ["10.1.0.1"],
    "many.example.test": [f"10.3.{i // 200}.{i % 200 + 1}" for i in range(60)],
    "edge.cdn.test": ["10.2.0.1", "10.2.0.2"],
}
ALIASES = {"shop.example.test": "www.example.test", "www.example.test": "edge.cdn.test"}
ZONE_V6 = {"db.example.test": "2001:db8::1"}


def dnsmasq(work):
    with open(f"{work}/dnsmasq.hosts", "w") as file:
        file.writelines(f"{ip} {name}\n" for name, ips in ZONE.items() for ip in ips)
        file.writelines(f"{ip} {name}\n" for name, ip in ZONE_V6.items())
    aliases = [f"--cname={alias},{target}" for alias, target in ALIASES.items()]
    # -d: as the user that started it, who alone is known in this namespace.
    return ["dnsmasq", "-d", "-C", "/dev/null", "-h", "-R", "-p", str(DNS_PORT), "-a", "127.0.0.1", "-z", "--pid-file=",
            "--local=/test/", "--local=/local/", "--local-ttl=30", f"--addn-hosts={work}/dnsmasq.hosts"] + aliases


def named(work):
    zone = "$TTL 300\n@ SOA ns.test. admin.test. 1 3600 600 86400 60\n@ NS ns.test.\nns A 127.0.0.1\n"
    relative = lambda name: name.removesuffix(".test")
    zone += "".join(f"{relative(name)} A {ip}\n" for name, ips in ZONE.items() for ip in ips)
    zone += "".join(f"{relative(name)} AAAA {ip}\n" for name, ip in ZONE_V6.items())
    zone += "".join(f"{relative(alias)} 20 CNAME {target}.\n" for alias, target in ALIASES.items())
    with open(f"{work}/zone", "w") as file:
        file.write(zone)
    with open(f"{work}/named.conf", "w") as file:
        file.write(f'options {{ directory "{work}"; listen-on port {DNS_PORT} {{ 127.0.0.1; }}; listen-on-v6 {{ none; }};'
                   f' recursion no; pid-file none; session-keyfile none; minimal-responses no; }};\n'
                   f'controls {{ }};\nzone "test" {{ type primary; file "{work}/zone"; }};\n')
    return ["named", "-f", "-c", f"{work}/named.conf"]


def lasting(name):
    """Addresses by what the zone says."""
    while name in ALIASES:
        name = ALIASES[name]
    return sorted(ZONE.get(name, [])), sorted([ZONE_V6[name]] if name in ZONE_V6 else [])


def dns(capture, tools):
    resolver = Resolver()
    for server, command, version in [
        ("dnsmasq", dnsmasq(capture.work), ["dnsmasq", "--version"]),
        ("bind", named(capture.work), ["named", "-v"]),
    ]:
        version = capture.version(version)
        if version is None:
            capture.miss(server, "not found")
            continue
        version = " ".join(version.split("(")[0].split()[:3])
        running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            wait_for_tcp(DNS_PORT)
            lookups(capture, tools, resolver, server, version)
        finally:
            running.terminate()
            running.wait(10)


def lookups(capture, tools, resolver, server, version):
    glibc = [tools["python"], os.path.join(CLIENTS, "client.py"), "lookup"]
    stubs = [("glibc", glibc)]
    if tools.get("go"):
        stubs.append(("go", [tools["go"], "lookup"]))
    for label, name in [
        ("plain", "db.example.test"), ("chain", "shop.example.test"), ("nxdomain", "no.example.test"),
        ("many", "many.example.test"), ("search", "db.example.test.default.svc.cluster.local"),
    ]:
        for stub, command in stubs:
            capture.run(command + [name])
            v4, v6 = lasting(name)
            seen = set()
            for transport, answer in resolver.take():
                message = answer if transport == "udp" else answer[2:]
                asked = question_type(message)
                kind = {1: "a", 28: "aaaa"}[asked]
                # Resolvers ask again, and servers rotate their answers.
                if (transport, kind) in seen:
                    continue
                seen.add((transport, kind))
                truncated, code = bool(message[2] & 2), message[3] & 15
                addresses = v4 if asked == 1 else v6
                capture.write(
                    f"dns-{server}-{stub}-{label}-{kind}-{transport}", f"dns-{transport}", f"{version}, asked by {stub}",
                    answer, say=f"{name}, {kind.upper()}", hosts=[name], addresses=[] if truncated else addresses,
                    nxdomain=not truncated and code == 3, truncated=truncated,
                )


def question_type(message):
    at = 12
    while message[at]:
        at += 1 + message[at]
    return int.from_bytes(message[at + 1 : at + 3], "big")


def wait_for_tcp(port):
    for _ in range(200):
        try:
            return socket.create_connection(("127.0.0.1", port), 0.1).close()
        except OSError:
            time.sleep(0.05)
    raise SystemExit(f"nothing listens on port {port}")


def find_tools(work):
    """Builds what needs its modules from the network, before the network is gone."""
    tools = {"python": shutil.which(os.environ.get("CAPTURE_PYTHON", "python3"))}
    if shutil.which("go"):
        binary = os.path.join(work, "goclient")
        built = subprocess.run(["go", "build", "-trimpath", "-o", binary, "."], cwd=os.path.join(CLIENTS, "go"))
        if built.returncode == 0:
            tools["go"] = binary
    if "go" not in tools:
        print("    missing: go: not found, or its modules could not be had")
    return tools


def enter(out):
    """Goes on in namespaces of our own."""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="capture.") as work:
        tools = find_tools(work)
        unshare = ["unshare", "--map-root-user", "--net", "--mount", "--uts", "--"]
        inner = [sys.executable, os.path.abspath(__file__), "--inside", work, json.dumps(tools), out]
        environment = {key: os.environ[key] for key in ("PATH",) if key in os.environ}
        environment |= {"HOME": work, "LC_ALL": "C.UTF-8"}
        raise SystemExit(subprocess.run(unshare + inner, env=environment).returncode)


def inside(work, tools, out):
    socket.sethostname("client")
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    for target, text in [
        ("/etc/hosts", f"127.0.0.1 localhost client {REVIEWS} {RATINGS} {DETAILS}\n"),
        ("/etc/resolv.conf", "nameserver 127.0.0.1\noptions timeout:1 attempts:1\n"),
        ("/etc/nsswitch.conf", "hosts: files dns\n"),
    ]:
        made = os.path.join(work, os.path.basename(target))
        with open(made, "w") as file:
            file.write(text)
        subprocess.run(["mount", "--bind", made, target], check=True)
    capture = Capture(out, work)
    http1_and_tls(capture, tools)
    dns(capture, tools)
    write_list(os.path.join(out, "samples.json"), capture.samples)
    print(f"    {len(capture.samples)} samples; missing: {', '.join(capture.missing) or 'none'}")


def write_list(path, samples):
    """Samples of clients that were missing this time stay."""
    by_file = {}
    if os.path.exists(path):
        with open(path) as file:
            by_file = {sample["file"]: sample for sample in json.load(file)}
    by_file |= {sample["file"]: sample for sample in samples}
    lines = ",\n".join("  " + json.dumps(by_file[file]) for file in sorted(by_file))
    with open(path, "w") as file:
        file.write(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    if sys.argv[1] == "--inside":
        inside(sys.argv[2], json.loads(sys.argv[3]), sys.argv[4])
    else:
        enter(os.path.abspath(sys.argv[1]))
