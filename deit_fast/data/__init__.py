"""From stored images to batches on the device.

sources/ opens a data set, loader/ decides which images a step gets and decodes them with DALI, augment/ draws and
applies what is done to each view, tools/ are the commands of `deit-fast data`.
"""
