"""What was published of the zoo's models: sizes, speed, accuracy, and where the weights are.

Parameters and multiply-accumulates (which the papers call FLOPs) are counted, the latter in convolutions and matrix
products, and tests/zoo/test_zoo.py counts them again, and compares them with what facebookresearch/deit's tables print.
All other figures are those tables' (`Published.source`): None is what they do not say. Addresses that they lack
(CaiT-XXS, ResMLP without distillation) are timm's. Speed and memory are the authors', on their machines.
"""

from collections.abc import Iterable

from deit_fast.zoo.architectures import ARCHITECTURES, FAMILIES
from deit_fast.zoo.family import Published

PUBLISHED: list[Published] = [row for family in FAMILIES.values() for row in family.published]


def find_published(names: Iterable[str]) -> list[Published]:
    """Rows of the entries `names`, in the order of the model table."""
    chosen, order = set(names), list(ARCHITECTURES)
    return sorted((row for row in PUBLISHED if row.name in chosen), key=lambda row: order.index(row.name))
