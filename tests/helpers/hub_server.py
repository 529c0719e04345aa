"""The few endpoints of the Hugging Face hub that uploading and loading a model need, over real HTTP on this machine."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_of_this_test"


class Hub(ThreadingHTTPServer):
    """Repositories in memory: {"ORG/NAME": {"file": content}}; weights come by LFS, as at the real hub."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos: dict[str, dict[str, bytes]] = {}
        self.private: set[str] = set()
        self.blobs: dict[str, bytes] = {}
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None: ...

    def answer(self, value: Any = b"", status: int = 200, **headers: str) -> None:
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, text in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    @property
    def parts(self) -> list[str]:
        return [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            data = b""
            while size := int(self.rfile.readline(), 16):
                data += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return data
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def do_PUT(self) -> None:
        self.server.blobs[self.parts[-1]] = self.body()
        self.answer()

    def do_POST(self) -> None:
        body = self.body()
        if self.parts[-1] == "batch":  # ORG/NAME.git/info/lfs/objects/batch
            objects = [
                {**x, "actions": {"upload": {"href": f"{self.server.url}/lfs/{x['oid']}"}}}
                for x in json.loads(body)["objects"]
            ]
            return self.answer({"transfer": "basic", "objects": objects})
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.answer({"error": "Invalid username or password."}, 401)
        if self.parts == ["api", "repos", "create"]:
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            if name in self.server.repos:
                return self.answer({"error": "exists", "url": f"{self.server.url}/{name}"}, 409)
            self.server.repos[name] = {}
            if asked.get("private") or asked.get("visibility") == "private":
                self.server.private.add(name)
            return self.answer({"url": f"{self.server.url}/{name}"})
        if self.parts == ["api", "validate-yaml"]:
            return self.answer({"errors": [], "warnings": []})
        _, _, owner, name, action, *_ = self.parts  # api/models/ORG/NAME/ACTION/REVISION
        files = self.server.repos[f"{owner}/{name}"]
        if action == "preupload":
            modes = [
                {"path": x["path"], "uploadMode": "lfs" if x["path"].endswith(".safetensors") else "regular",
                 "shouldIgnore": False} for x in json.loads(body)["files"]
            ]  # fmt: skip
            return self.answer({"files": modes})
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            elif line["key"] == "lfsFile":
                files[line["value"]["path"]] = self.server.blobs[line["value"]["oid"]]
        return self.answer(
            {"success": True, "commitOid": "1" * 40, "commitUrl": f"{self.server.url}/{owner}/{name}/commit/1"}
        )

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        parts = self.parts[2:] if self.parts[:2] == ["api", "models"] else self.parts
        files = self.server.repos.get("/".join(parts[:2]))
        if files is None:
            return self.answer({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")
        if "resolve" in parts:
            content = files.get("/".join(parts[4:]))
            if content is None:
                return self.answer(
                    {"error": "Entry not found"}, 404, X_Error_Code="EntryNotFound", X_Repo_Commit="1" * 40
                )
            return self.answer(content, ETag=f'"{hashlib.sha1(content).hexdigest()}"', X_Repo_Commit="1" * 40)
        if "tree" in parts:
            return self.answer([{"type": "file", "path": x, "size": len(files[x]), "oid": "0"} for x in files])
        names = [{"rfilename": name} for name in files]
        name = "/".join(parts[:2])
        about = {"id": name, "sha": "1" * 40, "siblings": names, "private": name in self.server.private}
        return self.answer(about)


@contextmanager
def running() -> Iterator[Hub]:
    """A hub for as long as the block."""
    with Hub() as hub:
        thread = threading.Thread(target=hub.serve_forever, daemon=True)
        thread.start()
        yield hub
        hub.shutdown()
        thread.join()
