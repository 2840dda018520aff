"""What `vecmill benchmark` runs over: the first documents of a corpus, planned as `embed` would plan them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import click
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from jobs.evaluate import developer_config
from pipeline.config import Config
from pipeline.errors import InputError
from pipeline.flow.context import FlowContext
from pipeline.flow.rows import Work
from pipeline.model import describe_model, fetch_model
from pipeline.snapshots.lease import new_run_id
from pipeline.splits import list_input, plan_files
from pipeline.uris import Storage

SHARD_ROWS = 10_000


def open_corpus(corpus: Path, columns: Sequence[str]) -> ds.Dataset:
    """The Parquet files of a folder.

    Raises:
        InputError: there are none, they cannot be read, or they lack a column.
    """
    files = sorted(str(path) for path in corpus.glob("*.parquet"))
    told = f"no Parquet files with columns {' and '.join(columns)} in {corpus}"
    try:
        found = ds.dataset(files, format="parquet")
    except (OSError, pa.ArrowInvalid) as error:
        raise InputError(f"{told}: {str(error).splitlines()[0]}") from None
    if not files:
        raise InputError(f"{told}: it has no file named *.parquet")
    if missing := [name for name in columns if name not in found.schema.names]:
        raise InputError(f"{told}: {', '.join(missing)} missing among {', '.join(found.schema.names)}")
    return found


def write_first(corpus: Path, folder: Path, num_documents: int, num_rows: int) -> None:
    """Copy the first documents of a corpus (columns id, text) into files of about 10,000, in row groups of `num_rows`.

    Raises:
        InputError: the corpus is not there, lacks a column, or holds fewer documents.
    """
    found = open_corpus(corpus, ["id", "text"]).head(num_documents, columns=["id", "text"])
    if len(found) < num_documents:
        raise InputError(
            f"{corpus} holds {len(found)} documents, {num_documents} are needed; give a larger corpus or fewer"
        )
    folder.mkdir(parents=True)
    file_rows = num_rows * max(1, SHARD_ROWS // num_rows)
    for index, begin in enumerate(range(0, num_documents, file_rows)):
        pq.write_table(found.slice(begin, file_rows), folder / f"{index:05}.parquet", row_group_size=num_rows)


def planned(config: Config) -> tuple[FlowContext, list[Work]]:
    """What `embed` would hand to its flow for an empty store."""
    source = Storage(config.input.uris[0])
    model = describe_model(fetch_model(config.encoder, None), config.encoder)
    splits, keep = plan_files(source, list_input(source, None, config.input.format), config.input, config.splits)
    context = FlowContext(
        config=config,
        run_id=new_run_id(),
        model=model,
        encoder_fp=model.fingerprint(config.input.text),
        shard_fp=config.shard_fingerprint({}),
        keep=keep,
        input_storage=source,
        store_storage=Storage(config.store.uri),
    )
    return context, [Work(split) for split in splits]


def corpus_config(folder: Path, overrides: Sequence[str]) -> Config:
    """A config over `folder`/corpus, as `write_first` makes it."""
    return developer_config(folder, {"uri": str(folder / "corpus"), "id": "id", "text": "{text}"}, overrides)


def connected_to(config: Config) -> AbstractContextManager[None]:
    """Ray, started where it is not; it alone imports it."""
    from pipeline.flow.cluster import connected

    return connected(config.cluster)


def parse_numbers(text: str) -> list[int]:
    """The numbers of an option such as `--sizes`."""
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 1:
        raise click.BadParameter(f"numbers are above 0, such as 100,1000: {text}")
    return numbers
