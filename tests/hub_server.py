"""A stand-in for the Hugging Face hub on loopback: what is pushed to it can be loaded from it."""

import base64
import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

TOKEN = "hf_" + "a" * 34
COMMIT = "0" * 39 + "1"


class Hub(BaseHTTPRequestHandler):
    """The few calls of the hub's interface that creating, uploading and loading a model make."""

    protocol_version = "HTTP/1.1"

    @property
    def files(self):
        return self.server.repositories

    def log_message(self, *_):
        pass

    def answer(self, value, status=200, **headers):
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        headers = {"Content-Length": str(len(body)), "Content-Type": "application/json"} | headers
        for name, text in headers.items():
            self.send_header(name.replace("_", "-"), text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = urlsplit(self.path).path
        self.server.calls.append(("POST", path))
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.answer({"error": "Invalid credentials"}, 401)
        if path == "/api/validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('organization') or 'me'}/{asked['name']}"
            self.files.setdefault(name, {})
            return self.answer({"url": f"{self.server.address}/{name}", "name": name})
        _, _, _, owner, model, action, *_ = path.split("/")
        if action == "preupload":
            paths = [file["path"] for file in json.loads(body)["files"]]
            kinds = {"uploadMode": "regular", "shouldIgnore": False}
            return self.answer({"files": [{"path": each, **kinds} for each in paths]})
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                value = line["value"]
                self.files[f"{owner}/{model}"][value["path"]] = base64.b64decode(value["content"])
        url = f"{self.server.address}/{owner}/{model}/commit/{COMMIT}"
        return self.answer({"success": True, "commitOid": COMMIT, "commitUrl": url})

    def do_GET(self):
        path = unquote(urlsplit(self.path).path)
        self.server.calls.append((self.command, path))
        if path == "/api/whoami-v2":
            return self.answer({"name": "me", "type": "user", "auth": {}})
        if path.startswith("/api/models/"):
            owner, model, *rest = path.removeprefix("/api/models/").split("/")
            found = self.files.get(f"{owner}/{model}")
            if found is None or rest[:1] == ["tree"]:
                return self.answer({"error": "not found"}, 404, X_Error_Code="EntryNotFound")
            listed = [{"rfilename": name} for name in found]
            return self.answer({"id": f"{owner}/{model}", "sha": COMMIT, "siblings": listed})
        parts = path.strip("/").split("/", 4)
        if len(parts) < 5:
            return self.answer({"error": "not found"}, 404)
        owner, model, _, _, name = parts
        found = self.files.get(f"{owner}/{model}")
        if found is None:
            return self.answer({"error": "no repository"}, 404, X_Error_Code="RepoNotFound")
        if name not in found:
            headers = {"X_Error_Code": "EntryNotFound", "X_Repo_Commit": COMMIT}
            return self.answer({"error": "no file"}, 404, **headers)
        content = found[name]
        etag = hashlib.sha256(content).hexdigest()
        return self.answer(content, ETag=f'"{etag}"', X_Repo_Commit=COMMIT)

    def do_HEAD(self):
        self.do_GET()


@contextmanager
def hub_server():
    """A hub with no models; its ``repositories`` are ``{name: {path: bytes}}``."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.repositories, server.calls = {}, []
    server.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
