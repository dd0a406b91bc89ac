"""A registry that only reads: it serves OCI layouts to a Docker engine, as `127.0.0.1:<port>/<name>`.

Invariant: it serves what is in its folder by digest, and knows no tags: whoever pulls has to name the digest.
"""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from images.build import Layout
from tests.hostagent.namespaces import inside


class Registry:
    """`asked` is every path that was asked for. `held` keeps blobs back until it is set, for a pull seen half-way.

    `private` are digests that nobody gets without a login; there is none.
    """

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.asked: list[str] = []
        self.private: set[str] = set()
        self.held = threading.Event()
        self.held.set()
        self.port = 0

    def reference(self, digest: str, name: str = "spawn/base") -> str:
        return f"127.0.0.1:{self.port}/{name}@{digest}"


@contextmanager
def serving(layout: Layout, network: str) -> Iterator[Registry]:
    """Serve this layout in that network, on a free port."""
    registry = Registry(layout)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            registry.asked.append(self.path)
            kind, _, digest = self.path.rpartition("/")
            if self.path == "/v2/":
                self._send(b"{}", "application/json")
                return
            if digest in registry.private:
                self._send(b'{"errors":[{"code":"UNAUTHORIZED"}]}', "application/json", status=401)
                return
            blob = layout.blob(digest)
            if not digest.startswith("sha256:") or not blob.exists():
                self._send(b'{"errors":[{"code":"MANIFEST_UNKNOWN"}]}', "application/json", status=404)
                return
            content = blob.read_bytes()
            if kind.endswith("/manifests"):
                self._send(content, json.loads(content)["mediaType"], digest=digest)
                return
            assert registry.held.wait(60)
            self._send(content, "application/octet-stream", digest=digest)

        def do_HEAD(self) -> None:
            self.do_GET()

        def _send(self, content: bytes, kind: str, *, status: int = 200, digest: str = "") -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            if digest:
                self.send_header("Docker-Content-Digest", digest)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with inside(network):
        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    registry.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, name="registry")
    thread.start()
    try:
        yield registry
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
