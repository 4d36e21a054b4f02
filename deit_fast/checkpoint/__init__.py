"""A run's state on disk: the content of a checkpoint, and how it is written, verified, found again and uploaded.

In: a `TrainState` (state.py). Out: PATH.pt with the whole state, PATH.safetensors with the weights alone, and
PATH.sha256, which holds the checksums of both and is called their seal (format.py). save.py writes checkpoints in a
thread while training continues. resume.py finds the checkpoint from which a run continues. store.py keeps a run folder
in an object store.
"""
