"""The sections of a recipe: every value that decides what is learned, with its type, its default and its meaning.

Nothing here imports torch: a bad recipe costs one line and no waiting.
"""

from deit_fast.recipe.sections.base import Section
from deit_fast.recipe.sections.images import Augment, Data, Mix
from deit_fast.recipe.sections.model import Distill, Loss, Model
from deit_fast.recipe.sections.training import Optim, Run, Schedule

__all__ = ["Augment", "Data", "Distill", "Loss", "Mix", "Model", "Optim", "Run", "Schedule", "Section"]
