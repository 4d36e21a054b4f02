"""What users do with a data set besides training on it.

In: a `Source`, or a folder to write to. Out: a report of the images that a run could not use (check.py), a picture of
what training sees (preview.py), the data set as tar shards (write_shards.py), or the demo's digits (demo.py). Each is a
subcommand of `deit-fast data`. They use the pipelines and decoders that training uses, so that they tell about it.
"""
