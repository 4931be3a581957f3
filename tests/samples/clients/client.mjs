// Node's HTTP, TLS and HTTP/2 clients: client.mjs MODE HOST OTHER-HOST PORT.
import http from "node:http";
import http2 from "node:http2";
import tls from "node:tls";

const [mode, host, other, port] = process.argv.slice(2);

if (mode === "http") {
  http.get({ host, port, path: "/reviews/0", agent: false }, (response) => response.resume());
} else if (mode === "fetch") {
  await fetch(`http://${host}:${port}/reviews/0`).then((response) => response.text());
  process.exit();
} else if (mode === "tls") {
  tls.connect({ host, port, servername: host }).on("error", () => {});
} else if (mode === "http2") {
  const session = http2.connect(`http://${host}:${port}`);
  for (const authority of [host, other, host]) {
    await new Promise((resolve) => {
      const request = session.request({ ":path": "/", ":authority": `${authority}:${port}` });
      request.on("close", resolve).resume().end();
    });
  }
  session.close();
}
