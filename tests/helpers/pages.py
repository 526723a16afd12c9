"""Pages of an attacker: where they may lie, and all that a script in one can do with an address that is not its own."""

from __future__ import annotations

import datetime
import ipaddress
import json
import ssl
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.helpers.chromium import Browser, Page

EVIL, REBOUND = "evil.example", "rebound.example"
"""Names of the attacker; REBOUND he has pointed at this host, so that pages of that name have the target's port."""


class _Pages(BaseHTTPRequestHandler):
    """Any address is an empty page; /to?URL sends the browser on, body and all."""

    def _answer(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path, _, target = self.path.partition("?")
        self.send_response(307 if path == "/to" else 200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Access-Control-Allow-Origin", "*")
        if path == "/to":
            self.send_header("Location", target)
        self.end_headers()
        self.wfile.write(b"<!doctype html><title>attacker</title><body>a page of the attacker")

    do_GET = do_POST = do_PUT = _answer  # noqa: N815

    def log_message(self, *_: object) -> None:
        """Quiet."""


@dataclass(frozen=True)
class Attacker:
    """Ports of his web server."""

    http: int
    https: int


@contextmanager
def attacker(folder: Path) -> Iterator[Attacker]:
    plain, secure = (ThreadingHTTPServer(("127.0.0.1", 0), _Pages) for _ in range(2))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(_certificate(folder))
    secure.socket = context.wrap_socket(secure.socket, server_side=True)
    threads = [threading.Thread(target=server.serve_forever, args=(0.02,)) for server in (plain, secure)]
    for thread in threads:
        thread.start()
    try:
        yield Attacker(plain.server_address[1], secure.server_address[1])
    finally:
        for server, thread in zip((plain, secure), threads, strict=True):
            server.shutdown()
            thread.join()
            server.server_close()


def _certificate(folder: Path) -> Path:
    """A key and a certificate that nobody signed."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, EVIL)])
    names = x509.SubjectAlternativeName([x509.DNSName(EVIL), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(names, critical=False)
        .sign(key, hashes.SHA256())
    )
    path = folder / "attacker.pem"
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(secret + made.public_bytes(serialization.Encoding.PEM))
    return path


PLACES = (
    *("another port", "another name of this host", "another site", "another site, encrypted", "rebound name"),
    *("sandboxed frame", "data: address"),
)


@contextmanager
def page_at(browser: Browser, place: str, attacker: Attacker, target_port: int) -> Iterator[Page]:
    """A page of the attacker. In a sandboxed frame `Page.run` runs in the page around it; see `attack`."""
    urls = {
        "another port": f"http://127.0.0.1:{attacker.http}/",
        "another name of this host": f"http://localhost:{attacker.http}/",
        "another site, encrypted": f"https://{EVIL}:{attacker.https}/",
        # A page that was loaded before the name was pointed here; only its address matters to a browser.
        "rebound name": f"http://{REBOUND}:{target_port}/nothing-there",
        "data: address": "data:text/html,<title>attacker</title>",
    }
    with browser.page() as page:
        if place == "rebound name":
            page.call("Page.setBypassCSP", enabled=True)
        page.open(urls.get(place, f"http://{EVIL}:{attacker.http}/"))
        yield page


_TOOLS = """
const seen = [];
const note = (what) => { seen.push(String(what)); };
const wait = (ms) => new Promise((done) => setTimeout(done, ms));
const text = async (answer) => { note(answer.status + ' ' + answer.type); note(await answer.text().catch(String)); };
const element = (tag, fields) => new Promise((done) => {
  const made = Object.assign(document.createElement(tag), fields);
  made.onload = () => { note(tag + ' loaded'); try { note(made.contentDocument.body.innerText) } catch (e) {} done(); };
  made.onerror = () => done();
  document.body.append(made);
  setTimeout(done, 700);
});
const form = (action, enctype, fields) => {
  const frame = Object.assign(document.createElement('iframe'), {name: 'f' + Math.random()});
  const made = Object.assign(document.createElement('form'), {action, enctype, method: 'POST', target: frame.name});
  for (const [name, value] of Object.entries(fields)) {
    made.append(Object.assign(document.createElement('input'), {type: 'hidden', name, value}));
  }
  document.body.append(frame, made);
  made.submit();
  return wait(400);
};
const send = (url, options) => fetch(url, options).then(text, note);
const plain = {method: 'POST', mode: 'no-cors', credentials: 'include'};
const JSON_TYPE = 'application/json';
const blank = new Blob([BODY]);
const parts = new FormData();
parts.append('x', blank);
"""

WRITES = {
    "simple POST": "send(U + PATH, {...plain, body: BODY})",
    "simple POST that says JSON": "send(U + PATH, {...plain, headers: {'Content-Type': JSON_TYPE}, body: BODY})",
    "POST of no type": "send(U + PATH, {...plain, body: blank})",
    "POST that outlives the page": "send(U + PATH, {...plain, keepalive: true, body: BODY})",
    "POST of JSON": "send(U + PATH, {method: 'POST', headers: {'Content-Type': JSON_TYPE}, body: BODY})",
    "POST of fields": "send(U + PATH, {...plain, body: new URLSearchParams({x: BODY})})",
    "POST of parts": "send(U + PATH, {...plain, body: parts})",
    "POST sent on": "send(AWAY + U + PATH, {...plain, body: BODY})",
    "beacon": "(navigator.sendBeacon(U + PATH, BODY), wait(200))",
    "beacon of no type": "(navigator.sendBeacon(U + PATH, blank), wait(200))",
    "old request": "(() => { const x = new XMLHttpRequest(); x.open('POST', U + PATH); x.withCredentials = true;"
    " x.onload = () => note(x.responseText); x.send(BODY); return wait(300) })()",
    "form": "form(U + PATH, 'application/x-www-form-urlencoded', {x: BODY})",
    "form of parts": "form(U + PATH, 'multipart/form-data', {x: BODY})",
    "form that reads as JSON": "form(U + PATH, 'text/plain', {[BODY.slice(0, -1) + ',\"x\":\"']: '\"}'})",
    "pause": "send(U + '/v1/jobs/' + JOB + '/pause', plain)",
    "cancel": "send(U + '/v1/jobs/' + JOB + '/cancel', plain)",
    "cancel by form": "form(U + '/v1/jobs/' + JOB + '/cancel', 'text/plain', {})",
    "cancel by beacon": "(navigator.sendBeacon(U + '/v1/jobs/' + JOB + '/cancel'), wait(200))",
    "DELETE": "send(U + '/v1/jobs/' + JOB, {method: 'DELETE'})",
    "PATCH": "send(U + '/v1/jobs/' + JOB, {method: 'PATCH', headers: {'Content-Type': 'application/json',"
    " 'If-Match': '*'}, body: '{\"priority\": 9}'})",
    "PUT of a package": "send(U + '/v1/packages/' + '0'.repeat(64), {method: 'PUT', body: BODY})",
    "PUT of a secret": "send(U + '/v1/secrets/EVIL', {method: 'PUT', body: '{\"value\": \"x\"}'})",
    "POST for a token": 'send(U + \'/v1/tokens\', {...plain, body: \'{"owner": "evil", "scopes": ["admin"]}\'})',
    "word of a worker": "send(U + '/internal/v1/attempts/' + JOB + '-1/heartbeat', {...plain, body: '{}'})",
}
READS = {
    "GET": "send(U + READ)",
    "GET with a password": "send(U + READ, {credentials: 'include', headers: {Authorization: 'Bearer x'}})",
    "simple GET": "send(U + READ, {mode: 'no-cors'})",
    "GET sent on": "send(AWAY + U + READ)",
    "HEAD": "send(U + READ, {method: 'HEAD'})",
    "picture": "element('img', {src: U + READ})",
    "script": "element('script', {src: U + READ})",
    "module": "element('script', {type: 'module', src: U + READ})",
    "frame": "element('iframe', {src: U + READ})",
    "docs in a frame": "element('iframe', {src: U + '/docs'})",
    "style sheet": "element('link', {rel: 'stylesheet', href: U + READ})",
    "preload": "element('link', {rel: 'preload', as: 'fetch', crossOrigin: 'anonymous', href: U + READ})",
    "object": "element('object', {data: U + READ})",
    "video": "element('video', {src: U + READ})",
    "events": "(() => { const e = new EventSource(U + '/v1/jobs/' + JOB + '/events'); e.onopen = () => note('opened');"
    " for (const kind of ['event', 'message']) e.addEventListener(kind, (m) => note(m.data));"
    " return wait(500).then(() => e.close()) })()",
    "socket": "(() => { const w = new WebSocket(U.replace('http', 'ws') + READ); w.onopen = () => note('opened');"
    " w.onmessage = (m) => note(m.data); return wait(300) })()",
    "worker": "(() => { const w = new Worker(URL.createObjectURL(new Blob(['try { importScripts(' + JSON.stringify(U +"
    " READ) + '); postMessage(\"loaded\") } catch (e) { postMessage(String(e)) }'])));"
    " w.onmessage = (m) => note(m.data); return wait(400) })()",
    "window": "(() => { const w = window.open(U + READ); return wait(900).then(() => {"
    " try { note(w.document.body.innerText) } catch (e) { note(e) } w && w.close() }) })()",
    "metrics": "send(U + '/metrics')",
    "document": "send(U + '/openapi.json')",
}


@dataclass(frozen=True)
class Target:
    """url: of the service. path, body: where it takes a command, named STEP. read: what is nobody else's. job: one."""

    url: str
    path: str
    body: str
    read: str
    job: str


def attack(page: Page, place: str, attacker: Attacker, target: Target, steps: Mapping[str, str]) -> dict[str, str]:
    """Run WRITES or READS in the page, all at once: what the script of each got to see."""
    names = {"PATH": target.path, "READ": target.read, "JOB": target.job, "U": target.url}
    names["AWAY"] = f"http://{EVIL}:{attacker.http}/to?"
    if place == "rebound name":  # its own address is the target's
        names["U"] = f"http://{REBOUND}:{target.url.rsplit(':', 1)[1]}"
    shared = "".join(f"const {name} = {json.dumps(value)};" for name, value in names.items())
    parts = [
        f"(async () => {{ const BODY = {json.dumps(target.body.replace('STEP', kind))}; {_TOOLS} await ({step});"
        f" return [{json.dumps(kind)}, seen.join(' ')] }})()"
        for kind, step in steps.items()
    ]
    script = f"(async () => {{ {shared} return Object.fromEntries(await Promise.all([{','.join(parts)}])) }})()"
    return dict(page.run(_in_frame(script) if place == "sandboxed frame" else script))


def _in_frame(script: str) -> str:
    told = "(seen) => parent.postMessage(seen, '*')"
    document = (
        f"<body><script>{script}.then({told}, (error) => parent.postMessage({{error: String(error)}}, '*'))</script>"
    )
    return f"""new Promise((done) => {{
      addEventListener('message', (message) => done(message.data), {{once: true}});
      const frame = document.createElement('iframe');
      frame.sandbox = 'allow-scripts allow-forms allow-popups';
      frame.srcdoc = {json.dumps(document)};
      document.body.replaceChildren(frame);
      setTimeout(() => done({{error: 'silent'}}), 20000);
    }})"""
