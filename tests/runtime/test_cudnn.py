"""Which cuDNN may compute attention."""

import pytest
import torch

from deit_fast.runtime import world as distributed
from deit_fast.runtime.hardware import describe_cudnn
from deit_fast.runtime.world import join_world


@pytest.mark.parametrize("version", [91501, 91600, 92000, 100000])
def test_sound_versions(version: int) -> None:
    assert describe_cudnn(version) == ""


@pytest.mark.parametrize(("version", "name"), [(91500, "9.15.0"), (91002, "9.10.2"), (90100, "9.1.0"), (8902, "8.9.2")])
def test_versions_with_wrong_attention_are_named(version: int, name: str) -> None:
    line = describe_cudnn(version)
    assert line.startswith(f"cuDNN {name} found, expected 9.15.1")
    assert "\n" not in line


def test_no_cudnn() -> None:
    assert "no cuDNN" in describe_cudnn(None)


@pytest.mark.parametrize(("version", "rank", "stays"), [(91002, 0, False), (91002, 1, False), (91900, 0, True)])
def test_attention_of_a_wrong_cudnn_is_off_and_said_once(
    version: int, rank: int, stays: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    switched = torch.backends.cuda.cudnn_sdp_enabled()
    monkeypatch.setattr(distributed.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(distributed.torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(distributed.torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(distributed.torch.backends.cudnn, "version", lambda: version)
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setenv("LOCAL_RANK", str(rank))
    try:
        join_world()
        assert torch.backends.cuda.cudnn_sdp_enabled() == stays
    finally:
        torch.backends.cuda.enable_cudnn_sdp(switched)
    assert capsys.readouterr().err.count("9.10.2") == (rank == 0 and not stays)
