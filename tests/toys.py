"""A toy model for each kind of model of every family, by its name; tests of all families iterate over them."""

from deit_fast.zoo import FAMILIES, Architecture

TOYS: dict[str, Architecture] = {name: toy for family in FAMILIES.values() for name, toy in family.toys.items()}
