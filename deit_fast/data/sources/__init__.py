"""Data sets as they are stored.

In: a path or URI, and the split wanted. Out: a `Source` (base.py): N encoded images with a class each, by index, whose
bytes and header can be read from several threads, and nothing decoded. place.py sees what is in a folder, here or in a
store, splits.py says which folders and shards are a split, shards.py which shards are a data set, samples.py what is a
label in a shard, label_files.py what is one beside a flat folder; listing.py has the files of folders, kept_listing.py
keeps that in the cache folder. A kind of data set is a module with a `SOURCE` (source_format.py). `open_source` and
`find_validation` (open.py) ask them all. Bad files and shards raise DataError, one line.
"""
