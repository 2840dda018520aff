"""Codec and number of lists from the size of a corpus: what `auto` stands for.

From measurements on 274,195 real vectors (reference/index.md, section (e)): the codec costs next to no
recall, the probes decide it. A corpus that is read whole in a moment is searched exactly; then a byte a
dimension; beyond what is cheap to keep and to read that way, 4 bits a dimension of a rotated residual,
where there are enough dimensions for its error to cancel out.

How many lists: recall at a given share of rows read rises with their number, and hardly falls with the
corpus. Of 30,000 real vectors (MiniLM over WordNet) a tenth read gives recall@10 of 0.900, 0.926, 0.947 and
0.962 with 128, 256, 512 and 1,024 lists; of 274,195 it is about 0.957 with 1,024, and 0.968 with 2,048. So there
are 2,048 even where 2 sqrt(N) is less, as long as a list has rows enough to have a centroid. Trained on 64 rows
a list recall is 0.01 below that of 128 rows and more.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from pipeline.errors import ConfigError, InputError

CodecName = Literal["float16", "sq8", "rabitq"]

# 87,000 vectors of 384 dimensions: one read, and then some 50 ms a query, a millisecond where many come together.
_EXACT_BYTES = 64 * 2**20

# As float16: 11 million of 384.
_SQ8_BYTES = 8 * 2**30

_MIN_RABITQ_DIM = 256

_EXACT_LIST_BYTES = 4 * 2**20
_MAX_LIST_BYTES = 2 * 2**20
_MIN_LISTS = 2048
_MIN_LIST_ROWS = 40
_RABITQ_LIST_ROWS = 2500

RABITQ_BITS = 4

_SAMPLE_ROWS_PER_LIST = 96
# Small corpora: enough to tell the range of each dimension.
_MIN_SAMPLE_ROWS = 16_384


@dataclass(frozen=True)
class Choice:
    """What an index is built with."""

    codec: CodecName
    nlist: int
    is_exact: bool
    """Whether every search reads every list."""
    is_small: bool
    """Whether all of it may be read for one query."""
    num_sample: int
    """Rows to train on."""


def choose(
    num_rows: int, dim: int, codec: Literal["auto"] | CodecName = "auto", nlist: Literal["auto"] | int = "auto"
) -> Choice:
    """What to build an index of `num_rows` vectors of `dim` values with; what is not "auto" is taken as it is.

    Raises:
        InputError: no rows.
        ConfigError: more lists than rows.
    """
    if num_rows == 0:
        raise InputError("the snapshot has no rows, so there is nothing to index; embed documents first")
    if nlist != "auto" and not 1 <= nlist <= num_rows:
        raise ConfigError(f"index.nlist must be from 1 to the number of rows, {num_rows}: {nlist}")
    num_bytes = num_rows * dim * 2
    is_small = num_bytes <= _EXACT_BYTES
    by_size: CodecName = "float16" if is_small else "sq8"
    if num_bytes > _SQ8_BYTES and dim >= _MIN_RABITQ_DIM:
        by_size = "rabitq"
    chosen: CodecName = by_size if codec == "auto" else codec
    is_exact = is_small and chosen == "float16"
    if nlist == "auto":
        nlist = _num_lists(num_rows, dim, chosen, is_exact=is_exact)
    num_sample = min(num_rows, max(_SAMPLE_ROWS_PER_LIST * nlist, _MIN_SAMPLE_ROWS))
    return Choice(chosen, nlist, is_exact, is_small, num_sample)


def _num_lists(num_rows: int, dim: int, codec: CodecName, *, is_exact: bool) -> int:
    if is_exact:
        return min(num_rows, -(-num_rows * dim * 2 // _EXACT_LIST_BYTES))
    if codec == "rabitq" and num_rows * dim * 2 > _SQ8_BYTES:
        wanted = num_rows / _RABITQ_LIST_ROWS
    else:
        wanted = max(2 * math.sqrt(num_rows), _MIN_LISTS)
    code_bytes = num_rows * {"float16": 2 * dim, "sq8": dim, "rabitq": dim * RABITQ_BITS // 8 + 8}[codec]
    wanted = min(max(wanted, code_bytes / _MAX_LIST_BYTES), num_rows / _MIN_LIST_ROWS)
    return int(min(num_rows, 2 ** round(math.log2(max(1.0, wanted)))))
