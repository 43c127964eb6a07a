"""A Hub on this machine: the part of the HTTP API that `huggingface_hub` uses for models, with faults on demand."""

from __future__ import annotations

import hashlib
import json
import re
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from typing import Any
from urllib.parse import unquote, urlsplit

from hub_repositories import Blob, HubRepository, Refusal

USERS = {"hf_writer": ("alice", "write"), "hf_reader": ("bob", "read")}
"""Tokens that this Hub knows, with the user and what they may do."""

_IDLE = "/api/agent-harnesses"
"""A request of the client that has nothing to do with repositories; it does well without an answer."""

_NAME = r"(?P<repo>[\w.-]+/[\w.-]+)"


@dataclass
class Fault:
    """What the server does in place of answering the requests whose line matches `pattern`, the first `times` times."""

    pattern: str
    """Regular expression, searched in "METHOD /path"."""

    status: int | None = None
    """Answer with this status; None breaks the connection."""

    after_bytes: int = 0
    """How much of an upload is read, or of a download is sent, before the connection breaks."""

    times: int = 10**9
    message: str = "out of order"
    after_effect: bool = False
    """Do what was asked for, and only then fail: the client does not learn that it was done."""


@dataclass
class LocalHub:
    """The state of the server; tests read and change it directly."""

    repositories: dict[str, HubRepository] = field(default_factory=dict[str, HubRepository])
    faults: list[Fault] = field(default_factory=list[Fault])
    requests: list[str] = field(default_factory=list[str])
    """Lines "METHOD /path" of all requests, in order."""

    unknown: list[str] = field(default_factory=list[str])
    """Requests that this server has no answer for: it has to learn them."""

    n_failed: int = 0
    """Requests that ran into a fault."""

    uploaded_bytes: int = 0
    endpoint: str = ""
    lock: Lock = field(default_factory=Lock)

    def add(self, name: str, files: dict[str, bytes] | None = None, private: bool = False) -> HubRepository:
        """A repository with files that are there already."""
        repository = self.repositories[name] = HubRepository(name, private)
        for path, content in (files or {}).items():
            repository.tree("main")[path] = Blob(content, repository.mode(path, len(content)) == "lfs")
        return repository

    def fault(self, line: str) -> Fault | None:
        """The fault that this request runs into."""
        for fault in self.faults:
            if fault.times > 0 and re.search(fault.pattern, line):
                fault.times -= 1
                self.n_failed += 1
                return fault
        return None


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: LocalHub

    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_POST = do_PUT = do_GET

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing is printed; `LocalHub.requests` holds the lines."""

    # ------------------------------------------------------------------ one request
    def _answer(self) -> None:
        url = urlsplit(self.path)
        line = f"{self.command} {unquote(url.path)}"
        with self.hub.lock:
            self.hub.requests.append(line)
            fault = self.hub.fault(line)
        if fault is not None and not fault.after_effect:
            self._fail(fault)
            return
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length) if length else self._read_chunks()
        with self.hub.lock:
            try:
                if fault is not None:
                    self._route(url.path, body, send=False)
                    self._fail(fault)
                    return
                self._route(url.path, body)
            except Refusal as refusal:
                self._refuse(refusal)

    def _read_chunks(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return b""
        parts: list[bytes] = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _fail(self, fault: Fault) -> None:
        if fault.status is not None:
            self._drain()
            self._refuse(Refusal(fault.status, fault.message))
            return
        if fault.after_bytes and self.command == "PUT":
            self.rfile.read1(fault.after_bytes)
        elif fault.after_bytes and self.command == "GET":
            self.send_response(200)
            self.send_header("Content-Length", str(10 * fault.after_bytes))
            self.end_headers()
            self.wfile.write(b"\0" * fault.after_bytes)
            self.wfile.flush()
        # No goodbye: the other side sees a reset, as when a cable is pulled.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()

    def _drain(self) -> None:
        """Read what was sent, so that the client reads the answer and not a reset."""
        length = int(self.headers.get("Content-Length") or 0)
        if length:
            self.rfile.read(length)
        else:
            self._read_chunks()

    def _refuse(self, refusal: Refusal) -> None:
        headers = {"X-Error-Message": refusal.message}
        if refusal.code:
            headers["X-Error-Code"] = refusal.code
        self._send(refusal.status, {"error": refusal.message}, headers)

    def _send(self, status: int, value: Any, headers: dict[str, str] | None = None) -> None:
        content = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        headers = {"Content-Type": "application/json", "Content-Length": str(len(content)), **(headers or {})}
        for name, text in headers.items():
            self.send_header(name, text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    # ------------------------------------------------------------------ who asks
    def _user(self) -> tuple[str, str] | None:
        given = self.headers.get("Authorization", "")
        if not given:
            return None
        user = USERS.get(given.removeprefix("Bearer "))
        if user is None:
            raise Refusal(401, "Invalid credentials in Authorization header")
        return user

    def _writer(self, name: str) -> None:
        user = self._user()
        if user is None:
            raise Refusal(401, "Invalid username or password.")
        if user[1] != "write" or not name.startswith(f"{user[0]}/"):
            raise Refusal(403, "You don't have the rights to write to this repository")

    def _repository(self, name: str, write: bool = False) -> HubRepository:
        user = self._user()
        if write:
            self._writer(name)
        repository = self.hub.repositories.get(name)
        hidden = repository is not None and repository.private and (user is None or not name.startswith(f"{user[0]}/"))
        if repository is None or hidden:
            # The Hub does not say whether a private repository is there.
            status, message = (401, "Invalid username or password.") if user is None else (404, "Repository not found")
            raise Refusal(status, message, "RepoNotFound")
        return repository

    # ------------------------------------------------------------------ routes
    def _route(self, path: str, body: bytes, send: bool = True) -> None:
        for method, pattern, answer in _ROUTES:
            match = re.fullmatch(pattern, path) if self.command in method else None
            if match is not None:
                parts = {name: unquote(text or "") for name, text in match.groupdict().items()}
                status, value, headers = answer(self, parts, body)
                if send:
                    self._send(status, value, headers)
                return
        if path != _IDLE:
            self.hub.unknown.append(f"{self.command} {path}")
        raise Refusal(404, "This server does not know the request")

    def whoami(self, parts: dict[str, str], body: bytes) -> Any:
        user = self._user()
        if user is None:
            raise Refusal(401, "Invalid username or password.")
        return 200, {"type": "user", "name": user[0], "orgs": [], "auth": {"type": "access_token"}}, {}

    def create(self, parts: dict[str, str], body: bytes) -> Any:
        asked = json.loads(body)
        user = self._user()
        name = f"{asked.get('organization') or (user[0] if user else '')}/{asked['name']}"
        self._writer(name)
        url = f"{self.hub.endpoint}/{name}"
        if name in self.hub.repositories:
            raise Refusal(409, "You already created this model repo")
        self.hub.add(name, private=asked.get("private") is True or asked.get("visibility") == "private")
        return 200, {"url": url, "name": name, "id": name}, {}

    def validate(self, parts: dict[str, str], body: bytes) -> Any:
        return 200, {"errors": [], "warnings": []}, {}

    def info(self, parts: dict[str, str], body: bytes) -> Any:
        repository = self._repository(parts["repo"])
        sha = repository.resolve(parts.get("revision") or "main")
        siblings = [{"rfilename": path} for path in repository.commits[sha]]
        answer = {"_id": "0", "id": repository.name, "modelId": repository.name, "sha": sha, "siblings": siblings}
        return 200, {**answer, "private": repository.private, "tags": [], "downloads": 0, "likes": 0}, {}

    def refs(self, parts: dict[str, str], body: bytes) -> Any:
        branches = self._repository(parts["repo"]).branches
        listed = [{"name": name, "ref": f"refs/heads/{name}", "targetCommit": sha} for name, sha in branches.items()]
        return 200, {"branches": listed, "converts": [], "tags": [], "pullRequests": []}, {}

    def tree(self, parts: dict[str, str], body: bytes) -> Any:
        tree = self._repository(parts["repo"]).tree(parts["revision"])
        return 200, [blob.entry(path) for path, blob in tree.items()], {}

    def branch(self, parts: dict[str, str], body: bytes) -> Any:
        start = json.loads(body or b"{}").get("startingPoint") or "main"
        self._repository(parts["repo"], write=True).branch(parts["branch"], start)
        return 200, {}, {}

    def preupload(self, parts: dict[str, str], body: bytes) -> Any:
        repository = self._repository(parts["repo"], write=True)
        tree = repository.tree(parts["revision"])
        files: list[dict[str, Any]] = []
        for file in json.loads(body)["files"]:
            path = file["path"]
            answer = {"path": path, "uploadMode": repository.mode(path, file["size"]), "shouldIgnore": False}
            files.append({**answer, "oid": tree[path].etag} if path in tree else answer)
        return 200, {"files": files, "commitOid": repository.resolve(parts["revision"])}, {}

    def batch(self, parts: dict[str, str], body: bytes) -> Any:
        repository = self._repository(parts["repo"], write=True)
        objects: list[dict[str, Any]] = []
        for asked in json.loads(body)["objects"]:
            answer = {"oid": asked["oid"], "size": asked["size"], "authenticated": True}
            if asked["oid"] not in repository.large:
                base = f"{self.hub.endpoint}/storage/{repository.name}/{asked['oid']}"
                answer["actions"] = {"upload": {"href": base}, "verify": {"href": f"{base}/verify"}}
            objects.append(answer)
        return 200, {"transfer": "basic", "objects": objects}, {"Content-Type": "application/vnd.git-lfs+json"}

    def store(self, parts: dict[str, str], body: bytes) -> Any:
        self.hub.uploaded_bytes += len(body)
        if hashlib.sha256(body).hexdigest() != parts["oid"]:
            raise Refusal(400, "The content does not have this hash")
        self.hub.repositories[parts["repo"]].large[parts["oid"]] = body
        return 200, b"", {}

    def verify(self, parts: dict[str, str], body: bytes) -> Any:
        if parts["oid"] not in self.hub.repositories[parts["repo"]].large:
            raise Refusal(404, "There is no such object")
        return 200, {}, {}

    def commit(self, parts: dict[str, str], body: bytes) -> Any:
        lines = [json.loads(line) for line in body.splitlines() if line]
        sha = self._repository(parts["repo"], write=True).commit(parts["revision"], lines)
        url = f"{self.hub.endpoint}/{parts['repo']}/commit/{sha}"
        return 200, {"success": True, "commitOid": sha, "commitUrl": url, "hookOutput": ""}, {}

    def resolve(self, parts: dict[str, str], body: bytes) -> Any:
        repository = self._repository(parts["repo"])
        blob = repository.blob(parts["revision"], parts["path"])
        headers = {"X-Repo-Commit": repository.resolve(parts["revision"]), "ETag": f'"{blob.etag}"'}
        if not blob.is_large:
            return self._ranged(blob.content, headers)
        # Another host name, as large files lie with another host: the client must not send its login there.
        place = f"{self.hub.endpoint.replace('127.0.0.1', 'localhost')}/cdn/{repository.name}/{blob.sha256}"
        linked = {"X-Linked-ETag": f'"{blob.etag}"', "X-Linked-Size": str(len(blob.content)), "Location": place}
        repository.large[blob.sha256] = blob.content
        return 302, b"", {**headers, **linked}

    def content(self, parts: dict[str, str], body: bytes) -> Any:
        if "Authorization" in self.headers:
            self.hub.unknown.append("a login sent to the host of large files")
        large = self.hub.repositories[parts["repo"]].large
        return self._ranged(large[parts["oid"]], {"ETag": f'"{parts["oid"]}"'})

    def _ranged(self, content: bytes, headers: dict[str, str]) -> Any:
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        headers = {**headers, "Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
        if asked is None:
            return 200, content, headers
        first, last = int(asked[1]), int(asked[2] or len(content) - 1)
        headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
        return 206, content[first : last + 1], headers


_Route = tuple[tuple[str, ...], str, Callable[[_Handler, dict[str, str], bytes], Any]]

_ROUTES: list[_Route] = [
    (("GET",), r"/api/whoami-v2", _Handler.whoami),
    (("POST",), r"/api/repos/create", _Handler.create),
    (("POST",), r"/api/validate-yaml", _Handler.validate),
    (("GET",), rf"/api/models/{_NAME}(/revision/(?P<revision>[^/]+))?", _Handler.info),
    (("GET",), rf"/api/models/{_NAME}/refs", _Handler.refs),
    (("GET",), rf"/api/models/{_NAME}/tree/(?P<revision>[^/]+)", _Handler.tree),
    (("POST",), rf"/api/models/{_NAME}/branch/(?P<branch>[^/]+)", _Handler.branch),
    (("POST",), rf"/api/models/{_NAME}/preupload/(?P<revision>[^/]+)", _Handler.preupload),
    (("POST",), rf"/api/models/{_NAME}/commit/(?P<revision>[^/]+)", _Handler.commit),
    (("POST",), rf"/{_NAME}\.git/info/lfs/objects/batch", _Handler.batch),
    (("PUT",), rf"/storage/{_NAME}/(?P<oid>\w+)", _Handler.store),
    (("POST",), rf"/storage/{_NAME}/(?P<oid>\w+)/verify", _Handler.verify),
    (("GET", "HEAD"), rf"/{_NAME}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", _Handler.resolve),
    (("GET", "HEAD"), rf"/cdn/{_NAME}/(?P<oid>\w+)", _Handler.content),
]


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is no event here."""


@contextmanager
def local_hub() -> Iterator[LocalHub]:
    """A Hub that answers at `hub.endpoint` while the block runs."""
    hub = LocalHub()
    server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
