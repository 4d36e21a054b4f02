"""From a source of encoded images to batches on the device, in the sampler's order.

In: a Source, a TrainSampler for each accumulation pass, the recipe's `augment` and `data`, a seed. A sampler takes
images from an Order (order.py), which is a pure function of the seed, the epoch and the source's shards.
Out: `Batch`es: uint8 [b, 3, S, S] with labels int64 [b], the boxes to erase, and the images that could not be used.
Nothing here has a state that a checkpoint would need: batches depend on step and seed alone, so any step can be the
first.

The ring that every iteration over a loader runs. `[n]` stands for a queue of at most n batches:

    producer's thread                 |   consumer's thread, inside next(iterator)
                                      |
    sampler --> Plan                  |
                 |                    |
                 v                    |
    8 readers: bytes, sizes           |
                 |                    |
                 v                    |   feed: Producer           DALI's threads,
    draw: crops, flips, policy        |   .next_inputs             a GPU's streams
                 |                    |        |
                 +--> Prepared --> [3] -->-----+--> inputs --> [2] decode, augment --> views --+
                                      |        |                                               |
                                      |        +--> in_flight --(the oldest: labels, erasing)--+--> Batch
                                      |                 |
                                      |   again <-- recover, where DALI raised an error

Ownership. A loader (batches.py) owns one Producer while an iteration is open, and one DALI Pipeline, which survives
iterations that reached their end. The Producer (producer.py) owns its thread, its readers, both ends of its queue, and
the record of the batches that DALI has received and not yet returned (in_flight). The Pipeline (pipeline.py) asks its
feed for inputs inside `run`, on the consumer's thread, so that two batches are in the making. A batch's tensor is
DALI's own memory and valid as long as it is referenced. Labels and erasing come from the Prepared at the same place in
the order.

Fetching ahead. Before it reads a batch, the Producer tells the Window (window.py) which batches are in the making. When
their blocks of shards change, the source is told all shards in the order of their next use. The source can then fetch
shards ahead, and evict first the shards that are needed last.

Bad images. A reader finds an image that cannot be read, or whose header is invalid. In training a substitute takes its
place (substitute.py) before anything is drawn, and the batch's `bad` names the image. An image that only DALI refuses
makes `run` fail for a whole batch. `recover` then searches the batches in flight for such images (broken.py), prepares
the first batch with one anew, and gives all of them to a new pipeline, because nothing guarantees that the old one
still works. From then on such an image is tested alone. Evaluation has no substitutes: there a bad image is an error.

The end. After the last plan the queue gets None, the feed raises StopIteration, and DALI returns its remaining batches.
`run` then raises StopIteration, and the pipeline is reset and kept. An error in the producer's thread ends the queue in
the same way, and is raised after the batches before it were consumed. Leaving an iteration early (close, or starting
another iteration) stops and joins the producer's threads and drops the pipeline, whose batches are no longer wanted.
Iterating again builds the ring again, from the loader's first step.
"""
