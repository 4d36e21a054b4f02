"""The networks: timm's modules and names, with what DeiT III needs and timm lacks."""
