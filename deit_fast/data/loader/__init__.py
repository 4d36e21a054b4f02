"""From a source of encoded images to batches on the device, in the sampler's order.

In: a Source, a TrainSampler for each accumulation pass, the recipe's `augment` and `data`, a seed. A sampler takes
images from an Order (order.py): of an epoch, a pure function of the seed and the source's shards.
Out: `Batch`es, uint8 [b, 3, S, S] with labels int64 [b], what is to be erased of them, and which images were bad.
Nothing has a state that a checkpoint would need: any step can be the first, and batches depend on step and seed alone.

The ring that every iteration over a loader runs, `[n]` being a queue of at most n batches:

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

Who owns what. A loader (batches.py) owns one Producer while an iteration is open, and one DALI Pipeline, which lives on
between iterations that ran to their end. The Producer (producer.py) owns its thread, its readers, both ends of its
queue and the record of what DALI has and has not given back (in_flight). The Pipeline (pipeline.py) asks its feed for
inputs inside `run`, on the consumer's thread, to have two batches in the making. A batch's tensor is DALI's own memory,
valid for as long as it is referenced; labels and erasing come from the Prepared at the same place in the order.

What a source knows beforehand. Before a batch is read the Producer tells the Window (window.py) which batches are in
the making. Where their blocks of shards change, the source is told all shards by their next use, so that it can fetch
them ahead and let go of those that are needed last.

How a bad image travels. One that cannot be read, or whose header cannot be, is found by a reader: training puts a
substitute in its place (substitute.py) before anything is drawn, and names it in the batch's `bad`. One that only DALI
refuses fails `run` for a whole batch: `recover` looks through the batches in flight for such images (broken.py),
prepares the first batch that has some anew, and hands all of them to a new pipeline, because nothing promises that the
old one works. Such an image is tested alone from then on. Evaluation has no substitutes: there a bad image is an error.

How it ends. After the last plan the queue gets None, the feed raises StopIteration, DALI gives what it still has, and
`run` raises StopIteration: the pipeline is reset and kept. An error in the producer's thread ends the queue in the same
way, and is raised once the batches before it were consumed. Leaving an iteration midway (close, or starting another)
stops and joins the producer's threads and drops the pipeline, which holds batches that nobody will fetch. Iterating
again builds the ring again, from the loader's first step.
"""
