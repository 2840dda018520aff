"""`vecmill benchmark job`: the embed job against a plain Ray Data script, and against the encoder alone."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from jobs.benchmark_corpus import SHARD_ROWS, connected_to, corpus_config, write_first
from jobs.machine import describe_machine, show_figures
from pipeline.config import Config
from pipeline.errors import VecmillError
from pipeline.parallel import num_cores
from pipeline.snapshots.reader import open_snapshot


@click.command(name="job")
@click.argument("corpus", type=click.Path(path_type=Path, file_okay=False))
@click.argument("overrides", nargs=-1, metavar="[key.path=value ...]")
@click.option("--documents", default=20_000, show_default=True, help="The first so many of CORPUS.")
@click.option("--rounds", default=7, show_default=True, help="Of each, alternating.")
@click.option("--no-plain", is_flag=True, help="Without the plain script, which takes the most time.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def job(corpus: Path, overrides: tuple[str, ...], documents: int, rounds: int, no_plain: bool, as_json: bool) -> None:
    """The embed job against a plain Ray Data script, and against the encoder alone.

    Ray is started once, before; the clock runs from there to the last file written, with what each needs to
    begin: actors, loading the model, and for `embed` also planning and publishing. The script's actor gets
    a thread for each core, which is more than Ray would give it by default (one). The encoder alone is loaded
    already, has all documents as token ids, and all cores: the share that the job reaches of it is what reading,
    tokenizing, writing, starting and Ray leave.
    """
    from jobs.encoder_benchmark.alone import encoder_alone

    machine = describe_machine()
    with tempfile.TemporaryDirectory(prefix="vecmill-benchmark-") as temporary:
        folder = Path(temporary)
        write_first(corpus, folder / "corpus", documents, SHARD_ROWS)
        config = corpus_config(folder, overrides)
        with encoder_alone(folder / "corpus", documents, config.encoder) as alone, connected_to(config):
            compared = []
            for number in range(rounds):
                found = _round(config, folder / str(number), is_plain=not no_plain, alone_s=alone())
                click.echo(f"round {number + 1}: {found}", err=True)
                compared.append(found)
    figures = {"rounds": [found.figures() for found in compared]}
    show_figures(machine, figures, describe_rounds(compared, documents), as_json=as_json)


@dataclass(frozen=True, slots=True)
class Round:
    """One time each."""

    embed_s: float
    alone_s: float
    plain_s: float | None
    num_tokens: int
    padding_ratio: float
    busy_ratio: float
    cosines: npt.NDArray[np.float32]
    """(N,), of the two's vectors of the same document."""

    def figures(self) -> dict[str, Any]:
        """As a JSON value; cosines by mean and min."""
        value = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "cosines"}
        if len(self.cosines):
            value |= {"cosine_mean": float(self.cosines.mean()), "cosine_min": float(self.cosines.min())}
        return value

    def __str__(self) -> str:
        plain = "" if self.plain_s is None else f", plain script {self.plain_s:.1f} s"
        return f"embed {self.embed_s:.1f} s, encoder alone {self.alone_s:.1f} s{plain}"


def _round(config: Config, folder: Path, *, is_plain: bool, alone_s: float) -> Round:
    from pipeline.embed import embed
    from pipeline.flow.peer import plain_embed

    config = config.model_copy(update={"store": config.store.model_copy(update={"uri": str(folder / "store")})})
    started = time.monotonic()
    outcome = embed(config)
    embed_s = time.monotonic() - started
    plain_s, cosines = None, np.zeros(0, np.float32)
    snapshot = open_snapshot(config.store.uri)
    if is_plain:
        started = time.monotonic()
        plain_embed(config.input.uris[0], str(folder / "plain"), config.encoder.model, num_cpus=num_cores())
        plain_s = time.monotonic() - started
        ours = snapshot.dataset().to_table(columns=["doc_id", "vector"])
        cosines = compare(ours, pq.read_table(folder / "plain"))
    num_tokens = snapshot.manifest.accounting.tokens
    return Round(embed_s, alone_s, plain_s, num_tokens, outcome["padding_ratio"], outcome["busy_ratio"], cosines)


def compare(ours: pa.Table, plain: pa.Table) -> npt.NDArray[np.float32]:
    """Cosines of the same documents' vectors, (N,): `doc_id, vector` against `id, embedding`.

    Raises:
        VecmillError: they are not of the same documents.
    """
    ours, plain = ours.sort_by("doc_id"), plain.sort_by("id")
    if ours["doc_id"].to_pylist() != plain["id"].to_pylist():
        raise VecmillError(f"the two did not embed the same documents: {len(ours)} and {len(plain)} rows")
    a, b = _matrix(ours["vector"]), _matrix(plain["embedding"])
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    cosines: npt.NDArray[np.float32] = np.einsum("nd,nd->n", a, b) / norms
    return cosines


def _matrix(column: pa.ChunkedArray) -> npt.NDArray[np.float32]:
    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks)
    values = array.storage.flatten() if isinstance(array, pa.ExtensionArray) else array.flatten()
    return np.asarray(values.to_numpy(zero_copy_only=False), np.float32).reshape(len(array), -1)


def describe_rounds(rounds: Sequence[Round], num_documents: int) -> str:
    """The rounds as a table, with medians and what else came of them."""
    lines = [f"{'':>8} {'embed s':>8} {'encoder alone s':>16} {'share of it':>12} {'plain s':>8} {'ratio':>6}"]
    lines += [_line(str(number), [found]) for number, found in enumerate(rounds, 1)]
    lines.append(_line("median", rounds))
    shares = np.percentile([found.alone_s / found.embed_s for found in rounds], [25, 75])
    lines.append(f"quartiles of the share: {shares[0]:.1%} {shares[1]:.1%}")
    embed_s, num_tokens = statistics.median(found.embed_s for found in rounds), rounds[-1].num_tokens
    lines += [
        f"embed: {num_documents / embed_s:,.0f} documents/s, {num_tokens / embed_s:,.0f} tokens/s",
        f"padding ratio {rounds[-1].padding_ratio:.4f}, encoders busy {rounds[-1].busy_ratio:.2f}",
    ]
    cosines = np.concatenate([found.cosines for found in rounds])
    if len(cosines):
        lines.append(f"cosine to the plain script: mean {cosines.mean():.6f}, min {cosines.min():.6f}")
    return "\n".join(lines)


def _line(name: str, rounds: Sequence[Round]) -> str:
    embed_s = statistics.median(found.embed_s for found in rounds)
    alone_s = statistics.median(found.alone_s for found in rounds)
    share = statistics.median(found.alone_s / found.embed_s for found in rounds)
    line = f"{name:>8} {embed_s:>8.1f} {alone_s:>16.1f} {share:>12.1%}"
    plain = [(found.plain_s, found.embed_s) for found in rounds if found.plain_s is not None]
    if not plain:
        return f"{line} {'-':>8} {'-':>6}"
    plain_s, ratio = statistics.median(a for a, _ in plain), statistics.median(a / b for a, b in plain)
    return f"{line} {plain_s:>8.1f} {ratio:>6.2f}"
