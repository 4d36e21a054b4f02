"""`deit-fast push` and the model card, against a stand-in of the Hub that speaks its API for small files."""

import base64
import html
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub
import pytest
import timm
import torch
import yaml

from deit_fast.cli.main import main
from deit_fast.convert.export import export_checkpoint
from deit_fast.convert.model_card import model_card, read_scores
from deit_fast.recipe.table import get_recipe
from deit_fast.runtime.errors import RunError
from tests.convert.test_convert_out import IMAGES, source
from tests.oracles import foreign_checkpoints as oracle
from tests.oracles.foreign_checkpoints import DEIT3


class Hub(ThreadingHTTPServer):
    """Keeps what is committed; refuses all but the bearer `token`."""

    token = "hf_right"

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.created: list[dict] = []


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        path = self.path.partition("?")[0]
        if self.headers.get("Authorization") != f"Bearer {self.server.token}":
            self.answer(401, {"error": "Invalid credentials"})
        elif path == "/api/repos/create":
            self.server.created.append(json.loads(body))
            self.answer(200, {"url": f"{huggingface_hub.constants.ENDPOINT}/me/model", "name": "me/model"})
        elif path == "/api/validate-yaml":
            self.answer(200, {"errors": [], "warnings": []})
        elif path.endswith("/preupload/main"):
            asked = json.loads(body)["files"]
            self.answer(200, {"files": [{"path": each["path"], "uploadMode": "regular", "shouldIgnore": False}
                                        for each in asked]})  # fmt: skip
        elif path.endswith("/commit/main"):
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.server.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self.answer(
                200,
                {
                    "commitUrl": f"{huggingface_hub.constants.ENDPOINT}/me/model/commit/{'1' * 40}",
                    "commitOid": "1" * 40,
                    "success": True,
                },
            )
        else:
            self.answer(404, {"error": path})

    def do_GET(self) -> None:
        self.answer(200, {"id": "me/model", "siblings": [], "sha": "0" * 40})

    def answer(self, status: int, content: dict) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with Hub() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("HF_TOKEN", server.token)
        yield server
        server.shutdown()


def test_push(hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    source(run / "checkpoints").rename(run / "checkpoints" / "last.pt")
    (run / "result.json").write_text('{"top1": 91.234, "top5": 99.5}')
    assert main(["push", str(run), "me/model", "--private"]) == 0, capsys.readouterr().err
    assert f"http://127.0.0.1:{hub.server_port}/me/model: " in capsys.readouterr().out
    assert (hub.created[0]["name"], hub.created[0]["organization"]) == ("model", "me")
    assert hub.created[0].get("private") is True or hub.created[0].get("visibility") == "private"
    assert sorted(hub.files) == ["README.md", "config.json", "model.safetensors"]
    there = tmp_path / "there"
    there.mkdir()
    for name, content in hub.files.items():
        (there / name).write_bytes(content)
    model = timm.create_model(f"local-dir:{there}", pretrained=True).eval()
    with torch.no_grad():
        torch.testing.assert_close(model(IMAGES).double(), oracle.reference_logits(DEIT3, IMAGES, 4), atol=1e-5, rtol=0)
    _, front, text = hub.files["README.md"].decode().split("---\n", 2)
    metadata = yaml.safe_load(front)
    assert (metadata["library_name"], metadata["pipeline_tag"]) == ("timm", "image-classification")
    (result,) = metadata["model-index"][0]["results"]
    assert {each["name"]: each["value"] for each in result["metrics"]} == {
        "top-1 accuracy": 91.23,
        "top-5 accuracy": 99.5,
    }
    assert 'create_model("hf-hub:me/model", pretrained=True)' in text


def test_push_in_one_line(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                          capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    weights = str(source(tmp_path))

    def refused(repository: str) -> str:
        assert main(["push", weights, repository]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    assert "model: expected OWNER/NAME" in refused("model")
    assert "me/mo del: " in refused("me/mo del")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    line = refused("me/model")
    assert "the Hub answered 401: expected a token that may write there" in line
    assert "hf_wrong" not in line
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:1")
    assert "me/model: the Hub could not be reached" in refused("me/model")
    assert not hub.files


def test_the_card_of_a_folder(tmp_path: Path) -> None:
    export_checkpoint(source(tmp_path), tmp_path / "folder")
    card = (tmp_path / "folder" / "README.md").read_text()
    assert yaml.safe_load(card.split("---\n")[1])["library_name"] == "timm"
    assert f'create_model("local-dir:{tmp_path / "folder"}", pretrained=True)' in card
    assert "model-index" not in card


def test_names_of_classes_are_text_in_a_card() -> None:
    """A renderer of Markdown shows each name as it is: no tags, emphasis, code or links."""
    names = ["<b>bold</b>", "*star*", "_init_", "snake_case", "`code`", "[a](b)", "R&amp;D", "back\\slash", "Maß"]
    markdown = pytest.importorskip("markdown", reason="needs markdown, from the extra docs")
    card = model_card(get_recipe("demo_pretrain"), names, 1000)
    (line,) = (each for each in card.splitlines() if each.startswith("Classes: "))
    assert "snake_case" in line
    shown = re.sub("<[^>]*>", "", markdown.markdown(line))
    assert html.unescape(shown) == f"Classes: {', '.join(names)}."


def test_a_run_s_folder_takes_no_exported_model(tmp_path: Path) -> None:
    """Its files would stand for the run's checkpoints from then on."""
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    source(run / "checkpoints").rename(run / "checkpoints" / "best.pt")
    with pytest.raises(RunError, match=rf"^{run}: is the folder of a run: expected another place$"):
        export_checkpoint(run, run)
    assert [each.name for each in run.iterdir()] == ["checkpoints"]
    export_checkpoint(run, run / "timm")


def test_the_card_has_the_scores_of_its_weights(tmp_path: Path) -> None:
    run, folder = tmp_path / "run", tmp_path / "folder"
    (run / "checkpoints").mkdir(parents=True)
    source(run / "checkpoints").rename(run / "checkpoints" / "best.pt")
    (run / "checkpoints" / "last.pt").write_bytes((run / "checkpoints" / "best.pt").read_bytes())
    (run / "result.json").write_text('{"top1": 81.0, "top5": 99.5, "ema_top1": 83.0, "best_top1": 91.234}')

    def told(of: Path, *words: str) -> dict[str, float]:
        export_checkpoint(of, folder, overrides=words)
        metadata = yaml.safe_load((folder / "README.md").read_text().split("---\n")[1])
        results = metadata["model-index"][0]["results"] if "model-index" in metadata else []
        return {each["name"]: each["value"] for result in results for each in result["metrics"]}

    assert told(run) == {"top-1 accuracy": 91.23}
    assert told(run / "checkpoints" / "last.pt") == {"top-1 accuracy": 81.0, "top-5 accuracy": 99.5}
    assert read_scores(run / "checkpoints" / "last.pt", ema=True) == {"top1": 83.0, "top5": None}
    assert told(run, "data.eval_crop_ratio=1") == {}
