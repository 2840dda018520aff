"""`vecmill benchmark encoder`: our encoder beside what one would use instead, and the ceiling of both, in one run.

task         the texts and token ids that all are given
ours         ours, from token ids and from texts
peers        sentence-transformers, OpenVINO, onnxruntime
transformer  the module that peers export, and its FLOPs
ceiling      the model's own matrix products alone
contest      rounds, each runtime in a process of its own
figures      the rounds as table and JSON
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import click

from jobs.benchmark_peers import parse_peers, peer_versions
from jobs.evaluate import developer_config
from jobs.machine import describe_machine
from pipeline.config import redact_uri

PEERS = ("sentence-transformers", "openvino", "onnxruntime")
_VERSIONED = ("openvino", "onnxruntime", "onnx", "onnxscript")


@click.command(name="encoder")
@click.argument("corpus", type=click.Path(path_type=Path, file_okay=False))
@click.argument("overrides", nargs=-1, metavar="[key.path=value ...]")
@click.option(
    "--documents", default=1_000, show_default=True, type=click.IntRange(min=1), help="Texts, evenly spread in CORPUS."
)
@click.option(
    "--rounds", default=7, show_default=True, type=click.IntRange(min=1), help="Each contestant once in every one."
)
@click.option("--peers", default=",".join(PEERS), show_default=True, help="Those of interest; none: ''.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def encoder(corpus: Path, overrides: tuple[str, ...], documents: int, rounds: int, peers: str, as_json: bool) -> None:
    """The encoder against its peers, in real tokens a second.

    All have the same texts, truncated as the model truncates, and each all cores, in a process of its own, one
    at a time. sentence-transformers tokenizes inside: hold it against "ours with tokenizing". The others have
    token ids. Batch sizes and streams of the peers are those that were the fastest in a short trial before.
    OpenVINO's int8 is not among them: it needs nncf.

    The ceiling is the model's own matrix products alone, in the type of ours; shares of it are of the real
    tokens' FLOPs. Peers' packages: pip install 'vecmill[bench]'; what is absent is skipped. The first round pays
    for what is made once a shape. On a machine at rest only: what else runs costs them unequally, most those whose
    threads wait for one another.
    """
    asked = parse_peers(peers, PEERS)
    # torch, which --help should not wait for.
    from jobs.encoder_benchmark.contest import compete
    from jobs.encoder_benchmark.figures import figures_of, table_of
    from jobs.encoder_benchmark.task import make_task

    machine = [*describe_machine().splitlines(), peer_versions(_VERSIONED)]
    with tempfile.TemporaryDirectory(prefix="vecmill-benchmark-") as folder:
        settings = developer_config(Path(folder), {"uri": str(corpus)}, overrides).encoder
    task = make_task(corpus, documents, settings)
    lengths = task.lengths
    num_tokens = int(lengths.sum())
    told: dict[str, Any] = {
        "corpus": corpus.name,
        "model": redact_uri(settings.model),
        "texts": len(lengths),
        "tokens": num_tokens,
        "tokens_mean": round(float(lengths.mean()), 1),
        "tokens_max": int(lengths.max()),
        "max_tokens": task.model.max_tokens,
        "rounds": rounds,
    }
    if not as_json:
        click.echo("\n".join(machine))
        click.echo(", ".join(f"{name} {value}" for name, value in told.items()))
    figures = figures_of(compete(task, asked, rounds), num_tokens)
    if as_json:
        click.echo(json.dumps({"machine": machine, **told, **figures}))
    else:
        click.echo(table_of(figures, num_tokens))
