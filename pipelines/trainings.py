"""The trainings of a pipeline, those of a published size or recipes named by the user, and the jobs for them."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from deit_fast.recipe.parse import read_val_fraction
from deit_fast.recipe.table import get_recipe

from .stages import Stage
from .state import PipelineError

PIPELINES: dict[str, dict[str, str]] = {
    "small": {"pretrain": "deit3_small_1k_224", "finetune_384": "deit3_small_1k_384_ft"},
    "base": {
        "pretrain": "deit3_base_1k_192",
        "finetune_224": "deit3_base_1k_224_ft",
        "finetune_384": "deit3_base_1k_384_ft",
    },
    "large": {
        "pretrain": "deit3_large_1k_192",
        "finetune_224": "deit3_large_1k_224_ft",
        "finetune_384": "deit3_large_1k_384_ft",
    },
    "huge": {"pretrain": "deit3_huge_1k_160", "finetune_224": "deit3_huge_1k_224_ft"},
    "small_21k": {"pretrain": "deit3_small_21k_224", "finetune_1k": "deit3_small_21k_1k_224_ft"},
    "base_21k": {"pretrain": "deit3_base_21k_224", "finetune_1k": "deit3_base_21k_1k_224_ft"},
    "large_21k": {"pretrain": "deit3_large_21k_224", "finetune_1k": "deit3_large_21k_1k_224_ft"},
    "huge_21k": {"pretrain": "deit3_huge_21k_128", "finetune_1k": "deit3_huge_21k_1k_224_ft"},
    "demo": {"pretrain": "demo_pretrain", "finetune": "demo_finetune"},
}
"""Training stages and their recipes by size; each starts from the weights of the stage before. SIZE_21k trains on
ImageNet-21k, then on ImageNet-1k."""

COMPONENTS = Path(__file__).resolve().parent.parent / "components" / "deit.py"


def build_stages(
    size: str,
    data: str,
    out: str,
    val: str = "",
    overrides: Sequence[str] = (),
    where: Sequence[str] = (),
    pretrain_data: str = "",
    labels: str = "",
    trainings: Mapping[str, str] | None = None,
    init: str = "",
) -> list[Stage]:
    """The stages of a size: each training, and an evaluation of its last checkpoint, as the reference reports it.

    trainings: recipes by stage, if they are not those of `size`, which then only names the jobs. init: weights from
    which the first of them starts. overrides: section.key=value words for every training, or STAGE:section.key=value
    for one stage. pretrain_data: data for the first training, whose evaluation uses their own val split; by default
    `data`. labels: the file of labels of validation images without class folders. Raises PipelineError for an unknown
    stage.
    """
    trainings = PIPELINES[size] if trainings is None else trainings
    names = [name for training in trainings for name in (training, f"evaluate_{training}")]
    words: dict[str, list[str]] = {name: [] for name in names}
    for override in overrides:
        stage, colon, _ = override.partition("=")[0].partition(":")
        if not colon:
            for name in trainings:
                words[name].append(override)
        elif stage in words:
            words[stage].append(override.removeprefix(f"{stage}:"))
        else:
            raise PipelineError(f"{override}: no stage {stage!r}; expected one of {', '.join(names)}")
    stages: list[Stage] = []
    before = ""
    for name, recipe in trainings.items():
        folder, checkpoint = f"{out}/{name}", f"{out}/{name}/checkpoints/last.pt"
        images, held_out = (pretrain_data, "") if pretrain_data and not before else (data, val)
        named = ["--labels", labels] if labels and images == data else []
        sources = ["--data", images, *(["--val", held_out] if held_out else []), *named]
        own_split = not held_out or read_val_fraction(held_out) is not None
        evaluated = ["--data", images if own_split else held_out, *named]
        start = ["--init", f"{out}/{before}/checkpoints/last.pt" if before else init] if before or init else []
        evaluation, scores = f"evaluate_{name}", f"{folder}/evaluation.json"
        stages += [
            Stage(
                name=name,
                component=f"{COMPONENTS}:{'finetune' if start else 'pretrain'}",
                arguments=("--recipe", recipe, *start, *sources, "--out", folder, *words[name]),
                needs=(before,) if before else (),
                where=("--name", f"{size}-{name}", *where),
                output=folder,
                result=f"{folder}/result.json",
            ),
            Stage(
                name=evaluation,
                component=f"{COMPONENTS}:evaluate",
                arguments=("--checkpoint", checkpoint, *evaluated, "--out", scores, *words[evaluation]),
                needs=(name,),
                where=("--name", f"{size}-{evaluation}", *where),
                output=scores,
                result=scores,
            ),
        ]
        before = name
    return stages


def name_trainings(size: str | None, recipes: str, init: str) -> tuple[str, dict[str, str]]:
    """A name for the jobs, and recipes by stage: of a published size, or those named in `recipes`, separated by commas.

    init: weights from which the first training starts. Raises PipelineError, RecipeError.
    """
    if bool(size) == bool(recipes):
        raise PipelineError(f"--size={size or ''} --recipe={recipes}: expected one of the two")
    if size:
        if init:
            raise PipelineError(f"--init {init}: expected with --recipe, as --size {size} begins with a pretraining")
        return size, PIPELINES[size]
    named = {Path(each).stem: each for each in recipes.split(",")}
    if len(named) < len(recipes.split(",")):
        raise PipelineError(f"--recipe={recipes}: expected each recipe once")
    first = next(iter(named.values()))
    if get_recipe(first).run.start == "weights" and not init:
        raise PipelineError(f"--recipe {first}: expected --init with the weights that it finetunes, or none")
    return next(iter(named)), named
