"""Named resources of a node for `-h` of the components: the amounts to request from a scheduler.

They are smaller than the usual machine of that kind, to leave room for the system's own processes.
"""

from torchx.specs import Resource


def h200() -> Resource:
    """Eight H200 GPUs."""
    return Resource(cpu=96, gpu=8, memMB=1_000_000)


def h100() -> Resource:
    """Eight H100 GPUs."""
    return Resource(cpu=96, gpu=8, memMB=1_000_000)


def a100() -> Resource:
    """Eight A100 GPUs."""
    return Resource(cpu=64, gpu=8, memMB=500_000)


def cpu_small() -> Resource:
    """A few cores, for evaluations and trials."""
    return Resource(cpu=4, gpu=0, memMB=16_000)
