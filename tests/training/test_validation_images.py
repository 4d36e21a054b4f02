"""Which validation images a run and an evaluation take: said, in the training's order of classes, or refused."""

import json
import unicodedata
from pathlib import Path

import pytest

from deit_fast.cli.main import main
from tests.image_files import encode, write

WORDS = ["model.image_size=8", "run.global_batch=4", "schedule.epochs=1", "schedule.warmup_epochs=0", "run.log_every=1"]
CLASSES = ["Mz", "Müll"]


def words_of(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    status = main([str(word) for word in words])
    told = capsys.readouterr()
    return status, told.out, told.err


def test_a_run_and_evaluations_of_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, flat = tmp_path / "data", tmp_path / "flat"
    for split, form in (("train", "NFD"), ("valid", "NFC")):  # in which the two classes have another order
        for name in CLASSES:
            for number in range(3):
                write(data / split / unicodedata.normalize(form, name) / f"{number}.jpg", encode(20 + number))
    checkpoint = tmp_path / "run" / "checkpoints" / "last.pt"
    train = ["train", "demo_pretrain", "--data", data, "--out", tmp_path / "run", "model.num_classes=null", *WORDS]
    status, out, err = words_of(capsys, *train)
    assert (status, f"validation images: {data / 'valid'}" in out + err) == (0, True)
    status, out, _ = words_of(capsys, "evaluate", checkpoint, "--data", data, "--json")
    assert (status, json.loads(out)["data"], json.loads(out)["images"]) == (0, str(data / "valid"), 6)

    for number in range(4):
        write(flat / f"{number}.jpg", encode(20 + number))
    status, _, err = words_of(capsys, "evaluate", checkpoint, "--data", flat)
    assert (status, "found 4 images and no file of their labels" in err) == (2, True)
    labels = write(tmp_path / "names.csv", "".join(f"{n},{CLASSES[n % 2]}\n" for n in range(4)).encode())
    status, out, _ = words_of(capsys, "evaluate", checkpoint, "--data", flat, "--labels", labels, "--json")
    assert (status, json.loads(out)["data"]) == (0, f"{flat}, labels of {labels}")

    (data / "valid").rename(data / "test")
    status, _, err = words_of(capsys, "evaluate", checkpoint, "--data", data)
    assert (status, "expected a validation split" in err) == (2, True)
    assert f"name {data}/test or {data}/train" in err or f"name {data}/train or {data}/test" in err
    train[5] = tmp_path / "other"
    status, _, err = words_of(capsys, *train, "--labels", labels)
    assert (status, f"--labels {labels}: expected a folder of images without class folders" in err) == (2, True)
