"""A small Hugging Face hub on the loopback interface, with a host of its own for large files, that misbehaves when told to."""
import contextlib
import hashlib
import json
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

LARGE = (".safetensors", ".bin", ".pt", ".h5", ".gguf")


def git_sha1(content):
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def etag(name, content):
    return hashlib.sha256(content).hexdigest() if name.endswith(LARGE) else git_sha1(content)


class Repo:
    """Files by commit, and commits by branch or tag."""

    def __init__(self, files, card=None):
        self.commits, self.refs, self.card = {}, {}, card
        self.push(files)

    def push(self, files, ref="main"):
        commit = hashlib.sha1(repr(sorted((name, hashlib.sha256(files[name]).hexdigest()) for name in files)).encode()).hexdigest()
        self.commits[commit] = files
        self.refs[ref] = commit
        return commit

    def commit(self, revision):
        return self.refs.get(revision, revision if revision in self.commits else None)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    @property
    def hub(self):
        return self.server.hub

    def reply(self, status, body=b"", headers=(), length=None):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        for name, value in dict(headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            with contextlib.suppress(OSError):
                self.wfile.write(body)

    def refuse(self, status, code="", **headers):
        self.reply(status, b'{"error": "no"}', {"X-Error-Code": code, "X-Error-Message": "sorry \x1b[31m", **headers})

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        place = urlsplit(self.path)  # of a proxy's request the whole address
        path = unquote(place.path)
        with self.hub.lock:
            self.hub.requests.append((self.command, self.server.server_address[1], path, {k.lower(): v for k, v in self.headers.items()}))
        if self.server is self.hub.cdn:
            return self.content(path.lstrip("/").split("/", 1)[1], self.hub.blobs[path.split("/")[1]])
        fault = self.hub.take_fault(path if path.startswith("/api/") else None)
        if fault:
            return self.refuse(*fault[1:2], **fault[2]) if len(fault) > 2 else self.refuse(fault[1])
        listing = re.fullmatch(r"/api/models/([^/]+/[^/]+)/revision/(.+)", path)
        file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        match = listing or file
        if not match:
            return self.refuse(404)
        name = match[1]
        if name in self.hub.renamed:
            return self.reply(307, headers={"Location": self.path.replace(name, self.hub.renamed[name])})
        if name in self.hub.closed:
            status, code = self.hub.closed[name]
            return self.refuse(status, code)
        repo = self.hub.repos.get(name)
        if repo is None:
            return self.refuse(401, "RepoNotFound")
        commit = repo.commit(match[2])
        if commit is None:
            return self.refuse(404, "RevisionNotFound")
        if listing:
            return self.listing(name, repo, commit)
        return self.file(name, repo, commit, file[3])

    def listing(self, name, repo, commit):
        siblings = []
        for file, content in repo.commits[commit].items():
            entry = {"rfilename": file, "size": len(content), "blobId": git_sha1(content)}
            if file.endswith(LARGE):
                entry["lfs"] = {"sha256": etag(file, content), "size": len(content), "pointerSize": 130}
            siblings.append({**entry, **self.hub.lies.get(file, {})})
        answer = {"id": name, "sha": commit, "private": False, "siblings": siblings}
        if repo.card:
            answer["cardData"] = repo.card
        self.reply(200, json.dumps(answer).encode(), {"Content-Type": "application/json"})

    def file(self, name, repo, commit, file):
        content = repo.commits[commit].get(file)
        if content is None:
            return self.refuse(404, "EntryNotFound")
        headers = {"X-Repo-Commit": commit, **self.hub.headers.get(file, {})}
        if file.endswith(LARGE):
            name = etag(file, content)
            self.hub.blobs[name] = content
            return self.reply(302, headers={"X-Linked-Etag": f'"{name}"', "X-Linked-Size": str(len(content)),
                                            "Location": f"{self.hub.cdn_url}/{name}/{file}?signature=x", **headers})
        if self.command == "HEAD":
            return self.reply(200, length=len(content), headers={"ETag": f'"{git_sha1(content)}"', **headers})
        return self.content(file, content, headers)

    def content(self, file, content, headers=()):
        fault, *about = self.hub.take_fault(file) or ("none",)
        if fault == "status":
            return self.refuse(about[0], **(about[1] if len(about) > 1 else {}))
        first = 0
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if asked and fault != "no range":
            first = int(asked[1])
            if first >= len(content):
                return self.refuse(416)
        if fault == "corrupt":
            content = content[:-1] + bytes([content[-1] ^ 1])
        body = content[first:]
        headers = {"ETag": f'"{etag(file, content)}"', **dict(headers)}
        if first:
            headers["Content-Range"] = f"bytes {first + (fault == 'wrong range')}-{len(content) - 1}/{len(content)}"
        self.send_response(206 if first else 200)
        if fault == "more":  # of no stated length
            self.close_connection = True
        else:
            self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        with contextlib.suppress(OSError):
            if fault == "truncate":
                self.wfile.write(body[:about[0]])
                self.close_connection = True
            elif fault == "stall":
                self.wfile.write(body[:about[0]])
                self.wfile.flush()
                self.hub.stalled.set()
                self.hub.released.wait(about[1] if len(about) > 1 else 20)
                self.close_connection = True
            elif fault == "slow":
                for at in range(0, len(body), about[0]):
                    self.wfile.write(body[at:at + about[0]])
                    time.sleep(0.05)
            else:
                self.wfile.write(body + (b"x" * 10 if fault == "more" else b""))


class Hub:
    """Repositories by name. `faults[file]` is a list of what is done to the next answers with its content; of a path below /api/,
    to the next listings."""

    def __init__(self, tls=None):
        self.lock = threading.Lock()
        self.repos, self.renamed, self.closed, self.blobs = {}, {}, {}, {}
        self.faults, self.lies, self.headers, self.requests = {}, {}, {}, []
        self.stalled, self.released = threading.Event(), threading.Event()
        self.main, self.cdn = (ThreadingHTTPServer(("127.0.0.1", 0), Handler) for _ in range(2))
        for server in (self.main, self.cdn):
            server.hub, server.daemon_threads = self, True
            server.handle_error = lambda *_: None
            if tls:
                server.socket = tls.wrap_socket(server.socket, server_side=True)
            threading.Thread(target=server.serve_forever, daemon=True).start()
        self.url, self.cdn_url = (f"{'https://localhost' if tls else 'http://127.0.0.1'}:{server.server_address[1]}"
                                  for server in (self.main, self.cdn))

    def stop(self):
        self.released.set()
        for server in (self.main, self.cdn):
            server.shutdown()
            server.server_close()

    def take_fault(self, name):
        with self.lock:
            waiting = self.faults.get(name)
            return waiting.pop(0) if waiting else None

    def asked(self, end, command="GET"):
        """Headers of the requests whose path ends so."""
        return [headers for kind, _, path, headers in self.requests if kind == command and path.endswith(end)]
