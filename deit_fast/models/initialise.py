"""Initial weights: the truncated normal of all models of facebookresearch/deit."""

from torch import nn

TOKENS = ("cls_token", "dist_token", "pos_embed")


def draw_weights(model: nn.Module, std: float) -> None:
    """Linear layers, tokens and position embedding from a normal of `std` cut at +-2, biases zero; in place.

    From torch's global generator. Convolutions, norms and LayerScale stay as their modules made them.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=std)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for name, param in model.named_parameters():
        if name in TOKENS:
            nn.init.trunc_normal_(param, std=std)
