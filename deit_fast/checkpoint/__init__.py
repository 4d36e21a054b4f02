"""A run's state on disk: what a checkpoint holds, how it is written, verified, found again and kept in an object store.

In: a `TrainState` (state.py). Out: PATH.pt with all of it, PATH.safetensors with the weights alone, and PATH.sha256,
their seal (format.py). save.py writes them in a thread while training goes on, resume.py finds the one that a run goes
on from, store.py keeps a run folder in an object store.
"""
