"""Prediction and features, against timm and torchvision with the same weights."""

import csv
import http.server
import io
import json
import socket
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from deit_fast.checkpoint.format import save_checkpoint
from deit_fast.cli.main import main
from deit_fast.infer import images
from deit_fast.infer.images import find_images
from deit_fast.infer.predict import (
    LoadedModel,
    Prediction,
    extract_features,
    load_model,
    predict,
    print_predictions,
)
from deit_fast.models.build import build_model
from deit_fast.recipe.table import get_recipe
from deit_fast.runtime import patience
from deit_fast.runtime.errors import RunError
from deit_fast.zoo.class_names import class_names, imagenet_classes
from tests.image_files import write
from tests.loopback import SCHEMES, place, serve_loopback

CLASSES = ["n01440764", "n01443537", "cat", "dog", "7"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    words = ["model.image_size=32", "model.num_classes=5", "run.precision=fp32", "data.eval_crop_ratio=0.8"]
    recipe = get_recipe("demo_pretrain", words)
    torch.manual_seed(0)
    model = build_model(recipe.model)
    with torch.no_grad():  # decisions that differ from image to image
        model.head.weight.normal_(0, 1)
    path = tmp_path_factory.mktemp("model") / "last.pt"
    state = {"model": model.state_dict(), "ema": None, "recipe": recipe.model_dump(mode="json"), "classes": CLASSES}
    save_checkpoint(path, state)
    return path


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> LoadedModel:
    return load_model(checkpoint)


@pytest.fixture(scope="module")
def paths(folder_data: Path) -> list[Path]:
    return sorted(folder_data.glob("val/*/*.jpg"))


def oracle_logits(model: LoadedModel, images: list[Image.Image]) -> torch.Tensor:
    """Resize, crop and normalise by hand; the bare model."""
    inputs = []
    for image in images:
        scale = 40 / min(image.size)  # 32 / 0.8
        width, height = (int(side * scale + 1e-6) for side in image.size)
        resized = image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
        left, top = round((width - 32) / 2), round((height - 32) / 2)
        pixels = np.asarray(resized.crop((left, top, left + 32, top + 32)), np.float32) / 255
        inputs.append((pixels - np.float32([0.485, 0.456, 0.406])) / np.float32([0.229, 0.224, 0.225]))
    with torch.no_grad():
        return model.model(torch.from_numpy(np.stack(inputs)).permute(0, 3, 1, 2))


def test_predictions_are_the_models(model: LoadedModel, paths: list[Path]) -> None:
    expected = oracle_logits(model, [Image.open(path) for path in paths]).softmax(1)
    found = predict(model, paths, top_k=5, batch=8)
    assert [each.image for each in found] == [str(path) for path in paths]
    for each, scores in zip(found, expected, strict=True):
        assert each.error is None
        assert sorted(each.labels) == [0, 1, 2, 3, 4]
        assert each.scores == sorted(each.scores, reverse=True)
        np.testing.assert_allclose(each.scores, scores[each.labels], atol=0.03)  # DALI's resize is not PIL's bit by bit
    assert len({each.labels[0] for each in found}) > 1
    named = dict(zip(found[0].labels, found[0].names, strict=True))
    assert named[0] == "tench, Tinca tinca"
    assert named[2] == "cat"


def test_paths_pictures_and_arrays_are_the_same_image(model: LoadedModel, paths: list[Path], tmp_path: Path) -> None:
    lossless = tmp_path / "image.png"
    picture = Image.open(paths[0]).convert("RGB")
    picture.save(lossless)
    first, second, third = predict(model, [str(lossless), picture, np.asarray(picture)])
    assert first.labels == second.labels == third.labels
    assert first.scores == second.scores == third.scores
    (alone,) = predict(model, picture, top_k=2)
    assert alone.labels == first.labels[:2]
    assert alone.image == "image 0"


def test_a_checkpoint_in_place_of_a_model(model: LoadedModel, checkpoint: Path, paths: list[Path]) -> None:
    assert predict(str(checkpoint), paths[:2]) == predict(model, paths[:2])
    torch.testing.assert_close(extract_features(checkpoint, paths[:2]), extract_features(model, paths[:2]))


def test_flip_averages_the_logits(model: LoadedModel, paths: list[Path]) -> None:
    picture = Image.open(paths[3]).convert("RGB").resize((40, 40))
    mirrored = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    expected = oracle_logits(model, [picture, mirrored]).mean(0).softmax(0)
    (found,) = predict(model, picture, flip=True)
    np.testing.assert_allclose(found.scores, expected[found.labels], atol=1e-3)
    (mirror,) = predict(model, mirrored, flip=True)
    np.testing.assert_allclose(found.scores, mirror.scores, atol=1e-5)


def test_transform_is_what_predict_sees(model: LoadedModel, paths: list[Path]) -> None:
    pictures = [Image.open(path) for path in paths]
    with torch.no_grad():
        logits = model(torch.stack([model.transform(picture) for picture in pictures]))
    torch.testing.assert_close(logits, oracle_logits(model, pictures), rtol=0, atol=1e-4)


def test_features(model: LoadedModel, paths: list[Path]) -> None:
    inputs = torch.stack([model.transform(Image.open(path).resize((40, 40))) for path in paths[:3]])
    pictures = [Image.open(path).convert("RGB").resize((40, 40)) for path in paths[:3]]
    seen: list[torch.Tensor] = []
    hooks = [model.model.blocks[i].register_forward_hook(lambda m, i, out: seen.append(out)) for i in (1, 3)]
    with torch.no_grad():
        tokens = model.model.forward_features(inputs)
    for hook in hooks:
        hook.remove()
    close = {"rtol": 0, "atol": 1e-3}
    torch.testing.assert_close(extract_features(model, pictures), tokens[:, 0], **close)
    second, last = extract_features(model, pictures, layers=[1, -1])
    assert last.shape == (3, 128, 8, 8)
    torch.testing.assert_close(second.flatten(2).transpose(1, 2), seen[0][:, 1:], **close)
    torch.testing.assert_close(extract_features(model, pictures, layers=[3], pool="token")[0], seen[1][:, 0], **close)
    mean = extract_features(model, pictures, layers=1, pool="avg")
    torch.testing.assert_close(mean[0], seen[1][:, 1:].mean(1), **close)
    with pytest.raises(RunError, match="pool='max'"):
        extract_features(model, pictures, pool="max")


def broken_folder(tmp_path: Path, paths: list[Path]) -> Path:
    folder = tmp_path / "mixed"
    folder.mkdir()
    whole = [path.read_bytes() for path in paths[:4]]
    (folder / "a.jpg").write_bytes(whole[0])
    (folder / "b.jpg").write_bytes(whole[1][: len(whole[1]) // 2])
    (folder / "c.jpg").write_bytes(whole[2])
    (folder / "d.jpg").write_bytes(b"")
    (folder / "e.jpg").write_bytes(b"no image at all")
    (folder / "f.jpg").write_bytes(whole[3])
    return folder


@pytest.mark.parametrize("batch", [1, 2, 64])
def test_an_unreadable_image_costs_the_others_nothing(
    model: LoadedModel, paths: list[Path], tmp_path: Path, batch: int
) -> None:
    folder = broken_folder(tmp_path, paths)
    found = predict(model, [*sorted(folder.iterdir()), folder / "missing.jpg"], batch=batch)
    assert [each.error is None for each in found] == [True, False, True, False, False, True, False]
    for each in found:
        assert bool(each.labels) != bool(each.error)
        assert each.error is None or (each.error.startswith(each.image) and "\n" not in each.error)
    (alone,) = predict(model, folder / "c.jpg")
    np.testing.assert_allclose(found[2].scores, alone.scores, atol=1e-5)


def test_command(checkpoint: Path, paths: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = broken_folder(tmp_path, paths)
    whole = [str(folder / name) for name in ("a.jpg", "c.jpg", "f.jpg")]
    assert main(["predict", str(checkpoint), *whole, "--top", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == whole
    assert all(line.count("%") == 2 for line in lines)

    assert main(["predict", str(checkpoint), str(folder), "--json", "--top", "1"]) == 1
    printed = capsys.readouterr()
    records = json.loads(printed.out)
    assert len(records) == 6
    assert [record["image"] for record in records if record["error"]] == [str(folder / f"{x}.jpg") for x in "bde"]
    assert len(printed.err.splitlines()) == 3

    assert main(["predict", str(checkpoint), f"{folder}/[ac].jpg", "--csv", "--top", "3"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [(row["image"], row["rank"]) for row in rows] == [(path, rank) for path in whole[:2] for rank in "123"]


def test_an_image_is_one_line_whatever_it_and_its_class_are_called(capsys: pytest.CaptureFixture[str]) -> None:
    print_predictions(
        [Prediction("a\nb.jpg", [0], [1.0], ["c\td"]), Prediction("\udcff.jpg", [], [], [], "unreadable")]
    )
    assert capsys.readouterr().out == "a\\nb.jpg: c\\td 100.0 %\n\\xff.jpg: cannot be read\n"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["nowhere.jpg"], "nowhere.jpg: expected an image"),
        (["http://127.0.0.1:9/a.jpg"], "URLs are fetched only when asked for"),
        (["a.jpg", "--top", "0"], "--top: expected a number of 1 or more"),
    ],
)
def test_a_mistake_is_one_line(
    checkpoint: Path, capsys: pytest.CaptureFixture[str], words: list[str], says: str
) -> None:
    with pytest.raises(SystemExit) as status:
        sys.exit(main(["predict", str(checkpoint), *words]))
    assert status.value.code == 2
    assert says in capsys.readouterr().err


def test_urls_that_are_allowed(model: LoadedModel, paths: list[Path]) -> None:
    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *request: object) -> None:
            super().__init__(*request, directory=str(paths[0].parent))  # type: ignore[arg-type]

        def log_message(self, *message: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        root = f"http://127.0.0.1:{server.server_port}"
        good, missing = predict(model, [f"{root}/{paths[0].name}", f"{root}/nothing.jpg"], allow_urls=True)
        server.shutdown()
    assert good.scores == predict(model, paths[0])[0].scores
    assert missing.error is not None
    assert missing.error == f"{root}/nothing.jpg: no such file"


@pytest.mark.parametrize("cut", [False, True])
def test_a_server_that_does_not_say_how_large_images_are(model: LoadedModel, paths: list[Path], cut: bool) -> None:
    image, asked = paths[0].read_bytes(), []

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            asked.append(self.headers.get("Range"))
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for part in (image + bytes(2**21), b"") if cut else (image[:100], image[100:]):
                self.wfile.write(f"{len(part):x}\r\n".encode() + part + b"\r\n")
                if cut:
                    self.close_connection = True
                    return
            self.wfile.write(b"0\r\n\r\n")

        def log_message(self, *message: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        uri = f"http://127.0.0.1:{server.server_port}/a.jpg"
        (found,) = predict(model, [uri], allow_urls=True)
        server.shutdown()
    assert set(asked) == {None}
    if cut:
        assert found.error is not None
        assert found.error.startswith(f"{uri}: cannot be read (")
    else:
        assert found.scores == predict(model, paths[0])[0].scores


def test_arrays_of_another_kind_are_refused(model: LoadedModel) -> None:
    with pytest.raises(RunError, match=r"image 0: expected uint8 \[H, W, 3\] or \[H, W\], got float32"):
        predict(model, np.zeros((8, 8, 3), np.float32))


def test_class_names() -> None:
    ids = imagenet_classes()
    assert len(ids) == 1000
    assert ids[0] == "n01440764"
    assert class_names([ids[0], "x"]) == ["tench, Tinca tinca", "x"]
    assert class_names(["0", "1"]) == ["0", "1"]
    assert all(name != label for name, label in zip(class_names(ids), ids, strict=True))


def test_a_program_of_torchrun_joins_no_group(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To join would wait for the other process, which is not there."""
    for key, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1",
                       "MASTER_PORT": "1"}.items():  # fmt: skip
        monkeypatch.setenv(key, value)
    load_model(checkpoint)
    assert not torch.distributed.is_initialized()


def test_a_run_folder_stands_for_its_best_else_its_last(checkpoint: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    with pytest.raises(RunError, match="run: is the folder of a run without a checkpoint: expected"):
        load_model(run)
    state = torch.load(checkpoint)
    for name, value in (("last", 1.0), ("best", 2.0)):
        state["model"]["head.bias"] = torch.full((5,), value)
        torch.save(state, run / "checkpoints" / f"{name}.pt")
        for folder in (run, run / "checkpoints", f"file://{run}"):
            assert load_model(folder).model.head.bias[0] == value


@pytest.mark.parametrize("scheme", SCHEMES)
def test_images_of_every_store(
    model: LoadedModel, paths: list[Path], scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "PATIENCE_SECONDS", 1.0)
    with serve_loopback(monkeypatch, tmp_path) as store:
        uri, folder = place(store, scheme)
        for name, path in zip(("b.jpg", "deep/x.jpg", "deep-er/x.JPG", ".hidden.jpg"), paths, strict=False):
            write(folder / "photos" / name, path.read_bytes())
        write(folder / "photos" / "notes.txt", b"none")
        everything = [f"{uri}/photos/{name}" for name in ("b.jpg", "deep/x.jpg", "deep-er/x.JPG")]
        if scheme != "http":
            assert find_images([f"{uri}/photos"]) == find_images([f"{uri}/photos/"]) == everything
            assert find_images([f"{uri}/photos/*.jpg"]) == everything[:1]
            assert find_images([f"{uri}/photos/*/x.*"]) == everything[1:]
            with pytest.raises(RunError, match="no such"):
                find_images([f"{uri}/nothing"])
        assert find_images(everything) == everything
        found = predict(model, [*everything, f"{uri}/nothing.jpg", f"{uri}/photos/notes.txt"], allow_urls=True)
        asked = sum(request.path.endswith("nothing.jpg") for request in store.requests)
    expected = predict(model, paths[:3])
    assert [each.scores for each in found[:3]] == [each.scores for each in expected]
    assert [each.image for each in found] == [*everything, f"{uri}/nothing.jpg", f"{uri}/photos/notes.txt"]
    assert found[3].error is not None
    assert found[3].error.startswith(f"{uri}/nothing.jpg: no such ")
    assert found[4].error is not None
    assert "expected an image" in found[4].error
    assert asked <= 3  # what is not there is not asked for again and again


def test_a_web_server_that_is_gone_costs_its_images_alone(
    model: LoadedModel, paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "_WEB_SECONDS", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as server:
        gone = f"http://127.0.0.1:{server.getsockname()[1]}/a.jpg"
    lost, good = predict(model, [gone, paths[0]], allow_urls=True)
    assert good.scores == predict(model, paths[0])[0].scores
    assert lost.error is not None
    assert lost.error.startswith(f"{gone}: cannot be reached (")
