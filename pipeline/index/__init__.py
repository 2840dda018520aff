"""The core of the index build: inverted lists as plain Parquet. No Ray here (see pipeline.flow), and no torch.

    choose       codec and number of lists, from the size of the corpus
    sample       rows drawn over all shards
    codecs       vectors <-> codes, and scores of codes: float16, sq8; `rabitq` has a module of its own
    quantizer    centroids and codec, trained once, with one fingerprint
    layout       the Arrow schemas of an index's files, and where they lie
    parts        rows sorted by list -> a codes part, an addresses part, their rows of the directory
    assign       embedding shards -> one intermediate file, by list; and the panel's exact nearest among them
    merge        a range of lists of all intermediates -> one part
    panel        the queries recall is measured with, and their exact nearest
    recall       recall of the finished parts, by settings
    description  index.json; `files` the other small files
    gate         what is published of it, the settings of a search, and whether it is published at all
    prepare      what all stages of one build share
    build        all of it in one process

A stage is a function of what lies on storage and of a few small values, bounded in memory, and puts files
under a name of its own: run twice, it leaves two files of which one is listed.
"""
