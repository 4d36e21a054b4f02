"""Published facts about the zoo's models: sizes, speed, accuracy, and addresses of weights.

Parameters and multiply-accumulates (called FLOPs in the papers) are counted here, the latter in convolutions and matrix
products. tests/zoo/test_zoo.py counts them again and compares them with the tables of facebookresearch/deit. All other
figures are from these tables (`Published.source`); None means that a table lacks the figure. Addresses that the tables
lack (CaiT-XXS, ResMLP without distillation) are timm's. Speed and memory were measured by the authors on their
machines.
"""

from collections.abc import Iterable

from deit_fast.zoo.architectures import ARCHITECTURES, FAMILIES
from deit_fast.zoo.family import Published

PUBLISHED: list[Published] = [row for family in FAMILIES.values() for row in family.published]


def find_published(names: Iterable[str]) -> list[Published]:
    """Rows of the entries `names`, in the order of the model table."""
    chosen, order = set(names), list(ARCHITECTURES)
    return sorted((row for row in PUBLISHED if row.name in chosen), key=lambda row: order.index(row.name))
