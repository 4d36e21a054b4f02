"""One module per codebase: its names of the weights, to and from timm's."""
