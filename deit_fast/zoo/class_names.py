"""Readable names of classes. ImageNet's come with timm, by WordNet id."""

from functools import cache

IMAGENETS = {
    1000: "imagenet-1k",
    11221: "imagenet-21k-miil",
    11821: "imagenet-12k",
    21841: "imagenet-22k",
    21843: "imagenet-21k-goog",
}
"""timm's lists of classes by number of classes: 21,841 is the fall 2011 release; 21,843, Google's, has two more."""


def class_names(classes: list[str]) -> list[str]:
    """A readable name of each class: the description of a WordNet id, else the class's own name."""
    descriptions = _descriptions() if any(is_wordnet_id(name) for name in classes) else {}
    return [descriptions.get(name, name) for name in classes]


def default_classes(count: int) -> list[str]:
    """The classes of a model that does not name its classes.

    These are WordNet ids if ImageNet has a list of `count` classes, else the numbers 0 to count - 1.
    """
    return list(imagenet_classes(count)) if count in IMAGENETS else [str(label) for label in range(count)]


def imagenet_classes(count: int = 1000) -> tuple[str, ...]:
    """WordNet ids of ImageNet's classes, in the order of the labels. count: number of classes."""
    from timm.data import ImageNetInfo

    return tuple(ImageNetInfo(IMAGENETS[count]).label_names())


@cache
def _descriptions() -> dict[str, str]:
    """Words of each WordNet id, for the 21,841 classes of ImageNet-21k, which include the 1,000 of ImageNet-1k."""
    from timm.data import ImageNetInfo

    found: dict[str, str] = {}
    for subset in ("imagenet-21k", "imagenet-1k"):
        info = ImageNetInfo(subset)
        found |= {name: info.label_name_to_description(name) for name in info.label_names()}
    return found


def is_wordnet_id(name: str) -> bool:
    """Whether a name has the form of a WordNet id, such as n01440764."""
    return len(name) == 9 and name[0] == "n" and name[1:].isdigit()
