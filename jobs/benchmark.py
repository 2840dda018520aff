"""`vecmill benchmark`: how fast, against what one would write instead, in one run.

    encoder CORPUS the encoder alone against its peers, and their ceiling
    job CORPUS     the embed job against a plain Ray Data script and the encoder alone, from one started Ray
    split CORPUS   what a split costs beyond its forward, by the size of splits
    feed CORPUS    how long accelerators wait for their input, by how fast they are
    index CONFIG   the index build against faiss, LanceDB, hnswlib and autofaiss
    search CONFIG  searching the published index against theirs, at equal recall
    bookkeeping    planning, resume and publish of many splits

For developers. CORPUS is a folder of Parquet files with columns `id` and `text`. Machines are noisy: only
ratios within a run count. What was tried and found is in jobs/benchmark.md.
"""

from __future__ import annotations

import click

from jobs.bookkeeping_benchmark import bookkeeping
from jobs.cli import run
from jobs.encoder_benchmark import encoder
from jobs.flow_benchmark import feed, split
from jobs.index_benchmark import index
from jobs.job_benchmark import job
from jobs.search_benchmark import search


@click.group(name="benchmark")
def main() -> None:
    """Speed against peers, in one run."""


for command in (bookkeeping, encoder, feed, index, job, search, split):
    main.add_command(command)


if __name__ == "__main__":
    run(main)
