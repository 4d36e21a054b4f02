"""Counts what the kernels of a compiled training step read and write; `traffic.py` runs it in a process of its own.

MODEL BATCH BLOCKS... [--assemble] -- key=value...: prints a line for each number of blocks, the JSON list of its
kernels. With --assemble a line comes first, the JSON list of what all configurations of the first's became.
"""

import contextlib
import json
import math
import sys
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn

from deit_fast.infer.precision import Classifier
from deit_fast.models.build import build_model
from deit_fast.models.recompute import recompute
from deit_fast.optim.compute_copy import copy_to_compute
from deit_fast.recipe.schema import Recipe
from deit_fast.training.objective import Mixing, Objective

from .fake_gpu import assemble, pretend
from .kernel_traffic import TRAFFIC
from .workload import find_recipe


class Counted(Exception):
    """All graphs are compiled and counted: nothing can run."""


def kernels_of(graph: Any) -> list[dict[str, Any]]:
    """Each kernel of a graph that Inductor has generated: name, whether it is a matrix product or attention, bytes."""
    from torch._inductor import ir, scheduler

    found = []
    for node in graph.scheduler.nodes:
        if isinstance(node, scheduler.NopKernelSchedulerNode) or isinstance(node.node, ir.MultiOutput):
            continue
        origins = sorted(origin.name for each in node.get_nodes() if each.node for origin in each.node.get_origins())
        if isinstance(node, scheduler.ExternKernelSchedulerNode):
            function = getattr(node.node, "op_overload", None)
            name = str(function) if function is not None else str(getattr(node.node, "python_kernel_name", "extern"))
            own = name.partition(".default")[0].removeprefix("deit_fast.")
            if name.startswith("deit_fast."):
                bytes_moved, large = _own_kernel(node.node, own), False
            else:
                bytes_moved, large = _extern_kernel(graph, node.node), True
        else:
            name, large = "triton", False
            bytes_moved = _generated_kernel(graph, node)
        # The class token is joined to the patches once, in a kernel that now and then writes the result twice.
        if name != "triton" or "cat" not in origins:
            found.append({"name": name, "product": large, "bytes": bytes_moved, "origins": origins[:6]})
    return found


def _buffer(graph: Any, name: str) -> Any:
    """The memory behind a name: what was written to in place has another name from there on."""
    from torch._inductor import ir

    buffer = graph.graph_inputs.get(name) or graph.get_buffer(name)
    while isinstance(getattr(buffer, "layout", None), ir.NoneLayout):
        buffer = _buffer(graph, buffer.get_mutation_names()[0])
    return buffer


def _numel(node: Any) -> int:
    return math.prod(map(int, node.get_size()))


def _generated_kernel(graph: Any, node: Any) -> int:
    """Each element that is accessed counts once, read or written; one that is added to counts as both.

    Where an index is read from memory, as of gathered rows, it is as many elements as there are places to fill.
    """
    from torch._inductor.dependencies import MemoryDep

    members = {each.get_name() for each in node.get_nodes()}
    made_here = {name for each in node.get_nodes() for name in each.get_buffer_names()}
    total = 0
    for write, deps in enumerate((node.read_writes.reads, node.read_writes.writes)):
        elements: dict[str, int] = defaultdict(int)
        for dep in deps:
            if not isinstance(dep, MemoryDep) or dep.name in graph.removed_buffers:
                continue  # what only has to come first is not read
            if dep.name in made_here:
                users = {user.get_name() for user in graph.scheduler.name_to_buf[dep.name].users}
                if not write or users <= members:
                    continue  # it stays in registers
            limit = _numel(_buffer(graph, dep.name))
            passes = 2 if write and dep.mode == "atomic_add" else 1
            if dep.is_indirect():  # the same rows, in however many orders
                places = math.prod(map(int, dep.size))
                elements[dep.name] = max(elements[dep.name], passes * min(places, limit))
            else:
                elements[dep.name] = min(elements[dep.name] + passes * int(dep.get_numel()), passes * limit)
        total += sum(count * _buffer(graph, name).get_dtype().itemsize for name, count in elements.items())
    return total


def _extern_kernel(graph: Any, node: Any) -> int:
    """Inputs and outputs, each once; an input that is a view counts what it shows."""
    from torch._inductor import ir

    views = {}
    inputs: list[Any] = [each for each in node.inputs if hasattr(each, "get_size")]
    for given in inputs:
        key = (given.get_name(), str(given.get_layout().offset), str(given.get_size()))
        views[key] = _numel(given) * given.get_dtype().itemsize
    total = sum(views.values())
    outputs = [node]
    if isinstance(node.layout, ir.MultiOutputLayout):
        users = graph.scheduler.name_to_buf[node.get_name()].users
        outputs = [user.node.node for user in users if isinstance(getattr(user.node, "node", None), ir.MultiOutput)]
    for output in outputs:
        if isinstance(output.get_layout(), ir.Layout):
            total += _numel(output) * output.get_dtype().itemsize
    return total


def _own_kernel(node: Any, name: str) -> int:
    """By kernel_traffic.py, from the fake tensors of the traced call."""
    (traced,) = (origin for origin in node.get_origins() if origin.target is node.op_overload)

    def value(argument: Any) -> Any:
        return argument.meta["val"] if isinstance(argument, torch.fx.Node) else argument

    names = [argument.name for argument in traced.target._schema.arguments]
    given = dict(zip(names, map(value, traced.args), strict=False))
    given |= {name: value(argument) for name, argument in traced.kwargs.items()}
    return round(TRAFFIC[name](results=traced.meta["val"], **given))


def count(word: str, blocks: int, batch: int, words: list[str]) -> list[dict[str, Any]]:
    """The kernels of a training step's forward and backward pass of a zoo entry cut to its first `blocks` blocks."""
    from torch._inductor.graph import GraphLowering
    from torch._inductor.output_code import CompiledFxGraph
    from torch._subclasses.fake_tensor import FakeTensorMode

    recipe = find_recipe(word, batch, words)
    found: list[dict[str, Any]] = []
    compile_to_module = GraphLowering.compile_to_module

    def compile_and_count(self: Any) -> Any:
        module = compile_to_module(self)
        with torch._inductor.virtualized.V.set_graph_handler(self):
            found.extend(kernels_of(self))
        return module

    def stop(self: Any, *args: Any) -> Any:
        raise Counted

    GraphLowering.compile_to_module = compile_and_count  # type: ignore[method-assign]
    CompiledFxGraph.__call__ = stop  # type: ignore[method-assign, assignment]
    torch._dynamo.reset()
    try:
        with torch.device("meta"):
            model = build_model(recipe.model, 0)
        model.blocks = model.blocks[:blocks]
        model.patch_embed = PatchLinear(model)  # a convolution's algorithm is chosen by timing
        with FakeTensorMode(allow_non_fake_inputs=True):
            _compile(model, recipe)
    except Counted:
        pass
    finally:
        GraphLowering.compile_to_module = compile_to_module  # type: ignore[method-assign]
    return found


def _compile(model: Any, recipe: Recipe) -> None:
    device = torch.device("cuda", 0)

    def fake(tensor: Tensor, memory_format: torch.memory_format = torch.preserve_format) -> Tensor:
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)

    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(fake(parameter))
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = fake(buffer)
    model.train()
    if recipe.run.compute_copy:
        model, _ = copy_to_compute(model)
    recompute(model, recipe.run)
    classifier = Classifier(model, recipe, torch.bfloat16, torch.device("cpu"))
    classifier.mean, classifier.scale = fake(classifier.mean), fake(classifier.scale)
    batch, side = recipe.run.global_batch, recipe.model.image_size
    images = torch.empty(batch, 3, side, side, dtype=torch.uint8, device=device).to(memory_format=torch.channels_last)
    labels = torch.empty(batch, dtype=torch.int64, device=device)
    mixing = Mixing(
        torch.empty(batch, device=device),
        torch.empty(batch, 4, dtype=torch.int32, device=device),
        torch.empty(batch, dtype=torch.bool, device=device),
    )
    torch.compile(Objective(classifier, recipe))(images, labels, mixing)


class PatchLinear(nn.Module):
    """The patch embedding as a matrix product of patches that are cut out: images [B, 3, S, S] -> tokens [B, N, D]."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.side = model.patch_embed.patch_size[0]
        self.proj = nn.Linear(3 * self.side**2, model.embed_dim, device="meta")

    def forward(self, images: Tensor) -> Tensor:
        batch, channels, height, width = images.shape
        rows, columns = height // self.side, width // self.side
        cut = images.reshape(batch, channels, rows, self.side, columns, self.side).permute(0, 2, 4, 1, 3, 5)
        return self.proj(cut.reshape(batch, rows * columns, channels * self.side**2))


def main() -> None:
    split = sys.argv.index("--")
    word, batch, *blocks = (each for each in sys.argv[1:split] if each != "--assemble")
    torch.set_num_threads(1)
    pretend()
    with assemble() if "--assemble" in sys.argv[1:split] else contextlib.nullcontext() as binaries:
        counts = [count(word, int(blocks[0]), int(batch), sys.argv[split + 1 :])]
    counts += [count(word, int(number), int(batch), sys.argv[split + 1 :]) for number in blocks[1:]]
    for line in counts if binaries is None else [binaries, *counts]:
        print(json.dumps(line))


if __name__ == "__main__":
    main()
