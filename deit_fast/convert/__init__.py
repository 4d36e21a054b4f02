"""Weights of other codebases: told apart by their content, renamed to timm's names, fitted to a model, written.

In: `detect.load_weights`, the one door, reads any file or folder. It asks the containers of formats/ (how bytes become
tensors), then the codebases of names/ (how their names become timm's). recognise.py reads the model off the shapes.
locate.py finds the weights of a folder, unwrap.py takes off what wrappers put around them, config.py reads the words
beside them, and declared.py compares the model that these words name with ours.
Between: fit.py fits the weights to a model of another resolution or head; imagenet21k.py cuts a head of ImageNet-21k.
Out: `export.export_checkpoint` writes a format of names/ or formats/, reads it back and compares the logits.
"""
