"""The sequences of a split, and batches of them, as arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa


@dataclass(frozen=True)
class Sequences:
    """N sequences of token ids, one after the other."""

    ids: npt.NDArray[np.int64]
    begins: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64]

    @classmethod
    def of(cls, input_ids: pa.ListArray | pa.ChunkedArray | Sequence[npt.ArrayLike]) -> Sequences:
        """Of N lists of token ids."""
        if isinstance(input_ids, pa.ChunkedArray):
            input_ids = input_ids.combine_chunks()
        if isinstance(input_ids, pa.Array):
            offsets = input_ids.offsets.to_numpy().astype(np.int64)
            ids = input_ids.values.to_numpy().astype(np.int64)
            return cls(ids, offsets[:-1], np.diff(offsets))
        arrays = [np.asarray(ids, np.int64) for ids in input_ids]
        lengths = np.array([len(array) for array in arrays], np.int64)
        return cls(np.concatenate([np.zeros(0, np.int64), *arrays]), np.cumsum(lengths) - lengths, lengths)

    def distinct(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """The first of each that are equal, in order, (M,); and of every sequence which that is, (N,)."""
        firsts: dict[bytes, int] = {}
        first_of = np.empty(len(self.lengths), np.int64)
        for index, (begin, length) in enumerate(zip(self.begins.tolist(), self.lengths.tolist(), strict=True)):
            first_of[index] = firsts.setdefault(self.ids[begin : begin + length].tobytes(), index)
        return np.array(list(firsts.values()), np.int64), first_of

    def padded(
        self, batch: npt.NDArray[np.int64], pad_token_id: int
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
        """Ids padded on the right and the mask of real tokens, both (B, L)."""
        lengths = self.lengths[batch]
        steps = np.arange(lengths.max())  # (L,)
        mask = steps < lengths[:, None]
        places = np.where(mask, self.begins[batch][:, None] + steps, 0)
        return np.where(mask, self.ids[places], pad_token_id), mask
