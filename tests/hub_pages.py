"""The pages of the Hub in `hub_server`: what the client of huggingface_hub asks for, and what it is told."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import socket
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote, urlsplit

if TYPE_CHECKING:
    from kdzoo.tests.hub_server import Hub

LARGE = (".onnx", ".safetensors", ".npz", ".engine")  # what `.gitattributes` gives to git-lfs
WRITER, READER = "hf_writer", "hf_reader"


@dataclass
class Repository:
    """Commits by id, each with all its files; branches and tags."""

    private: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    pulls: int = 0

    def commit(self, files: dict[str, bytes], branch: str) -> str:
        oid = hashlib.sha1(f"{len(self.commits)} {sorted(files)}".encode()).hexdigest()
        self.commits[oid] = files
        self.branches[branch] = oid
        return oid

    def find(self, revision: str) -> str | None:
        return self.branches.get(revision) or self.tags.get(revision) or (revision if revision in self.commits else None)


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    range: str | None
    token: str | None


def git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def is_large(path: str) -> bool:
    return path.endswith(LARGE)


def etag(path: str, content: bytes) -> str:
    return hashlib.sha256(content).hexdigest() if is_large(path) else git_oid(content)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def respond(self, status: int, body: Any = None, headers: dict[str, str] | None = None) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body if body is not None else {}).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), "Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def refuse(self, status: int, code: str = "", message: str = "") -> None:
        self.respond(
            status, {"error": message or code}, {k: v for k, v in (("X-Error-Code", code), ("X-Error-Message", message)) if v}
        )

    def answer(self) -> None:
        url = urlsplit(self.path)
        path, self.query = unquote(url.path), parse_qs(url.query)
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
        self.server.log.append(Request(self.command, path, self.headers.get("Range"), token))
        for pattern, status, headers, times in self.server.failures:
            if times[0] > 0 and re.search(pattern, f"{self.command} {path}"):
                times[0] -= 1
                self.respond(status, {"error": "on demand"}, headers)
                return
        if token not in (None, WRITER, READER):
            self.refuse(401, message="Invalid credentials in Authorization header")
            return
        self.token = token
        for pattern, method in ROUTES:
            if found := re.fullmatch(pattern, f"{self.command} {path}"):
                getattr(self, method)(**found.groupdict())
                return
        self.refuse(404, message=f"no such page: {path}")

    do_GET = do_HEAD = do_POST = do_PUT = answer

    def repository(self, repo: str, *, write: bool = False) -> Repository | None:
        """The repository; where the token may not see or change it, the answer is sent and None is given."""
        found = self.server.repositories.get(repo)
        if found is None or (found.private and self.token is None):
            self.refuse(404 if self.token else 401, "RepoNotFound", "Repository not found")
            return None
        if write and self.token != WRITER:
            self.refuse(403 if self.token else 401, message="You don't have the rights to write here")
            return None
        return found

    def revision(self, repo: str, rev: str, **rights: bool) -> tuple[Repository, str] | None:
        found = self.repository(repo, **rights)
        if found is None:
            return None
        oid = found.find(rev)
        if oid is None:
            self.refuse(404, "RevisionNotFound", f"Invalid rev id: {rev}")
            return None
        return found, oid

    def create(self) -> None:
        asked = json.loads(self.body)
        repo = f"{asked['organization']}/{asked['name']}"
        if self.token != WRITER:
            self.refuse(403 if self.token else 401, message="You don't have the rights to create a model here")
        elif repo in self.server.repositories:
            self.respond(409, {"error": "You already created this model repo", "url": f"{self.server.url}/{repo}"})
        else:
            self.server.add(
                repo, {".gitattributes": b""}, private=asked.get("visibility") == "private" or asked.get("private", False)
            )
            self.respond(200, {"url": f"{self.server.url}/{repo}", "id": repo, "name": repo})

    def validate_yaml(self) -> None:
        assert json.loads(self.body)["content"].startswith("---\n"), "a card without front matter"
        self.respond(200, {"errors": [], "warnings": []})

    def info(self, repo: str, rev: str = "main") -> None:
        if found := self.revision(repo, rev or "main"):
            repository, oid = found
            siblings = [{"rfilename": name} for name in repository.commits[oid]]
            facts = {"_id": "0", "id": repo, "modelId": repo, "sha": oid, "private": repository.private, "siblings": siblings}
            self.respond(200, {**facts, "tags": [], "downloads": 0, "likes": 0})

    def tree(self, repo: str, rev: str) -> None:
        if found := self.revision(repo, rev):
            rows = []
            for name, content in found[0].commits[found[1]].items():
                rows.append({"type": "file", "path": name, "size": len(content), "oid": git_oid(content)})
                if is_large(name):
                    rows[-1]["lfs"] = {"oid": etag(name, content), "size": len(content), "pointerSize": 130}
            self.respond(200, rows)

    def preupload(self, repo: str, rev: str) -> None:
        if found := self.revision(repo, rev, write="create_pr" not in self.query):
            files = []
            for asked in json.loads(self.body)["files"]:
                name, old = asked["path"], found[0].commits[found[1]].get(asked["path"])
                mode = "lfs" if is_large(name) else "regular"
                files.append({"path": name, "uploadMode": mode, "shouldIgnore": False, "oid": etag(name, old) if old else None})
            self.respond(200, {"files": files})

    def batch(self, repo: str) -> None:
        objects = []
        for asked in json.loads(self.body)["objects"]:
            facts = {"oid": asked["oid"], "size": asked["size"]}
            if asked["oid"] not in self.server.large:
                facts["actions"] = {"upload": {"href": f"{self.server.url}/lfs/{asked['oid']}", "header": {}}}
            objects.append(facts)
        self.respond(200, {"transfer": "basic", "objects": objects})

    def upload(self, oid: str) -> None:
        assert hashlib.sha256(self.body).hexdigest() == oid, "an upload that is not what was announced"
        self.server.large[oid] = self.body
        self.respond(200)

    def commit(self, repo: str, rev: str) -> None:
        pull_request = "create_pr" in self.query
        found = self.revision(repo, rev, write=not pull_request)
        if not found:
            return
        repository, head = found
        files = dict(repository.commits[head])
        for line in map(json.loads, self.body.splitlines()):
            key, value = line["key"], line["value"]
            if key == "header" and value.get("parentCommit", head) != head:
                self.refuse(412, message="A commit has happened since. Please refresh and try again.")
                return
            if key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                files[value["path"]] = self.server.large[value["oid"]]
            elif key == "deletedFile":
                del files[value["path"]]
        facts: dict[str, Any] = {"success": True}
        if pull_request:
            repository.pulls += 1
            rev = f"refs/pr/{repository.pulls}"
            facts["pullRequestUrl"] = f"{self.server.url}/{repo}/discussions/{repository.pulls}"
        facts["commitOid"] = repository.commit(files, rev)
        self.respond(200, {**facts, "commitUrl": f"{self.server.url}/{repo}/commit/{facts['commitOid']}"})

    def name(self, repo: str, kind: str, rev: str) -> None:
        """A tag of a revision, or a branch that begins at `main`."""
        found = self.revision(repo, rev if kind == "tag" else "main", write=True)
        if not found:
            return
        names, name = (found[0].tags, json.loads(self.body)["tag"]) if kind == "tag" else (found[0].branches, rev)
        if name in names:
            self.refuse(409, message=f"{kind} {name} exists")
        else:
            names[name] = found[1]
            self.respond(200)

    def resolve(self, repo: str, rev: str, name: str) -> None:
        found = self.revision(repo, rev)
        if not found:
            return
        content, commit = found[0].commits[found[1]].get(name), {"X-Repo-Commit": found[1]}
        if content is None:
            self.respond(404, {"error": "Entry not found"}, {**commit, "X-Error-Code": "EntryNotFound"})
        elif is_large(name):
            oid = etag(name, content)
            place = f"http://localhost:{self.server.server_port}/cdn/{oid}/{name}"  # another host: no token may go there
            linked = {"Location": place, "X-Linked-Etag": f'"{oid}"', "X-Linked-Size": str(len(content))}
            self.respond(302, b"", {**commit, **linked})
        else:
            self.send_file(name, content, {**commit, "ETag": f'"{etag(name, content)}"'})

    def cdn(self, oid: str, name: str) -> None:
        self.send_file(name, self.server.large[oid], {"ETag": f'"{oid}"'})

    def send_file(self, name: str, content: bytes, headers: dict[str, str]) -> None:
        size, start = len(content), 0
        if self.command == "GET" and name in self.server.flips:
            content = content[: size // 2] + bytes([content[size // 2] ^ 1]) + content[size // 2 + 1 :]
        if asked := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or ""):
            start = int(asked[1])
            headers["Content-Range"] = f"bytes {start}-{size - 1}/{size}"
        end = size
        if self.command == "GET" and self.server.cuts.get(name):
            end = self.server.cuts[name].pop(0)
        self.send_response(206 if asked else 200)
        for key, value in {**headers, "Content-Length": str(size - start), "Accept-Ranges": "bytes"}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        self.wfile.write(content[start : max(end, start)])
        if end < size:
            self.wfile.flush()
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)


REPO = r"(?P<repo>[^/]+/[^/]+)"
ROUTES = [
    (r"POST /api/repos/create", "create"),
    (r"POST /api/validate-yaml", "validate_yaml"),
    (rf"GET /api/models/{REPO}(/revision/(?P<rev>.+))?", "info"),
    (rf"GET /api/models/{REPO}/tree/(?P<rev>[^/]+)", "tree"),
    (rf"POST /api/models/{REPO}/preupload/(?P<rev>.+)", "preupload"),
    (rf"POST /api/models/{REPO}/commit/(?P<rev>.+)", "commit"),
    (rf"POST /api/models/{REPO}/(?P<kind>tag|branch)/(?P<rev>.+)", "name"),
    (rf"POST /{REPO}\.git/info/lfs/objects/batch", "batch"),
    (r"PUT /lfs/(?P<oid>\w+)", "upload"),
    (r"(?:GET|HEAD) /cdn/(?P<oid>\w+)/(?P<name>.+)", "cdn"),
    (rf"(?:GET|HEAD) /{REPO}/resolve/(?P<rev>refs/pr/\d+|[^/]+)/(?P<name>.+)", "resolve"),
]
