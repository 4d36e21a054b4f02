"""The model zoo: the models that can be built, their names, and published facts about them. Plain data, no torch.

families/ has a module per family. architectures.py and published.py are the tables of all families together. family.py
defines the types of their rows, weights.py the names of published weights. fields.py checks a recipe's model section,
and class_names.py has the names of ImageNet's classes.
"""

from deit_fast.zoo.architectures import (
    ARCHITECTURES,
    FAMILIES,
    find_architecture,
    find_family,
    list_models,
    resolve_name,
)
from deit_fast.zoo.family import Architecture, Family, Published
from deit_fast.zoo.fields import check_fields
from deit_fast.zoo.published import PUBLISHED, find_published
from deit_fast.zoo.weights import check_given, find_weights_row, published_hash, published_row

__all__ = [
    "ARCHITECTURES",
    "FAMILIES",
    "PUBLISHED",
    "Architecture",
    "Family",
    "Published",
    "check_fields",
    "check_given",
    "find_architecture",
    "find_family",
    "find_published",
    "find_weights_row",
    "list_models",
    "published_hash",
    "published_row",
    "resolve_name",
]
