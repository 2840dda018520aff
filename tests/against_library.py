"""Vecmill's vectors against sentence-transformers', value by value.

`python -m tests.against_library` prints the largest difference of each family of `tests.families` under
each pooling as a Markdown table. `python -m tests.against_library MODEL ... [--texts FILE] [--prompt TEXT]`
does so for real models, over the lines of FILE, and prints what reduced precision costs them.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.config import EncoderSettings
from pipeline.encoder import Compute, Encoder
from pipeline.model import describe_model
from pipeline.schema import DOCUMENT_FIELDS
from pipeline.tokens import load_tokenizer, tokenize
from tests.families import FAMILIES, POOLINGS, make_family, make_texts, set_pooling

Floats = npt.NDArray[np.float32]


def encode(
    path: Path,
    texts: Sequence[str],
    *,
    settings: dict[str, Any] | None = None,
    compute: Compute = "float32",
    token_budget: int = 4096,
    queries: bool = False,
) -> Floats:
    """Vectors (N, D) of texts, as a run makes them of documents, or a search of queries."""
    description = describe_model(path, EncoderSettings(model=str(path), **(settings or {})))
    tokenizer = load_tokenizer(path, description)
    if queries:
        ids: Any = tokenizer.query_ids(texts)
    else:
        columns = [list(map(str, range(len(texts)))), list(range(len(texts))), [bytes(16)] * len(texts), list(texts)]
        documents = pa.table(columns, schema=pa.schema(DOCUMENT_FIELDS))
        ids = tokenize(documents, tokenizer, input_file="").sequences["input_ids"]
    encoder = Encoder(path, description, compute=compute, token_budget=token_budget, device="cpu")
    found = encoder.encode(ids, queries=queries)
    assert (found.invalid, found.failed) == ([], {})
    return found.vectors


def encode_with_library(path: Path, texts: Sequence[str], **options: Any) -> Floats:
    """Vectors (N, D) as sentence-transformers makes them, in float32."""
    import torch
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(path), device="cpu", model_kwargs={"dtype": torch.float32})
    vectors: Floats = model.encode(list(texts), normalize_embeddings=True, batch_size=16, **options)
    return vectors


def largest_difference(path: Path, texts: Sequence[str], prompt: str = "") -> float:
    """Of any value to the library's; see `compare`."""
    return compare(path, texts, prompt)[0]


def compare(path: Path, texts: Sequence[str], prompt: str) -> tuple[float, Floats]:
    """The largest difference of any value to the library's, of all texts in another order and of a dozen alone.

    The second is the vectors (N, D), in the order of the texts.
    """
    expected = encode_with_library(path, texts, prompt=prompt)
    order = np.random.default_rng(5).permutation(len(texts))
    found = np.empty_like(expected)
    found[order] = encode(path, [texts[index] for index in order], settings={"prompt": prompt}, token_budget=16_384)
    some = slice(None, None, max(1, len(texts) // 12))
    alone = encode(path, texts[some], settings={"prompt": prompt}, token_budget=1)
    return float(max(np.abs(found - expected).max(), np.abs(alone - expected[some]).max())), found


def table(head: str, columns: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]]) -> str:
    """A Markdown table."""
    lines = [[head, *columns], ["---"] + ["---:"] * len(columns), *([name, *cells] for name, cells in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _matrix(folder: Path) -> str:
    rows = []
    for family in FAMILIES:
        path = make_family(folder / family.replace(" ", "_"), family)
        cells = []
        for modes in POOLINGS.values():
            set_pooling(path, modes)
            cells.append(f"{max(largest_difference(path, make_texts(), prompt) for prompt in ('', 'Query: ')):.1e}")
        rows.append((family, cells))
    return table("family", list(POOLINGS), rows)


def _of_real(path: Path, texts: list[str], prompts: Sequence[str]) -> tuple[str, list[str]]:
    compared = [compare(path, texts, prompt) for prompt in prompts]
    reduced = encode(path, texts, settings={"prompt": prompts[0]}, compute="bfloat16")
    cosines = (reduced * compared[0][1]).sum(axis=1)
    return path.name, [f"{max(gap for gap, _ in compared):.1e}", f"{cosines.mean():.6f}", f"{cosines.min():.6f}"]


@click.command(help=__doc__)
@click.argument("models", nargs=-1, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--texts", type=click.File(encoding="utf-8"), help="A text a line; default: its own.")
@click.option("--prompt", multiple=True, help="For all models; repeatable. Default: none.")
def main(models: tuple[Path, ...], texts: Any, prompt: tuple[str, ...]) -> None:
    lines = make_texts() if texts is None else [line.rstrip("\n") for line in texts if line.strip()]
    if models:
        columns = ["largest difference", "bfloat16: mean cosine", "bfloat16: least cosine"]
        click.echo(table("model", columns, [_of_real(path, lines, prompt or ("",)) for path in models]))
        return
    with tempfile.TemporaryDirectory() as folder:
        click.echo(_matrix(Path(folder)))


if __name__ == "__main__":
    main()
