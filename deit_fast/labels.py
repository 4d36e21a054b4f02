"""Names of classes for people. ImageNet's come with timm, by WordNet id."""

from functools import cache


def class_names(classes: list[str]) -> list[str]:
    """What each class is called: the description of a WordNet id, else the class's own name."""
    descriptions = _descriptions() if any(_is_wordnet_id(name) for name in classes) else {}
    return [descriptions.get(name, name) for name in classes]


def imagenet_classes() -> list[str]:
    """The WordNet ids of ImageNet-1k in the order of its 1,000 classes."""
    from timm.data import ImageNetInfo

    return list(ImageNetInfo("imagenet-1k").label_names())


@cache
def _descriptions() -> dict[str, str]:
    """WordNet id to words, for the 21,841 classes of ImageNet-21k and so the 1,000 of ImageNet-1k."""
    from timm.data import ImageNetInfo

    found: dict[str, str] = {}
    for subset in ("imagenet-21k", "imagenet-1k"):
        info = ImageNetInfo(subset)
        found |= {name: info.label_name_to_description(name) for name in info.label_names()}
    return found


def _is_wordnet_id(name: str) -> bool:
    return len(name) == 9 and name[0] == "n" and name[1:].isdigit()
