"""Tools of `deit-fast data`: everything that users do with a data set besides training on it.

In: a `Source`, or a folder to write to. Out: a report of the images that a run could not use (check.py), a picture of
the views that training sees (preview.py), the data set as tar shards (write_shards.py), the index of shards (index.py),
or the demo's digits (demo.py). The tools use training's own pipelines and decoders, so that their findings hold for
training.
"""
