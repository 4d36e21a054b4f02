"""The toy of every kind of model that a family has, under its own name: what tests of all families go over."""

from deit_fast.zoo import FAMILIES, Architecture

TOYS: dict[str, Architecture] = {name: toy for family in FAMILIES.values() for name, toy in family.toys.items()}
