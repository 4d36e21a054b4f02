"""The components' arguments as TorchX's command line gives them: each means what it says, or is refused in one line."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from deit_fast.components import deit
from torchx import specs
from torchx.runner import Runner, get_runner

FILE = Path(deit.__file__)
WORDS = {
    "pretrain": ["--recipe", "deit3_small_1k_224", "--data", "images", "--out", "run"],
    "finetune": ["--recipe", "deit3_small_1k_384_ft", "--init", "c.pt", "--data", "images", "--out", "run"],
    "evaluate": ["--checkpoint", "c.pt", "--data", "images"],
}


@pytest.fixture(scope="module")
def runner() -> Iterator[Runner]:
    with get_runner() as started:
        yield started


def build(runner: Runner, component: str, *words: str) -> specs.Role:
    """The role of a component whose words TorchX has split."""
    cfg = {"log_dir": "unused"}
    info = runner.dryrun_component(f"{FILE}:{component}", [*WORDS[component], *words], "local_cwd", cfg)
    return (getattr(info, "app", None) or info._app).roles[0]


@pytest.mark.parametrize("word", ["true", "True", "TRUE"])
def test_a_switch_is_on_or_off(runner: Runner, word: str) -> None:
    script = build(runner, "evaluate", "--ema", word, "--flip", "false").args[1]
    assert " --ema" in script
    assert " --flip" not in script
    assert " --flip" in build(runner, "evaluate", "--flip", word).args[1]


@pytest.mark.parametrize(
    ("text", "variables"),
    [
        ("KEY=a=b", {"KEY": "a=b"}),
        ("NCCL_IB_HCA=mlx5_0:1", {"NCCL_IB_HCA": "mlx5_0:1"}),
        ("A=1,B=2", {"A": "1", "B": "2"}),
        ("A=1;B=2", {"A": "1", "B": "2"}),
        ("A==", {"A": "="}),
        ("A=https://host/?q=1&r=2", {}),
    ],
)
def test_plain_variables_are_the_roles(runner: Runner, text: str, variables: dict[str, str]) -> None:
    env = build(runner, "pretrain", "--env", text).env
    assert {key: value for key, value in env.items() if len(key) < 4 or key.startswith("NCCL")} == variables


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("NCCL_IB_HCA==mlx5_0:1,mlx5_1:1", "export NCCL_IB_HCA==mlx5_0:1,mlx5_1:1; "),
        ("A=", "export A=''; "),
        ("A=x y", "export A='x y'; "),
        ('A="x,B=2",C=0,1', "export A=x,B=2; export C=0,1; "),
    ],
)
def test_other_variables_go_through_the_script(runner: Runner, text: str, line: str) -> None:
    role = build(runner, "finetune", "--env", text)
    assert line in role.args[1]
    assert not {"A", "C", "NCCL_IB_HCA"} & role.env.keys()


@pytest.mark.parametrize("component", WORDS)
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--env", "A"], "env='A': expected NAME=value,NAME=value,..."),
        (["--env", "=x"], "env='=x': expected NAME=value"),
        (["--env", "1A=x"], "env='1A=x': expected NAME=value"),
        (["--env", "A-B=x"], "env='A-B=x': A-B: expected a name of letters, digits and _"),
        (["--env", "A=1,A=2"], "env='A=1,A=2': A: expected each name once"),
        (["--mounts", "data"], "mounts='data': 'data': expected type=volume,src=CLAIM,dst=PATH"),
        (["--mounts", "type=volume"], "mounts='type=volume': src: expected type=volume"),
        (["--mounts", "src=a,dst=/b"], "mounts='src=a,dst=/b': type must be specified first"),
        (["--mounts", "type=moon,src=a,dst=/b"], "invalid mount type 'moon'"),
        (["--mounts", "type=volume,src=,dst=/b"], "'src=': expected type=volume"),
        (["--mounts", "type=volume,src=a,dst=b"], "dst=b: expected a path from /"),
        (["--mounts", "type=volume,src=a,dst=/b,readonly=false"], "readonly=false: expected readonly alone"),
        (["--cpu", "-3"], "cpu=-3: expected 0 or more"),
        (["--gpu", "-1"], "gpu=-1: expected 0 or more"),
        (["--memMB", "-1"], "memMB=-1: expected 0 or more"),
        (["--max_retries", "-1"], "max_retries=-1: expected 0 or more"),
        (["--rdzv_port", "70000"], "rdzv_port=70000: expected a port up to 65535"),
        (["--image", ""], "image='': expected a value"),
        (["--data", ""], "data='': expected a value"),
    ],
)
def test_a_wrong_argument_is_one_line(
    runner: Runner, component: str, words: list[str], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        build(runner, component, *words)
    assert stop.value.code == 2
    error = capfd.readouterr().err
    assert error.startswith("deit-fast: ")
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("component", "words", "message"),
    [
        *(
            ("evaluate", ["--ema", word], f"ema={word!r}: expected true or false")
            for word in ("1", "yes", "on", "", "no")
        ),
        ("evaluate", ["--classes", "some"], "classes='some': expected data or all"),
        *(("evaluate", ["--flip", word], f"flip={word!r}: expected true or false") for word in ("0", "off", "tru")),
        ("evaluate", ["--checkpoint", ""], "checkpoint='': expected a value"),
        ("finetune", ["--init", ""], "init='': expected a value"),
        ("pretrain", ["--out", " "], "out=' ': expected a value"),
    ],
)
def test_a_wrong_argument_of_one_component_is_one_line(
    runner: Runner, component: str, words: list[str], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        build(runner, component, *words)
    assert capfd.readouterr().err == f"deit-fast: {message}\n"


def test_mounts_are_what_they_say(runner: Runner) -> None:
    text = "type=volume,src=imagenet,dst=/data,readonly,type=bind,src=/a=b,dst=/b"
    volume, bind = build(runner, "pretrain", "--mounts", text).mounts
    assert (volume.src, volume.dst_path, volume.read_only) == ("imagenet", "/data", True)
    assert (bind.src_path, bind.dst_path, bind.read_only) == ("/a=b", "/b", False)
