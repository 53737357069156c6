"""A small hub of Hugging Face's kind on this machine: one repository, and a record of what was asked for."""

import contextlib
import hashlib
import http.server
import json
import re
import threading
from urllib.parse import unquote, urlsplit

COMMITS = {"main": "a" * 40, "v1": "b" * 40}


class Hub:
    """What it has, and what it was asked.

    Parameters
    ----------
    files : dict
        Of each revision: paths to bytes.
    token : str, optional
        Without it nobody gets anything.
    """

    def __init__(self, files, token=None):
        self.files, self.token = files, token
        self.asked = []  # (method, path, authorization)

    def revision(self, name):
        return next((one for one, commit in COMMITS.items() if name in (one, commit) and one in self.files), None)

    def got(self):
        """The files whose content was sent."""
        return sorted(path.split("/resolve/")[1].split("/", 1)[1] for method, path, _ in self.asked
                      if method == "GET" and "/resolve/" in path)  # fmt: skip


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.answer()

    def do_GET(self):
        self.answer()

    def answer(self):
        hub, path = self.server.hub, unquote(urlsplit(self.path).path)
        hub.asked.append((self.command, path, self.headers.get("Authorization")))
        if hub.token is not None and self.headers.get("Authorization") != f"Bearer {hub.token}":
            return self.send(401, b"", {"X-Error-Code": "GatedRepo", "X-Error-Message": "log in"})
        if found := re.fullmatch(r"/api/models/somebody/a-model(?:/revision/([^/]+))?", path):
            revision = hub.revision(found[1] or "main")
            if revision is None:
                return self.send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
            said = {"id": "somebody/a-model", "modelId": "somebody/a-model", "sha": COMMITS[revision],
                    "siblings": [{"rfilename": name} for name in hub.files[revision]]}  # fmt: skip
            return self.send(200, json.dumps(said).encode(), {"Content-Type": "application/json"})
        if found := re.fullmatch(r"/api/models/somebody/a-model/tree/([^/]+)", path):
            said = [{"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                    for name, content in hub.files[hub.revision(found[1])].items()]  # fmt: skip
            return self.send(200, json.dumps(said).encode(), {"Content-Type": "application/json"})
        if found := re.fullmatch(r"/somebody/a-model/resolve/([^/]+)/(.+)", path):
            revision = hub.revision(found[1])
            if revision is not None and found[2] in hub.files[revision]:
                content = hub.files[revision][found[2]]
                return self.send(200, content, {"ETag": f'"{hashlib.sha256(content).hexdigest()}"',
                                                "X-Repo-Commit": COMMITS[revision]})  # fmt: skip
            return self.send(404, b"", {"X-Error-Code": "EntryNotFound"})
        return self.send(404, b"", {"X-Error-Code": "RepoNotFound"})

    def send(self, status, content, headers):
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)


@contextlib.contextmanager
def serving(files, token=None):
    """A hub at an address of this machine, for as long as the ``with`` lasts."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.hub = Hub(files, token)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", server.hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
