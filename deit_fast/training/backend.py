"""What makes the pixels of a run: the same on all its processes, and the same again where it goes on."""

from deit_fast.checkpoint.state import TrainState
from deit_fast.data.loader.backend import choose_backend
from deit_fast.recipe.schema import Recipe
from deit_fast.runtime.errors import RunError
from deit_fast.runtime.world import World


def settle_backend(recipe: Recipe, state: TrainState, world: World, resumed: bool) -> list[str]:
    """Chooses the state's image_backend by run.image_backend, and returns a line where it is not the checkpoint's.

    All processes call it together: where one of them has no native path, none uses it. "auto" of a run that goes on is
    what made its pixels before. Raises RunError, on every process, where "native" is asked for and one cannot.
    """
    before, wanted = state.image_backend, recipe.run.image_backend
    if resumed and wanted == "auto" and before == "dali":
        return []
    chosen, error = "dali", None
    try:
        chosen = choose_backend(wanted, world.device, recipe.augment)
    except RunError as reason:
        error = reason
    seen = world.gather((chosen, error))
    if error := next((error for _, error in seen if error is not None), None):
        raise error
    state.image_backend = "native" if all(chosen == "native" for chosen, _ in seen) else "dali"
    if resumed and state.image_backend != before:
        return [f"pixels were made by {before} before, by {state.image_backend} from here on (run.image_backend)"]
    return []
