"""The format number of deit_fast's own checkpoints, and the message about a file with another number.

The number increases when a version can no longer resume from the checkpoints of an earlier version. A new key that a
checkpoint may lack, with a meaning for its absence, does not change it. tests/checkpoint/stored has a small checkpoint
of each number.
"""

FORMAT = 1

ADVICE = (
    "finish the run with the version of deit_fast that wrote it, or start another --out from its weights, with "
    "--init and its .safetensors file"
)


def refuse_format(found: object) -> str:
    """What is wrong with a checkpoint whose "format" is `found`, and what to do; "" if nothing is wrong."""
    if found == FORMAT and not isinstance(found, bool):
        return ""
    if not isinstance(found, int) or isinstance(found, bool):
        return f"expected a deit_fast checkpoint of format {FORMAT}, found none of deit_fast's"
    if found > FORMAT:
        return f"of format {found}, and this version of deit_fast reads {FORMAT}: it needs a newer one"
    return f"of format {found}, and this version of deit_fast goes on from {FORMAT}: {ADVICE}"
