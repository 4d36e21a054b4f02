"""Weights of other codebases: recognised by content, renamed to timm's names, fitted to a model, and written.

Reading: `detect.load_weights` is the only entry point, for any file or folder. It asks the containers of formats/,
which turn bytes into tensors, and then the codebases of names/, which turn their names into timm's. recognise.py infers
the model from the shapes. locate.py finds the weights in a folder, and unwrap.py removes the wrappers around them.
config.py reads the text beside the weights, and declared.py compares the model that this text names with the inferred
one.
Between: fit.py fits weights to a model with another resolution or head; imagenet21k.py cuts down a head of
ImageNet-21k.
Writing: `export.export_checkpoint` writes a format of names/ or formats/, reads it back and compares the logits.
"""
