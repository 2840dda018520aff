"""Texts -> vectors in this process: as the flow makes them, and in the two ways that are wrong most often.

    another pooling   the first token's state for a model trained on the mean, or the mean for one trained on the first
    no mask           padding taken for text: attended to, and averaged in

The wrong ways are made here, out of what the pipeline offers: it pads by itself and never forgets the mask.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.config import EncoderSettings
from pipeline.errors import InputError
from pipeline.model import describe_model, fetch_model
from pipeline.schema import DOCUMENT_FIELDS
from pipeline.tokens import SequenceTokenizer, load_tokenizer, tokenize

_NAIVE_BATCH = 32
"""Texts that a plain loop would pad together, in the order they come."""

Encode = Callable[[Sequence[str]], npt.NDArray[np.float32]]


def encode_texts(
    settings: EncoderSettings, texts: Sequence[str], *, masked: bool = True
) -> tuple[npt.NDArray[np.float32], str]:
    """Unit vectors (N, D) of the texts as documents, and the compute type they were made with.

    Args:
        masked: False takes padding for text, in batches of 32 in the order of the texts.

    Raises:
        InputError: a text has no vector.
    """
    from pipeline.encoder import Encoder  # torch: what only reads data does without

    path = fetch_model(settings, None)
    model = describe_model(path, settings)
    input_ids = tokenize_texts(texts, load_tokenizer(path, model))
    encoder = Encoder(path, model, compute=settings.compute, token_budget=settings.token_budget)
    encoded = encoder.encode(input_ids if masked else _padded(input_ids, model.pad_token_id))
    num_bad = len(encoded.invalid) + len(encoded.failed)
    if num_bad:
        raise InputError(f"{num_bad} of {len(texts)} sentences have no vector; take them out")
    return encoded.vectors, encoder.compute


def tokenize_texts(texts: Sequence[str], tokenizer: SequenceTokenizer) -> pa.ChunkedArray:
    """The token ids of each text as a document, with the document prompt.

    Raises:
        InputError: a text makes no tokens.
    """
    numbers = range(len(texts))
    # Ids and hashes are those of nothing: no store will see them.
    columns = [[str(number) for number in numbers], list(numbers), [bytes(16)] * len(texts), list(texts)]
    documents = pa.table(columns, schema=pa.schema(DOCUMENT_FIELDS))
    tokenized = tokenize(documents, tokenizer, input_file="")
    if tokenized.quarantine.num_rows:
        raise InputError(f"{tokenized.quarantine.num_rows} of {len(texts)} sentences have no tokens; take them out")
    return tokenized.sequences["input_ids"]


def wrong_ways(settings: EncoderSettings) -> dict[str, Encode]:
    """Functions that encode texts wrongly, by what is wrong."""
    right = describe_model(fetch_model(settings, None), settings).pooling
    other: Literal["cls", "mean"] = "mean" if right == ("cls",) else "cls"
    repooled = settings.model_copy(update={"pooling": other})
    return {
        f"{other} for {' + '.join(right)} pooling": lambda texts: encode_texts(repooled, texts)[0],
        "without the mask": lambda texts: encode_texts(settings, texts, masked=False)[0],
    }


def _padded(input_ids: pa.ChunkedArray, pad_token_id: int) -> list[list[int]]:
    """The sequences with the padding that their neighbours ask for as if it were their own tokens."""
    sequences: list[list[int]] = input_ids.to_pylist()
    padded = []
    for begin in range(0, len(sequences), _NAIVE_BATCH):
        batch = sequences[begin : begin + _NAIVE_BATCH]
        longest = max(map(len, batch))
        padded += [ids + [pad_token_id] * (longest - len(ids)) for ids in batch]
    return padded
