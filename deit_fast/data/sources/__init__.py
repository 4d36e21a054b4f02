"""Data sets as they are stored.

In: a path or URI, and the split wanted. Out: a `Source` (base.py): N encoded images with a class each. Its bytes and
headers can be read by index from several threads; nothing is decoded.

place.py lists a folder on this machine or in a store. splits.py tells which folders and shards belong to a split,
shards.py which shards belong to a data set. samples.py finds the label of an image in a shard, label_files.py reads a
file of labels beside a flat folder. listing.py holds the file names of folders, and kept_listing.py keeps them in the
cache folder. Each kind of data set is a module with a `SOURCE` (source_format.py). `open_source` and `find_validation`
(open.py) ask all kinds. Bad files and shards raise DataError, one line.
"""
