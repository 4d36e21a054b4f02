"""The search for the loader's setting and the file that keeps it, with made-up machines instead of a GPU."""

import json
from pathlib import Path

import pytest

from deit_fast.data.loader.tuning import LoaderSetting, cache_file, keep_setting, machine_key, read_setting, search

KEY = machine_key("NVIDIA H200", 16, "2.4.0", 500 * 375)


class Machine:
    """Engines and threads that decode side by side: the slower of both decides."""

    def __init__(self, engines: float, per_thread: float) -> None:
        self.engines, self.per_thread = engines, per_thread
        self.asked: list[LoaderSetting] = []

    def __call__(self, setting: LoaderSetting) -> float:
        self.asked.append(setting)
        load = setting.hw_decoder_load
        return max(load / self.engines, (1 - load) / (self.per_thread * setting.threads))


@pytest.mark.parametrize(
    ("machine", "cores", "expected"),
    [
        (Machine(13_000, 270), 16, LoaderSetting(16, 0.8)),  # engines as fast as 48 threads: all threads are needed
        (Machine(1_000, 270), 16, LoaderSetting(16, 0.15)),  # slow engines
        (Machine(1_000, 2_000), 16, LoaderSetting(4, 0.15)),  # slow engines, fast threads: a few do
        (Machine(13_000, 1), 4, LoaderSetting(4, 0.9)),  # threads next to useless
        (Machine(13_000, 100), 1, LoaderSetting(1, 0.9)),
    ],
)
def test_the_fastest_is_found_in_few_measurements(machine: Machine, cores: int, expected: LoaderSetting) -> None:
    assert search(machine, cores) == expected
    assert len(machine.asked) == len(set(machine.asked)) <= 7


def test_noise_moves_neither_load_nor_threads() -> None:
    """Three percent are noise: DALI's own load and fewer threads stay."""
    noisy = {0.15: 1.2, 0.4: 1.0, 0.65: 1.02, 0.8: 1.01, 0.9: 1.2}
    assert search(lambda setting: noisy[setting.hw_decoder_load], 8) == LoaderSetting(2, 0.65)
    assert search(lambda setting: 2 * noisy[setting.hw_decoder_load] / setting.threads, 8) == LoaderSetting(8, 0.65)


def test_a_setting_is_kept_for_its_machine_only(tmp_path: Path) -> None:
    path, setting = tmp_path / "new" / "loader.json", LoaderSetting(8, 0.8)
    assert read_setting(path, KEY) is None
    keep_setting(path, KEY, setting)
    other = machine_key("NVIDIA A100", 16, "2.4.0", 500 * 375)
    keep_setting(path, other, LoaderSetting(2, 0.5))
    assert (read_setting(path, KEY), read_setting(path, other)) == (setting, LoaderSetting(2, 0.5))
    others = [
        machine_key("NVIDIA H200", 8, "2.4.0", 500 * 375),
        machine_key("NVIDIA H200", 16, "2.5.0", 500 * 375),
        machine_key("NVIDIA H200", 16, "2.4.0", 256 * 256),
    ]
    assert [read_setting(path, key) for key in others] == [None] * 3
    assert machine_key("NVIDIA H200", 16, "2.4.0", 480 * 375) == KEY
    assert machine_key("", 1, "", 0).endswith("2^0 pixels")


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff\xfe", b"[]", b"null"]
    + [
        json.dumps({KEY: value}).encode()
        for value in (
            None, [], {}, {"threads": 8}, {"threads": 0, "hw_decoder_load": 0.5},
            {"threads": True, "hw_decoder_load": 0},
            {"threads": 8.5, "hw_decoder_load": 0.5}, {"threads": 8, "hw_decoder_load": 1.5},
            {"threads": 8, "hw_decoder_load": "0.5"}, {"threads": 8, "hw_decoder_load": 0.5, "more": 1},
        )
    ],
)  # fmt: skip
def test_a_damaged_file_is_ignored_and_rewritten(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "loader.json"
    path.write_bytes(content)
    assert read_setting(path, KEY) is None
    keep_setting(path, KEY, LoaderSetting(8, 0.8))
    assert read_setting(path, KEY) == LoaderSetting(8, 0.8)


def test_a_file_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    keep_setting(tmp_path / "file" / "loader.json", KEY, LoaderSetting(8))


def test_the_file_is_in_the_cache_folder(cache: Path) -> None:
    assert cache_file() == cache / "loader.json"
