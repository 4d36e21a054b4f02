"""`deit-fast push`: publishes a checkpoint on the Hugging Face Hub in timm's layout, through huggingface_hub."""

import tempfile
from pathlib import Path

from deit_fast.convert.export import Exported, export_checkpoint
from deit_fast.runtime.errors import RunError, one_line

HUB = "hf://"


def push_checkpoint(
    source: str | Path, repository: str, ema: bool = False, private: bool = False
) -> tuple[str, Exported]:
    """Uploads model.safetensors, config.json and README.md; returns the page's address and the export's result.

    source: anything that `open_weights` takes, or a run's folder, whose scores then appear in the model card.
    repository: OWNER/NAME, which is created if it is missing. private: whether a created repository is private. Token
    and endpoint are those of huggingface_hub (hf auth login, HF_TOKEN, HF_ENDPOINT). Raises RunError for an invalid
    name, a refused token or a failing network, and what export_checkpoint raises.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError, LocalTokenNotFoundError

    name = repository.removeprefix(HUB)
    if name.count("/") != 1:
        raise RunError(f"{repository}: expected OWNER/NAME, a model of the Hugging Face Hub")
    with tempfile.TemporaryDirectory() as folder:
        written = export_checkpoint(source, Path(folder), "timm", ema=ema, place=f"hf-hub:{name}")
        try:
            hub = HfApi()
            hub.create_repo(name, private=private or None, exist_ok=True)
            hub.upload_folder(repo_id=name, folder_path=folder, commit_message="Weights and card by deit_fast")
        except (HFValidationError, LocalTokenNotFoundError) as error:
            raise RunError(f"{repository}: {one_line(error)}") from None
        except HfHubHTTPError as error:
            status = error.response.status_code
            hint = ": expected a token that may write there (hf auth login)" if status in (401, 403) else ""
            raise RunError(f"{repository}: the Hub answered {status}{hint or f' ({one_line(error)[:200]})'}") from None
        except (HTTPError, OSError) as error:  # huggingface_hub has changed its HTTP library twice
            raise RunError(f"{repository}: the Hub could not be reached ({one_line(error)[:200]})") from None
        return hub.endpoint + "/" + name, written
