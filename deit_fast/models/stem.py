"""The hierarchical MLP patch embedding of "Three things everyone should know about vision transformers"."""

from typing import Any

from torch import Tensor, nn

# Side of a patch, for every model: the product of the strides below.
PATCH_SIZE = 16


class MLPStem(nn.Module):
    """hMLP (arXiv:2203.09795, section 5): patches of 4 x 4 pixels, merged twice 2 x 2, with BatchNorm and GELU between.

    Images [B, 3, H, W] -> tokens [B, N, D]. Kernels are as large as their strides, so no patch sees another one. The
    module takes the place of timm's PatchEmbed. Unlike in facebookresearch/deit models_v2.py, BatchNorm is not
    synchronised: each process normalises with its own batch. That needs no communication, and each image contributes
    196 positions or more to the statistics.
    """

    def __init__(self, img_size: int, patch_size: int, in_chans: int, embed_dim: int, **unset: Any) -> None:
        super().__init__()
        assert patch_size == PATCH_SIZE
        self.img_size = (img_size, img_size)
        self.patch_size = (PATCH_SIZE, PATCH_SIZE)
        self.grid_size = (img_size // PATCH_SIZE, img_size // PATCH_SIZE)
        self.num_patches = self.grid_size[0] * self.grid_size[1]
        quarter = embed_dim // 4
        self.proj = nn.Sequential(
            nn.Conv2d(in_chans, quarter, 4, 4),
            nn.BatchNorm2d(quarter),
            nn.GELU(),
            nn.Conv2d(quarter, quarter, 2, 2),
            nn.BatchNorm2d(quarter),
            nn.GELU(),
            nn.Conv2d(quarter, embed_dim, 2, 2),
            nn.BatchNorm2d(embed_dim),
        )

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, H / 16 x W / 16, D]."""
        return self.proj(images).flatten(2).transpose(1, 2)
