"""A restored adapter goes to a hub: a server here that speaks as much of its protocol as needed."""

import base64
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import pytest

from helpers import restore_arguments


class Hub(BaseHTTPRequestHandler):
    """Remembers what was asked of it, and the files of commits."""

    asked: ClassVar[list[tuple[str, str, dict]]] = []
    files: ClassVar[dict[str, bytes]] = {}

    def answer(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        content = {}
        if self.path.endswith("/commit/main"):
            for line in body.decode().splitlines():
                item = json.loads(line)
                if item["key"] == "file":
                    self.files[item["value"]["path"]] = base64.b64decode(item["value"]["content"])
        elif body:
            content = json.loads(body)
        self.asked.append((self.command, self.path, content))
        here = f"http://127.0.0.1:{self.server.server_port}"
        reply = {"id": "me/model-cft", "sha": "1", "errors": [], "warnings": []}
        if self.path == "/api/repos/create":
            reply = {"url": f"{here}/me/model-cft"}
        elif "/preupload/" in self.path:
            reply = {
                "files": [
                    {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
                    for f in content["files"]
                ]
            }
        elif "/commit/" in self.path:
            reply = {
                "commitUrl": f"{here}/me/model-cft/commit/2",
                "commitOid": "2",
                "success": True,
            }
        text = json.dumps(reply).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    do_GET = do_POST = answer

    def log_message(self, *args):
        pass


@pytest.fixture
def hub():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.mark.slow
def test_restore_pushes_the_adapter_to_a_private_repository(world, tmp_path, hub):
    asked = restore_arguments(
        world, tmp_path / "run", "--method", "cft", "--push-to-hub", "me/model"
    )
    network = {
        "HF_HUB_OFFLINE": "0",
        "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}",
        "HF_TOKEN": "hf_none",
        "HF_HOME": str(tmp_path / "home"),
    }
    done = subprocess.run(
        [sys.executable, "-m", "calibrant", *asked],
        env=os.environ | network,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    created = next(content for _, path, content in Hub.asked if path == "/api/repos/create")
    assert created["visibility"] == "private"
    assert created["name"] == "model-cft"
    adapter = tmp_path / "run" / "cft" / "adapter" / "adapter_model.safetensors"
    assert Hub.files["adapter_model.safetensors"] == adapter.read_bytes()
    assert not [name for name in Hub.files if name.startswith("checkpoint-")]
    assert not (tmp_path / "run" / "cft" / "checkpoints").exists()
