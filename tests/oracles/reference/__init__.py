"""DeiT III's training as facebookresearch/deit does it, in plain torch, torchvision and PIL: slow, obvious, fp32.

Nothing here imports deit_fast, timm or DALI: this code was written from a description of the reference, as an oracle.
"""
