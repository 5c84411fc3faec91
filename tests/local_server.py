"""A web server on this machine that can behave badly.

No test: tests and notebooks use it."""
import contextlib
import threading
import time
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Handler(BaseHTTPRequestHandler):
    "Answers as its server is told."
    def log_message(self, *_): pass

    def redirect(self, to):
        self.send_response(302)
        self.send_header("Location", to)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_GET(self):
        server, name = self.server, self.path.rsplit("/", 1)[-1]
        server.asked.append((self.path, dict(self.headers)))
        time.sleep(server.hang)
        if self.path.startswith("/loop/"): return self.redirect(self.path)
        if self.path.startswith("/moved/"): return self.redirect(f"/{name}")
        if self.path.startswith("/away/"): return self.redirect(f"ftp://127.0.0.1/{name}")
        if name not in server.files: return self.send_error(404)
        content, start = server.files[name], 0
        tag = f'"{sha256(content).hexdigest()[:16]}"'
        wanted = self.headers.get("Range")
        if wanted and server.ranges and (server.careless or self.headers.get("If-Range") == tag):
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
        if start > len(content): return self.send_error(416)
        self.send_response(206 if start else server.status)
        if start: self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        if server.tags: self.send_header("ETag", tag)
        if server.length: self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        with contextlib.suppress(OSError):    # nobody listens any more
            stop = len(content) if server.cut is None else server.cut
            for i in range(start, stop, server.piece):
                self.wfile.write(content[i:min(i + server.piece, stop)])
                time.sleep(server.pause)
            if server.stall and server.cut is not None: server.over.wait(server.stall)


@contextlib.contextmanager
def serve(files,        # {name: bytes}
          **how,        # what is set of the attributes below
         ):
    "Within the block a server answers; `asked` are the paths and headers of the requests."
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads, server.block_on_close = True, False
    server.files, server.asked, server.over = dict(files), [], threading.Event()
    server.ranges, server.tags, server.length = True, True, True    # what it knows of
    server.status = 200    # of a whole file
    server.careless = False    # it heeds `Range` alone, and not `If-Range`
    server.cut, server.stall = None, 0.    # bytes after which it is silent; seconds from there to its end
    server.hang, server.pause, server.piece = 0., 0., 2**16    # seconds before it answers, and between pieces
    vars(server).update(how)
    server.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs=dict(poll_interval=.01), daemon=True)
    thread.start()
    try: yield server
    finally:
        server.over.set()
        server.shutdown()
        server.server_close()
