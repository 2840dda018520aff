"""What a search answers with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt


class Chunk(NamedTuple):
    """Which part of its document a row is: characters [char_begin, char_end)."""

    chunk_index: int
    num_chunks: int
    char_begin: int
    char_end: int


@dataclass(frozen=True, slots=True)
class Neighbours:
    """The K nearest of each query, nearest first.

    `scores` (Q, K) float32: cosines in [-1, 1]; `doc_ids` and `chunks`: Q lists of K.
    K is the smaller of what was asked and the rows of the snapshot.
    """

    scores: npt.NDArray[np.float32]
    doc_ids: list[list[str]]
    chunks: list[list[Chunk]]
