"""The sections of a recipe: every value that decides what is learned, with its type, its default and its meaning.

Nothing here imports torch, so that mistakes in a recipe are reported at once.
"""

from deit_fast.recipe.sections.base import Section
from deit_fast.recipe.sections.images import Augment, Data, Mix
from deit_fast.recipe.sections.model import Distill, Loss, Model
from deit_fast.recipe.sections.optim import Optim
from deit_fast.recipe.sections.optimizers.adamw import AdamWOptim
from deit_fast.recipe.sections.optimizers.lamb import LambOptim
from deit_fast.recipe.sections.optimizers.sgd import SGDOptim
from deit_fast.recipe.sections.run import Run
from deit_fast.recipe.sections.schedule import Schedule

__all__ = ["AdamWOptim", "Augment", "Data", "Distill", "LambOptim", "Loss", "Mix", "Model", "Optim", "Run",
           "SGDOptim", "Schedule", "Section"]  # fmt: skip
