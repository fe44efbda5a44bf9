"""The two questions of the Hugging Face hub's protocol that fetching a model asks, answered on this machine."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Hub:
    """One model, in revisions; the last is the newest."""

    repo: str
    revisions: dict[str, dict[str, bytes]]  # commit: file name: content
    lies: set[str] = field(default_factory=set)  # files that come with other content than announced
    downloads: list[str] = field(default_factory=list)
    url: str = ""

    def answer(self, path: str) -> tuple[bytes, dict[str, str]] | None:
        path = path.partition("?")[0].strip("/")
        head = f"api/models/{self.repo}"
        if path == head or path.startswith(f"{head}/revision/"):
            commit = path.removeprefix(head).removeprefix("/revision/") or list(self.revisions)[-1]
            return None if commit not in self.revisions else (json.dumps(self.described(commit)).encode(), {})
        if not path.startswith(f"{self.repo}/resolve/"):
            return None
        commit, _, name = path.removeprefix(f"{self.repo}/resolve/").partition("/")
        content = self.revisions.get(commit, {}).get(name)
        if content is None:
            return None
        headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": commit}
        return (b"x" * len(content) if name in self.lies else content), headers

    def described(self, commit: str) -> dict[str, Any]:
        siblings = []
        for name, content in self.revisions[commit].items():
            entry: dict[str, Any] = {"rfilename": name, "size": len(content)}
            if name.endswith((".safetensors", ".bin")):
                sha256 = hashlib.sha256(content).hexdigest()
                entry["lfs"] = {"sha256": sha256, "size": len(content), "pointerSize": 130}
            siblings.append(entry)
        return {"id": self.repo, "modelId": self.repo, "sha": commit, "siblings": siblings, "tags": []}


@contextmanager
def served(hub: Hub) -> Iterator[Hub]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.reply(with_body=True)

        def do_HEAD(self) -> None:
            self.reply(with_body=False)

        def reply(self, with_body: bool) -> None:
            found = hub.answer(self.path)
            content, headers = found or (b"", {"X-Error-Code": "RepoNotFound"})
            if with_body and "/resolve/" in self.path:
                hub.downloads.append(self.path.rsplit("/", 1)[1])
            self.send_response(404 if found is None else 200)
            for key, value in (headers | {"Content-Length": str(len(content))}).items():
                self.send_header(key, value)
            self.end_headers()
            if with_body:
                self.wfile.write(content)

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
