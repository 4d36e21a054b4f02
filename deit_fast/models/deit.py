"""DeiT (arXiv:2012.12877), plain and distilled: timm's `deit_*`."""

from deit_fast.models.state_dicts import Weights, WeightsError
from deit_fast.models.vit import ViTFamily, has_layer_scale, split_positions


class DeiTFamily(ViTFamily):
    """DeiT, plain and distilled: timm's `deit_*`."""

    def recognises(self, tensors: Weights) -> bool:
        """Whether this is a vision transformer with a class slot in its positions and without LayerScale."""
        if not super().recognises(tensors) or "pos_embed" not in tensors or has_layer_scale(tensors):
            return False
        try:
            return split_positions(tensors)[0] > 0
        except WeightsError:
            return False


FAMILY = DeiTFamily()
