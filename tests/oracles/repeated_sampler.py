"""The order of facebookresearch/deit's RASampler: slow and obvious."""


def deal_out(permutation: list[int], repeats: int, world_size: int, rank: int) -> list[tuple[int, int]]:
    """(image, view) pairs that `rank` trains on in an epoch, in order.

    Every image of the permutation comes `repeats` times in a row; the list is filled up from its head to a multiple of
    the world size; a rank takes every world_size-th entry, and keeps its share of N rounded down to a multiple of 256.
    """
    entries = []
    for image in permutation:
        for view in range(repeats):
            entries.append((image, view))
    missing = 0
    while len(entries) % world_size:
        entries.append(entries[missing])
        missing += 1
    own = [entry for place, entry in enumerate(entries) if place % world_size == rank]
    return own[: (len(permutation) // 256 * 256) // world_size]
