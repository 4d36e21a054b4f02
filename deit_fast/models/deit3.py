"""DeiT III (arXiv:2204.07118) and the models of Three things (arXiv:2203.09795): timm's `deit3_*`."""

from deit_fast.models import deit
from deit_fast.models.state_dicts import Weights
from deit_fast.models.vit import ViTFamily


class DeiT3Family(ViTFamily):
    """DeiT III: timm's `deit3_*`; and the models of Three things."""

    def recognises(self, tensors: Weights) -> bool:
        """A vision transformer that is no DeiT: with LayerScale, or without a class slot in its positions."""
        return super().recognises(tensors) and not deit.FAMILY.recognises(tensors)


FAMILY = DeiT3Family()
