"""From a source to batches: order, reading ahead, decoding and augmenting."""
