"""Images that cannot be used, in training: what takes their place, who is told, and when it is too much."""

import json
import os
import re
import shutil
import subprocess
from collections import deque
from pathlib import Path

import numpy as np
import pytest
import torch

from deit_fast.data.loader.batches import TrainLoader
from deit_fast.data.loader.dali import Pipeline, import_dali
from deit_fast.data.loader.order import FullOrder
from deit_fast.data.loader.producer import Prepared, Producer
from deit_fast.data.loader.sampler import TrainSampler
from deit_fast.data.loader.substitute import Substitutes
from deit_fast.recipe.table import get_recipe
from deit_fast.runtime.errors import DataError
from deit_fast.training.run import train
from tests.hostile import BATCH, Memory, batches_of, check_training, damage, refused_by_decoder, sound_images
from tests.training.test_train import WORDS, command, environment, last_weights

STEPS = 8  # of 48 images: two epochs


@pytest.fixture(scope="module")
def sound() -> list[bytes]:
    return sound_images(48, np.random.default_rng(0))


@pytest.fixture(scope="module")
def damaged(sound: list[bytes]) -> dict[int, bytes | None]:
    """Every way at once; two of which only the decoder finds, in one batch of the first epoch."""
    rng = np.random.default_rng(1)
    first = TrainSampler(FullOrder(48, 0), 1, BATCH).batch(0).indices.tolist()
    jpegs = [index for index in first if index % 6 == 0 or index % 6 == 3][:2]
    kinds = ("empty", "garbage", "huge", "gif", "missing", "cut")
    others = [index for index in range(0, 48, 6) if index not in jpegs][: len(kinds)]
    content = {index: damage(kind, sound[index], b"", rng) for index, kind in zip(others, kinds, strict=True)}
    return content | {index: refused_by_decoder(sound[index]) for index in jpegs}


def with_damage(sound: list[bytes], damaged: dict[int, bytes | None]) -> Memory:
    return Memory([damaged.get(index, image) for index, image in enumerate(sound)])


def test_only_bad_samples_change(sound: list[bytes], damaged: dict[int, bytes | None]) -> None:
    clean, hurt = batches_of(Memory(list(sound)), 0, STEPS), batches_of(with_damage(sound, damaged), 0, STEPS)
    assert [batch.step for batch in hurt] == list(range(STEPS))
    substitutes = []
    for before, after in zip(clean, hurt, strict=True):
        np.testing.assert_array_equal(before.positions, after.positions)
        for place, planned in enumerate(before.indices.tolist()):
            if planned in damaged:
                substitutes.append(int(after.indices[place]))
                assert planned in after.bad
            else:
                assert after.indices[place] == planned
                assert torch.equal(after.images[place], before.images[place])
        assert after.labels.tolist() == (after.indices % 3).tolist()
        assert after.images.float().mean((2, 3)).argmax(1).tolist() == after.labels.tolist()
    assert len(substitutes) == 2 * len(damaged)
    assert not set(substitutes) & damaged.keys()
    assert set().union(*(batch.bad for batch in hurt)) == damaged.keys()
    assert substitutes[: len(damaged)] != substitutes[len(damaged) :]  # other ones in the next epoch
    assert not any(batch.bad for batch in clean)


def test_it_is_the_same_from_any_step_and_over_any_number_of_processes(
    sound: list[bytes], damaged: dict[int, bytes | None]
) -> None:
    source = with_damage(sound, damaged)
    whole = batches_of(source, 0, STEPS)
    for start in (1, 5):
        for one, other in zip(batches_of(source, start, STEPS), whole[start:], strict=True):
            np.testing.assert_array_equal(one.indices, other.indices)
            assert torch.equal(one.images, other.images)
            assert one.bad == other.bad
    for parts in (2, 3):
        world = [batches_of(source, 0, STEPS, parts, part) for part in range(parts)]
        for step, batch in enumerate(whole):
            images, labels = torch.empty_like(batch.images), torch.empty_like(batch.labels)
            bad: dict[int, str] = {}
            for process in world:
                images[process[step].positions] = process[step].images
                labels[process[step].positions] = process[step].labels
                bad |= process[step].bad
            order = np.argsort(batch.positions)
            assert torch.equal(images, batch.images[order])
            assert torch.equal(labels, batch.labels[order])
            assert bad == batch.bad


def test_no_other_image_is_tested_alone(
    sound: list[bytes], damaged: dict[int, bytes | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is sound is decoded once, by the pipeline: the producer decodes nothing but what was refused before."""
    built: list[object] = []
    build = import_dali().Pipeline.build
    monkeypatch.setattr(import_dali().Pipeline, "build", lambda self: built.append(self) or build(self))
    batches_of(Memory(list(sound)), 0, STEPS)
    batches_of(with_damage(sound, {0: b"", 6: b"no image"}), 0, STEPS)
    assert len(set(map(id, built))) == 2  # the loaders' own; testing an image alone takes another


def test_where_nothing_can_be_used_it_says_so_in_a_line() -> None:
    with pytest.raises(DataError, match="nor could any of 64 others be used in its place") as error:
        batches_of(Memory([b""] * 48), 0, 1)
    assert "\n" not in str(error.value)


def test_an_error_that_no_image_explains_stays_itself(sound: list[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Pipeline.run

    def fail(self: Pipeline) -> torch.Tensor:
        plain(self)
        raise RuntimeError("out of memory")

    monkeypatch.setattr(Pipeline, "run", fail)  # as of a device that decodes nothing any more
    with pytest.raises(RuntimeError, match="out of memory"):
        batches_of(Memory(list(sound)), 0, 1)


# Planted bugs: what the fuzzing has to find


def test_a_substitute_with_the_old_label_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = TrainLoader._batch
    planned = lambda prepared: prepared._replace(indices=prepared.plan.indices)  # noqa: E731
    monkeypatch.setattr(TrainLoader, "_batch", lambda self, prepared, images: plain(self, planned(prepared), images))
    with pytest.raises(AssertionError):
        check_training(0)


def test_a_lost_batch_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Producer.recover

    def lose(self: Producer, error: RuntimeError) -> None:
        plain(self, error)
        self._again = deque[Prepared](list(self._again)[:1])

    monkeypatch.setattr(Producer, "recover", lose)
    with pytest.raises(AssertionError):
        check_training(0)


def test_substitutes_by_chance_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    monkeypatch.setattr(Substitutes, "choose", lambda *_: int(rng.integers(48)))
    with pytest.raises(AssertionError):
        check_training(0)


# Whole runs


@pytest.fixture
def bad_folder(folder_data: Path, tmp_path: Path) -> Path:
    """Three of 96 images cannot be used; the names of two are not UTF-8 or not one line."""
    root = tmp_path / "data"
    shutil.copytree(folder_data, root)
    files = sorted((root / "train" / "class1").iterdir())
    files[3].write_bytes(b"")
    files[7].rename(os.fsdecode(os.fsencode(files[7].parent) + b"/\xff 7.jpg"))
    Path(os.fsdecode(os.fsencode(files[7].parent) + b"/\xff 7.jpg")).write_bytes(b"no image")
    sound = files[9].read_bytes()
    files[9].rename(files[9].parent / "new\nline.jpg")
    (files[9].parent / "new\nline.jpg").write_bytes(refused_by_decoder(sound))
    return root


NAMES = [r"class1/003.jpg", r"class1/new\nline.jpg", r"class1/\xff 7.jpg"]


def named(out: Path) -> list[str]:
    lines = (out / "bad_files.txt").read_text(encoding="utf-8").splitlines()
    assert all(line.count("\t") == 1 for line in lines)
    return ["/".join(line.partition("\t")[0].split("/")[-2:]) for line in lines]


def test_a_run_names_and_counts_them_and_so_does_one_that_was_cut(bad_folder: Path, tmp_path: Path) -> None:
    recipe = get_recipe("demo_pretrain", [*WORDS, "data.max_bad=0.05", "run.checkpoint_every=7"])
    result = train(recipe, str(bad_folder), tmp_path / "whole")
    assert result["bad_images"] == 3
    assert json.loads((tmp_path / "whole" / "result.json").read_text())["bad_images"] == 3
    assert sorted(named(tmp_path / "whole")) == sorted(NAMES)

    class Cut(Exception):
        pass

    with pytest.MonkeyPatch.context() as patch:
        from deit_fast.training.periodic import Checkpoints

        save = Checkpoints.save

        def cut(self: Checkpoints) -> None:
            save(self)
            raise Cut

        patch.setattr(Checkpoints, "save", cut)
        with pytest.raises(Cut):
            train(recipe, str(bad_folder), tmp_path / "cut")
    assert train(recipe, str(bad_folder), tmp_path / "cut")["bad_images"] == 3
    assert named(tmp_path / "cut") == named(tmp_path / "whole")
    for name, tensor in last_weights(tmp_path / "whole").items():
        assert torch.equal(tensor, last_weights(tmp_path / "cut")[name])


def test_too_many_end_it_in_a_line_on_every_process(bad_folder: Path, tmp_path: Path) -> None:
    words = ["data.max_bad=0.025", "run.nonfinite_limit=2"]
    stopped = subprocess.run(
        command(bad_folder, tmp_path / "run", *words, processes=2), env=environment(), capture_output=True, text=True
    )
    assert stopped.returncode == 1
    told = re.findall(r"deit-fast: rank (\d): (data\.max_bad=0\.025: 3 of 96 images cannot be used.*)", stopped.stderr)
    assert sorted(rank for rank, _ in told) == ["0", "1"], stopped.stderr
    assert told[0][1] == told[1][1]
    assert sorted(named(tmp_path / "run")) == sorted(NAMES)


def test_a_clean_run_leaves_no_list(folder_data: Path, tmp_path: Path) -> None:
    (tmp_path / "bad_files.txt").write_text("of an earlier run in this folder\n")
    recipe = get_recipe("demo_pretrain", [*WORDS, "schedule.epochs=2"])
    assert train(recipe, str(folder_data), tmp_path)["bad_images"] == 0
    assert not (tmp_path / "bad_files.txt").exists()
