"""A restored adapter goes to a hub: a server here that speaks as much of its protocol as needed."""

import base64
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import huggingface_hub
import pytest
from huggingface_hub import RepoUrl

from calibrant.answers import AnswerTable
from calibrant.errors import InputError
from calibrant.posthoc import TemperatureScaling
from calibrant.restore import RestoreSettings, fine_tune, push
from calibrant.training import CalibrationTrainer
from calibrant.training.selection import BEFORE
from helpers import make_model, make_questions, restore_arguments


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
    card = adapter.with_name("README.md").read_bytes()
    assert b"model-index" in card
    assert Hub.files["README.md"] == card
    assert Hub.files["reliability.png"] == adapter.with_name("reliability.png").read_bytes()
    assert not [name for name in Hub.files if name.startswith("checkpoint-")]
    assert not (tmp_path / "run" / "cft" / "checkpoints").exists()


def test_the_temperature_goes_to_the_hub_and_no_answers_nor_pickles(
    tokenizer, tmp_path, monkeypatch
):
    sent = {}

    def create_commit(self, repo_id, operations, **kwargs):
        assert repo_id == "me/model-tempered-cft"
        assert not sent
        sent.update({o.path_in_repo: o.path_or_fileobj for o in operations})

    monkeypatch.setattr(
        huggingface_hub.HfApi,
        "create_repo",
        lambda self, name, **kwargs: RepoUrl(f"https://huggingface.co/{name}"),
    )
    monkeypatch.setattr(huggingface_hub.HfApi, "create_commit", create_commit)

    class Warm(CalibrationTrainer):
        def _temper(self):  # a model that knows nothing has no best temperature
            known = AnswerTable.from_probs([[0.9, 0.1]] * 4, [0, 0, 0, 1])
            self.calibrator = TemperatureScaling().fit(known)
            self.temperature = self.calibrator.temperature

    settings = RestoreSettings(
        model="-", train=("-",), evaluate=("-",), methods=("tempered-cft",), prompt="cloze",
        lora_rank=2, early_stopping=9, push_to_hub="me/model",
    )  # fmt: skip
    questions = make_questions(24)
    fine_tune(
        make_model(), tokenizer, questions, "tempered-cft", settings, tmp_path, trainer_class=Warm
    )
    assert (tmp_path / "checkpoints" / BEFORE).is_file()  # answers to the user's questions: here
    assert set(sent) == {
        "README.md", "adapter_config.json", "adapter_model.safetensors", "calibrator.json",
        "chat_template.jinja", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    with open(sent["calibrator.json"], encoding="utf-8") as file:
        assert json.load(file)["temperature"] == pytest.approx(2)


def test_what_cannot_be_uploaded_is_said_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(
        huggingface_hub.HfApi,
        "create_repo",
        lambda self, name, **kwargs: RepoUrl(f"https://huggingface.co/{name}"),
    )

    def create_commit(self, repo_id, operations, **kwargs):
        raise OSError("no route\nto host")

    monkeypatch.setattr(huggingface_hub.HfApi, "create_commit", create_commit)
    (tmp_path / "README.md").write_text("x")
    said = r"README.md could not be uploaded to me/m: no route to host; .*the same command again"
    with pytest.raises(InputError, match=said):
        push("me/m", {"README.md": tmp_path / "README.md"})
