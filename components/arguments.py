"""Checks the arguments of the components: a wrong one is a line on stderr and exit status 2, before a job exists.

TorchX takes any word but `true` for False, and fails with a traceback on a mapping that it cannot split. Booleans,
mappings and lists are therefore passed as the typed text, and parsed here.
"""

import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import yaml
from torchx import specs

from deit_fast.recipe.schema import Recipe
from deit_fast.recipe.table import get_recipe
from deit_fast.runtime.errors import RecipeError, one_line

IMAGE = "deit_fast:latest"
"""The container image of a job whose user names none."""
SHUTDOWN_SECONDS = 100  # time for the last checkpoint before torchrun kills the workers
MAX_PORT = 65535
# NAME=value. A value in quotes may contain anything; any other value ends before the next `,NAME=` or `;NAME=`.
_NAME = r"\s*([A-Za-z_][\w-]*)\s*="
_PAIR = re.compile(rf"{_NAME}\s*(\"[^\"]*\"|'[^']*'|.*?)\s*(?:[,;](?={_NAME})|$)", re.DOTALL | re.ASCII)


class Where(NamedTuple):
    """The arguments that every component has: the number of processes, their resources, and the number of retries."""

    j: str
    h: str | None
    cpu: int
    gpu: int
    memMB: int
    image: str
    env: str
    mounts: str
    overlay: str
    max_retries: int
    rdzv_port: int

    def check(self) -> None:
        """Refuses numbers that no scheduler accepts, and an image without a name."""
        for name in ("cpu", "gpu", "memMB", "max_retries"):
            if getattr(self, name) < 0:
                refuse(f"{name}={getattr(self, name)}: expected 0 or more")
        if not 0 <= self.rdzv_port <= MAX_PORT:
            refuse(f"rdzv_port={self.rdzv_port}: expected a port up to {MAX_PORT}, or 0 for one of the job's")
        check_given(image=self.image)

    @property
    def in_container(self) -> bool:
        """Whether the job runs in a container, whose paths need not exist on this machine."""
        return bool(self.mounts or self.overlay) or self.image != IMAGE

    @property
    def layout(self) -> tuple[int, int]:
        """Number of nodes, and of processes per node."""
        match = re.fullmatch(r"(?:([1-9]\d*)x)?([1-9]\d*)", self.j)
        if match is None:
            refuse(f"j={self.j!r}: expected NODESxPROCESSES or PROCESSES, for example 2x8")
        return int(match[1] or 1), int(match[2])

    @property
    def resource(self) -> specs.Resource:
        given = {"cpu": self.cpu, "gpu": self.gpu, "memMB": self.memMB}
        try:
            named = specs.resource(h=self.h) if self.h else specs.Resource(cpu=0, gpu=0, memMB=0)
        except KeyError:
            refuse(f"h={self.h!r}: expected a named resource registered with TorchX, or cpu, gpu and memMB")
        return replace(named, **{name: value for name, value in given.items() if value})

    @property
    def variables(self) -> dict[str, str]:
        """The environment variables of the job."""
        variables = parse_pairs("env", self.env)
        for name in variables:
            if "-" in name:
                refuse(f"env={self.env!r}: {name}: expected a name of letters, digits and _")
        return variables

    @property
    def volumes(self) -> list[specs.BindMount | specs.VolumeMount | specs.DeviceMount]:
        """The container's mounts."""
        words = [word.strip() for word in self.mounts.split(",")] if self.mounts.strip() else []
        expected = "expected type=volume,src=CLAIM,dst=PATH[,readonly],... (also type=bind and type=device)"
        for word in words:
            key, equals, value = word.partition("=")
            if key in ("readonly", "read_only") and equals:  # TorchX takes these for read-only, whatever their value
                refuse(f"mounts={self.mounts!r}: {word}: expected readonly alone, or nothing")
            if key not in ("readonly", "read_only") and not value:
                refuse(f"mounts={self.mounts!r}: {word!r}: {expected}")
        try:
            mounts = specs.parse_mounts(words)
        except KeyError as error:
            refuse(f"mounts={self.mounts!r}: {error.args[0]}: {expected}")
        except ValueError as error:
            refuse(f"mounts={self.mounts!r}: {one_line(error)}: {expected}")
        for mount in mounts:
            if not mount.dst_path.startswith("/"):
                refuse(f"mounts={self.mounts!r}: dst={mount.dst_path}: expected a path from /")
        return mounts

    @property
    def pod(self) -> dict[str, Any]:
        """The overlay for Kubernetes' pods; it extends the grace period, which is 30 seconds by default."""
        pod: dict[str, Any] = {"spec": {"terminationGracePeriodSeconds": SHUTDOWN_SECONDS + 20}}
        if not self.overlay:
            return pod
        try:
            given = yaml.safe_load(Path(self.overlay).read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError) as error:
            refuse(f"overlay={self.overlay!r}: expected a YAML file ({one_line(error)})")
        if (
            not isinstance(given, dict)
            or not given.keys() <= {"metadata", "spec"}
            or not all(isinstance(part, dict) for part in given.values())
        ):
            refuse(f"overlay={self.overlay!r}: expected the pod's spec: and metadata:, of fields each")
        return {**given, "spec": {**pod["spec"], **given.get("spec", {})}}


def parse_pairs(name: str, text: str) -> dict[str, str]:
    """The mapping in the text `NAME=value,NAME=value`. Values may contain `=` and commas, also at their beginning.

    name: the argument's name, for the line that refuses another text.
    """
    pairs: dict[str, str] = {}
    at = 0
    text = text.strip()
    while at < len(text):
        match = _PAIR.match(text, at)
        if match is None:
            refuse(f"{name}={text!r}: expected NAME=value,NAME=value,...")
        key, value, _ = match.groups()
        if key in pairs:
            refuse(f"{name}={text!r}: {key}: expected each name once")
        quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "'\""
        pairs[key] = value[1:-1] if quoted else value
        at = match.end()
    return pairs


def parse_switch(name: str, text: object) -> bool:
    """True or False for the words `true` and `false`, in upper or lower case."""
    word = str(text).lower()
    if word not in ("true", "false"):
        refuse(f"{name}={text!r}: expected true or false")
    return word == "true"


def check_given(**texts: str) -> None:
    """Refuses an argument that is given but empty, as when an unset shell variable was used."""
    for name, text in texts.items():
        if not text.strip():
            refuse(f"{name}={text!r}: expected a value")


def check_recipe(recipe: str, overrides: list[str]) -> Recipe:
    try:
        return get_recipe(recipe, overrides)
    except RecipeError as error:
        refuse(str(error))


def refuse(message: str) -> NoReturn:
    for line in message.split("\n"):
        print(f"deit-fast: {line}", file=sys.stderr)
    raise SystemExit(2)
