"""One module per model family. Its FAMILY is what a recipe, the zoo and the tests need of it, without torch.

deit_fast/models/ has the module of the same name, which builds the family's models.
"""
