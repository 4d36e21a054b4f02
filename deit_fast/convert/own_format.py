"""The number of the format of deit_fast's own checkpoints, and what to do about a file of another one.

It goes up where a version can no longer go on from what an earlier one wrote. A new key that a checkpoint may lack, and
whose absence has a meaning, changes no format. tests/checkpoint/stored has a small checkpoint of each number.
"""

FORMAT = 1

ADVICE = (
    "finish the run with the version of deit_fast that wrote it, or start another --out from its weights, with "
    "--init and its .safetensors file"
)


def refuse_format(found: object) -> str:
    """What is wrong with a checkpoint whose "format" is `found`, and what to do; empty where nothing is."""
    if found == FORMAT and not isinstance(found, bool):
        return ""
    if not isinstance(found, int) or isinstance(found, bool):
        return f"expected a deit_fast checkpoint of format {FORMAT}, found none of deit_fast's"
    if found > FORMAT:
        return f"of format {found}, and this version of deit_fast reads {FORMAT}: it needs a newer one"
    return f"of format {found}, and this version of deit_fast goes on from {FORMAT}: {ADVICE}"
