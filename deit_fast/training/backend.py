"""The image backend of a run: the same in all its processes, and the same again when the run resumes."""

from deit_fast.checkpoint.state import TrainState
from deit_fast.data.loader.backend import choose_backend
from deit_fast.recipe.schema import Recipe
from deit_fast.runtime.errors import RunError
from deit_fast.runtime.world import World


def settle_backend(recipe: Recipe, state: TrainState, world: World, resumed: bool) -> list[str]:
    """Sets the state's image_backend by run.image_backend; returns a line where it differs from the checkpoint's.

    All processes call this together. If one of them lacks the native path, none uses it. In a resumed run "auto" means
    the backend that was used before. Raises RunError, in every process, where "native" is required and one process
    lacks it.
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
