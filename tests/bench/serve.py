#!/usr/bin/env python3
"""Serves FOLDER for the benchmark, over HTTPS and, for tools that cannot be given a CA, over HTTP: files with ETags,
single ranges, and several in one request as zchunk asks for them. Counts the bytes of all bodies.

    serve.py FOLDER CERTIFICATE.pem KEY.pem    prints the HTTPS port and the HTTP port, then serves until it is stopped
    GET /.sent                                 the bytes sent since it was last asked
"""
import os
import re
import ssl
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

folder, certificate, key = sys.argv[1:]
folder = os.path.realpath(folder)
BOUNDARY = "fwupdate-bench"
counting = threading.Lock()
sent = 0


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self):
        if self.path == "/.sent":
            self.tell_sent()
            return
        path = os.path.realpath(os.path.join(folder, self.path.lstrip("/")))
        if not path.startswith(folder + os.sep) or not os.path.isfile(path):
            self.send_error(404)
            return
        size = os.path.getsize(path)
        ranges = self.ranges(size)
        headers = {"ETag": f'"{size:x}-{os.stat(path).st_mtime_ns:x}"', "Accept-Ranges": "bytes"}
        if ranges is None:
            parts = [(b"", 0, size)]
        elif len(ranges) == 1:
            (start, end), = ranges
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
            parts = [(b"", start, end)]
        else:
            headers["Content-Type"] = f"multipart/byteranges; boundary={BOUNDARY}"
            parts = [(f"\r\n--{BOUNDARY}\r\nContent-Type: application/octet-stream\r\n"
                      f"Content-Range: bytes {start}-{end - 1}/{size}\r\n\r\n".encode(), start, end)
                     for start, end in ranges] + [(f"\r\n--{BOUNDARY}--\r\n".encode(), 0, 0)]
        self.send_response(200 if ranges is None else 206)
        headers["Content-Length"] = str(sum(len(head) + end - start for head, start, end in parts))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        with open(path, "rb") as file:
            for head, start, end in parts:
                self.send(head)
                file.seek(start)
                while start < end:
                    part = file.read(min(1 << 18, end - start))
                    self.send(part)
                    start += len(part)

    def ranges(self, size):
        """The ranges asked for, as (start, end); None: the whole file."""
        asked = re.fullmatch(r"bytes=(\d+-\d*(?:, ?\d+-\d*)*)", self.headers.get("Range", ""))
        if not asked:
            return None
        pairs = [part.strip().split("-") for part in asked[1].split(",")]
        return [(int(first), min(int(last) + 1, size) if last else size) for first, last in pairs]

    def send(self, data):
        global sent
        self.wfile.write(data)
        with counting:
            sent += len(data)

    def tell_sent(self):
        global sent
        with counting:
            body, sent = str(sent).encode(), 0
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


plain = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
secure = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(certificate, key)
secure.socket = context.wrap_socket(secure.socket, server_side=True)
print(secure.server_port, plain.server_port, flush=True)
threading.Thread(target=plain.serve_forever, daemon=True).start()
secure.serve_forever()
