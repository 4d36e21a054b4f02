from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision import transforms
from torchvision.datasets import ImageFolder

from deit_fast.checkpoint.format import save_checkpoint
from deit_fast.data.loader.batches import Batch
from deit_fast.infer.evaluate import evaluate, evaluate_checkpoint
from deit_fast.models.build import build_model
from deit_fast.recipe.table import get_recipe
from deit_fast.runtime.world import World

CPU = World(0, 1, torch.device("cpu"))


def batches(valid: list[int], classes: int, size: int = 4) -> tuple[list[Batch], dict[int, torch.Tensor]]:
    """Batches whose padding would count if it could: its labels are the predicted class."""
    rng = np.random.default_rng(0)
    logits: dict[int, torch.Tensor] = {}
    made = []
    for step, count in enumerate(valid):
        scores = torch.from_numpy(rng.normal(size=(size, classes)).astype(np.float32))
        labels = torch.from_numpy(rng.integers(classes, size=size))
        labels[count:] = scores[count:].argmax(1)
        images = torch.full((size, 3, 2, 2), step, dtype=torch.uint8)
        logits[step] = scores
        made.append(Batch(images, labels, np.arange(size), None, 0, step, count))
    return made, logits


@pytest.mark.parametrize("classes", [3, 12], ids=["fewer-than-five-classes", "twelve-classes"])
def test_scores_are_those_of_the_valid_images(classes: int) -> None:
    valid = [4, 4, 3, 0]
    made, logits = batches(valid, classes)
    scores = evaluate(lambda images: logits[int(images[0, 0, 0, 0])], made, CPU)  # type: ignore[arg-type]
    hits1, hits5, losses = [], [], []
    for step, count in enumerate(valid):
        for row in range(count):
            label, values = int(made[step].labels[row]), logits[step][row].double().numpy()
            ranked = list(np.argsort(-values))
            hits1.append(ranked[0] == label)
            hits5.append(label in ranked[:5])
            losses.append(np.log(np.exp(values).sum()) - values[label])
    assert scores.images == 11
    assert scores.values["top1"] == pytest.approx(100 * np.mean(hits1))
    assert scores.values["top5"] == pytest.approx(100 * np.mean(hits5))
    assert scores.values["loss"] == pytest.approx(np.mean(losses), rel=1e-6)


def test_a_checkpoint_scores_what_torchvision_and_timm_make_of_it(folder_data: Path, tmp_path: Path) -> None:
    """The whole path against PIL and torchvision's transforms: the loss to 1 %, the accuracies exactly."""
    words = ["model.image_size=32", "model.num_classes=3", "data.eval_crop_ratio=0.875", "run.precision=fp32"]
    recipe = get_recipe("demo_pretrain", words)
    torch.manual_seed(1)
    model = build_model(recipe.model).eval()
    with torch.no_grad():
        model.head.weight.mul_(20)  # logits far enough apart that a rounding does not decide
    content = {"model": model.state_dict(), "ema": None, "recipe": recipe.model_dump(mode="json")}
    save_checkpoint(tmp_path / "last.pt", content)
    scores = evaluate_checkpoint(tmp_path / "last.pt", str(folder_data))

    chain = transforms.Compose([
        transforms.Resize(int(32 / 0.875), transforms.InterpolationMode.BICUBIC), transforms.CenterCrop(32),
        transforms.ToTensor(), transforms.Normalize(recipe.data.mean, recipe.data.std),
    ])  # fmt: skip
    oracle = ImageFolder(str(folder_data / "val"), chain)
    images, labels = (torch.stack([image for image, _ in oracle]), torch.tensor([label for _, label in oracle]))
    with torch.no_grad():
        logits = model(images)
    assert scores["images"] == len(oracle)
    assert scores["loss"] == pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item(), rel=0.01)
    assert scores["top1"] == pytest.approx(100 * (logits.argmax(1) == labels).float().mean().item(), abs=1e-4)
    assert scores["top5"] == pytest.approx(100)
