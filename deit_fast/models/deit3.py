"""DeiT III (arXiv:2204.07118) and the models of Three things (arXiv:2203.09795): timm's `deit3_*`."""

from deit_fast.models import deit
from deit_fast.models.state_dicts import Sizes, Weights, WeightsError
from deit_fast.models.vit import ViTFamily, split_positions
from deit_fast.zoo import FAMILIES


class DeiT3Family(ViTFamily):
    """DeiT III: timm's `deit3_*`; and the models of Three things."""

    def recognises(self, tensors: Weights) -> bool:
        """Whether this is a vision transformer with LayerScale, or without a class slot in its positions."""
        return super().recognises(tensors) and not deit.FAMILY.recognises(tensors)

    def read(self, tensors: Weights, grid: tuple[int, int] | None) -> Sizes:
        """Reads the sizes. Also raises WeightsError where they may be those of a DeiT for non-square images.

        Without LayerScale only the number of positions tells the two families apart: 9 positions are 3 x 3 patches, or
        2 x 4 patches and a class slot. From 8 x 8 patches on, the other reading is an almost square image (7 x 9
        patches), a size that is not in use.
        """
        sizes = super().read(tensors, grid)
        deits = FAMILIES["deit"].architectures.values()
        if grid is None and not sizes.layer_scale and "cls_token" in tensors and "pos_embed" in tensors:
            side = split_positions(tensors)[1][0]
            if 2 < side < 8 and any(
                all(getattr(each, key) == sizes.entry[key] for key in sizes.entry) for each in deits
            ):
                raise WeightsError(
                    f"has {side * side} positions: expected those of a square of patches and of the class token; it "
                    f"may be {side - 1} x {side + 1} patches and a token, or {side} x {side} without a place for one, "
                    "which only a config.json with img_size can tell"
                )
        return sizes


FAMILY = DeiT3Family()
