"""From stored images to batches on the device.

sources/ opens a data set. loader/ decides which images each step gets, and decodes them with DALI. augment/ draws the
parameters of augmentation and applies them to each view. tools/ holds the commands of `deit-fast data`.
"""
