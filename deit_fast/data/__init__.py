"""From stored images to batches on the device: sources -> loader (which draws and applies augment) -> batches."""
