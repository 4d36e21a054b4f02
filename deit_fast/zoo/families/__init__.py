"""One module per model family. Its FAMILY holds the facts that recipes, the zoo and the tests need, without torch.

The module of the same name in deit_fast/models/ builds the family's models.
"""
