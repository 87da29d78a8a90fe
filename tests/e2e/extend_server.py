#!/usr/bin/env python3
"""A server on the loopback address that plays the services which extend prompts, and misbehaves on demand.

    extend_server.py [--tls CERTIFICATE KEY]      prints its port, serves until standard input is closed

The first part of a path chooses the behaviour, the rest is what the client appends:
    /ok/...           answers in the protocol of the path that follows
    /429/ID/N/...     N times status 429 (Retry-After: 1 for ID "asks", none otherwise), then as /ok
    /500/ID/N/...     N times status 500, then as /ok
    /slow/...         begins an answer and never ends it
    /cut/...          promises more bytes than it sends
    /silent/...       closes the connection without an answer
    /huge/...         an answer without end
    /text/...         200 with something that is not JSON;  /empty/, /blank/, /null/  JSON without a text
    /refuse/...       401, an error message that repeats the key;  /404/...
    /move/N/...       N redirects, then a picture;  /loop  for ever;  /away  to a file:// address
    /down/PORT        a redirect to http:// at another port
    /picture/...      a PNG;  /page  HTML
    /log              the requests seen so far, as JSON
"""
import json
import re
import struct
import sys
import threading
import time
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PATHS = {"/services/aigc/text-generation/generation": "dashscope-text",
         "/services/aigc/multimodal-generation/generation": "dashscope-picture",
         "/chat/completions": "openai"}
TEXT = "A long take.\nA red ball rolls “slowly” down a hill, 低角度。 "


def png(width=40, height=30):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    rows = b"".join(b"\0" + b"".join(bytes((x * 5 & 255, y * 7 & 255, 90)) for x in range(width))
                    for y in range(height))
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)) +
            chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    seen, counts, lock = [], {}, threading.Lock()

    def log_message(self, *args):
        pass

    def send(self, status, body, kind="application/json", **headers):
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        for k, v in headers.items():
            self.send_header(k.replace("_", "-"), str(v))
        self.end_headers()
        self.wfile.write(body)

    def answer(self, endpoint, text=TEXT):
        if endpoint == "openai":
            content = text if self.body["messages"][1]["content"] != "parts" else [{"type": "text", "text": text}]
            self.send(200, {"id": "x", "choices": [{"index": 0, "message": {"role": "assistant", "content": content},
                                                    "finish_reason": "stop"}]})
        elif endpoint:
            content = text if endpoint == "dashscope-text" else [{"text": text}]
            self.send(200, {"output": {"choices": [{"message": {"role": "assistant", "content": content}}]}})
        else:
            self.send(404, {"error": {"message": "no such endpoint: " + self.path}})

    def count(self, key):
        with self.lock:
            self.counts[key] = self.counts.get(key, 0) + 1
            return self.counts[key]

    def behave(self):
        parts = re.sub(r"^http://[^/]*", "", self.path).split("/")  # a proxy is given the whole address
        kind = parts[1]
        endpoint = next((v for k, v in PATHS.items() if self.path.split("?")[0].endswith(k)), None)
        if kind == "ok":
            self.answer(endpoint)
        elif kind == "echo":
            self.answer(endpoint, json.dumps([self.headers.get("Authorization"), self.path]))
        elif kind in ("429", "500"):
            if self.count(kind + parts[2]) <= int(parts[3]):
                asks = {"Retry_After": 1} if parts[2] == "asks" else {"Retry_After": 9999} if parts[2] == "far" else {}
                self.send(int(kind), {"code": "Throttling", "message": "please\x1b[31m wait"}, **asks)
            else:
                self.answer(endpoint)
        elif kind in ("slow", "cut"):
            self.send_response(200)
            self.send_header("Content-Length", "100000")
            self.end_headers()
            self.wfile.write(b'{"choices": [')
            self.wfile.flush()
            if kind == "slow":
                time.sleep(20)
            self.close_connection = True
        elif kind == "silent":
            self.close_connection = True
        elif kind == "huge":
            self.send_response(200)
            self.send_header("Connection", "close")
            self.end_headers()
            self.close_connection = True
            for _ in range(4096):
                self.wfile.write(b"x" * 65536)
        elif kind == "text":
            self.send(200, b"<html>not what you wanted</html>", "text/html")
        elif kind == "empty":
            self.send(200, {"choices": [], "output": {}})
        elif kind == "blank":
            self.answer(endpoint, " \n\t ")
        elif kind == "null":
            self.answer(endpoint, None)
        elif kind == "think":
            self.answer(endpoint, "<think>hm\n</think>\n\nA cat\x07 sits.")
        elif kind == "long":
            self.answer(endpoint, "猫" * 5000)
        elif kind == "refuse":
            self.send(401, {"error": {"message": "wrong key: " + (self.headers.get("Authorization") or "none")}})
        elif kind == "move":
            n = int(parts[2])
            self.send(302, b"", Location=f"/move/{n - 1}" if n > 1 else "/picture")
        elif kind == "moved":
            self.send(308, b"", Location="/ok" + self.path[len("/moved"):])
        elif kind == "loop":
            self.send(302, b"", Location="/loop")
        elif kind == "down":
            self.send(302, b"", Location=f"http://127.0.0.1:{parts[2]}/picture")
        elif kind == "away":
            self.send(302, b"", Location="file:///etc/hostname")
        elif kind == "picture":
            self.send(200, png(), "image/png")
        elif kind == "page":
            self.send(200, b"<html></html>", "image/png")
        elif kind == "log":
            with self.lock:
                self.send(200, list(self.seen))
        else:
            self.send(404, {"detail": "nothing here"})

    def handle_any(self):
        raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        try:
            self.body = json.loads(raw) if raw else None
        except ValueError:
            self.body = raw.decode(errors="replace")
        if self.path != "/log":
            with self.lock:
                self.seen.append({"method": self.command, "path": self.path, "headers": dict(self.headers),
                                  "body": self.body})
        try:
            self.behave()
        except (BrokenPipeError, ConnectionError, OSError):
            self.close_connection = True

    do_GET = do_POST = handle_any


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, address):  # clients that refuse our certificate hang up
        pass


def start(certificate=None, key=None):
    """A running server; .url is its base address."""
    server = Server(("127.0.0.1", 0), Handler)
    if certificate:
        import ssl
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    server.url = f"http{'s' if certificate else ''}://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


if __name__ == "__main__":
    tls = sys.argv[2:4] if len(sys.argv) == 4 and sys.argv[1] == "--tls" else ()
    print(start(*tls).server_address[1], flush=True)
    sys.stdin.read()
