"""Wraps the model and the training step before the loop starts, in this order:

model -> shards (FSDP2) -> optimizer and average -> compute copy        build_state, before a checkpoint is loaded
activation checkpointing -> objective -> torch.compile -> DDP           prepare, after it, by all processes together
"""

import copy

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from deit_fast.checkpoint.state import TrainState
from deit_fast.infer.compile import compile_blocks, compile_or_stay, try_gradient
from deit_fast.infer.precision import Classifier, choose_dtype
from deit_fast.models.build import ImageModel, build_model
from deit_fast.models.recompute import recompute
from deit_fast.optim.build import build_optimizer, freeze
from deit_fast.optim.compute_copy import copy_to_compute
from deit_fast.optim.sharding import Shards
from deit_fast.recipe.schema import Recipe
from deit_fast.recipe.sections import Run
from deit_fast.runtime.errors import RecipeError
from deit_fast.runtime.world import World
from deit_fast.training.distill import Teacher
from deit_fast.training.objective import Objective, blank_batch
from deit_fast.training.sharding import build_mesh, exchange_in_shards, replicate, shard_model
from deit_fast.training.step import TrainStep


def check_machine(run: Run, world: World) -> torch.dtype:
    """The type in which the run computes: bf16 where the hardware has it, unless run.precision says otherwise.

    Raises RecipeError, before a model is built, where this machine lacks something that the recipe needs.
    """
    dtype = choose_dtype(run, world.device)
    if run.compute_copy and dtype != torch.bfloat16:
        raise RecipeError(f"run.compute_copy=true: expected a run that computes in bf16, got {dtype}")
    if run.compute_copy and world.size > 1 and run.reduce_dtype != "bf16":
        raise RecipeError(
            f"run.compute_copy=true: expected run.reduce_dtype='bf16' for {world.size} processes, "
            f"got {run.reduce_dtype!r}"
        )
    return dtype


def initial_state(recipe: Recipe, world: World) -> TrainState:
    """The state of step 0 with weights drawn from the seed, on the device or sharded over all processes' devices."""
    model, mesh = build_model(recipe.model, recipe.run.seed_of("init")), build_mesh(recipe.run, world)
    if mesh is None:
        model = model.to(world.device).to(memory_format=torch.channels_last)
    return build_state(recipe, model, mesh)


def build_state(recipe: Recipe, model: ImageModel, mesh: DeviceMesh | None = None) -> TrainState:
    """The state of step 0 for a model with its initial weights: adds the optimizer and the moving average.

    The model is on its device; with a `mesh` it is in host memory, to be sharded over the mesh's devices.
    """
    ema = None
    if recipe.optim.ema_decay is not None:
        ema = copy.deepcopy(model).requires_grad_(False).eval()
        for own, average in zip(model.modules(), ema.modules(), strict=True):
            average._buffers = own._buffers  # running statistics are averages already, so both models share them
    shards = None
    if mesh is not None:
        for each in [model] if ema is None else [model, ema]:
            shard_model(each, mesh, recipe.run.reduce_dtype)
        shards = Shards(model)
    compute: ImageModel | None = None
    copies: dict[Tensor, nn.Parameter] = {}
    if recipe.run.compute_copy:
        freeze(model, recipe.optim)  # the copy's weights freeze too
        compute, copies = copy_to_compute(model)
    return TrainState(model, ema, build_optimizer(recipe.optim, model, ema, shards, copies), shards, compute, copies)


def build_objective(
    recipe: Recipe, state: TrainState, world: World, dtype: torch.dtype, teacher: Teacher | None
) -> Objective:
    """The loss of a state's model, computed in `dtype`, with activation checkpointing if the run uses it."""
    model = state.model if state.compute is None else state.compute
    model.train(recipe.model.train_mode)
    recompute(model, recipe.run)  # the moving average was copied before, and needs none
    return Objective(Classifier(model, recipe, dtype, world.device), recipe, teacher)


def prepare(
    recipe: Recipe, state: TrainState, world: World, dtype: torch.dtype, teacher: Teacher | None = None
) -> TrainStep:
    """The training step for a state whose weights are loaded, with everything that the recipe wraps around it.

    All processes call this together. torch.compile compiles at the first call only, so it is tried with a blank batch
    of the run's shapes. That trial leaves gradients, random state and running statistics unchanged. dtype: from
    `check_machine`. Raises RunError where run.compile is "on" and torch.compile fails.
    """
    run, objective = recipe.run, build_objective(recipe, state, world, dtype, teacher)
    classifier = objective.classifier
    if state.shards is not None:  # blocks are compiled one by one: weights are gathered between them
        models = [each for each in (state.model, state.ema) if each is not None]
        compile_blocks(models, recipe, classifier.run, world)
        return TrainStep(recipe, state, world, classifier, objective, exchange_in_shards(state.model))

    images = run.global_batch // (world.size * run.passes)  # Cosub's two passes over these images come later

    def try_one_batch(module: nn.Module) -> None:
        try_gradient(module, blank_batch(recipe, images, world.device), world.device)

    # The objective is compiled before DDP wraps it. It is then one graph without breaks at DDP's buckets, but all
    # gradients arrive together at its end. If the DDP module were compiled, torch would split the graph at every
    # bucket.
    chosen = compile_or_stay(objective, try_one_batch, run, world)
    compiled = chosen is not objective
    if world.size > 1:
        ddp, exchange = replicate(chosen, run)
        return TrainStep(recipe, state, world, classifier, ddp, exchange, compiled)
    return TrainStep(recipe, state, world, classifier, chosen, compiled=compiled)
