"""An index as one of faiss, for serving from memory.

faiss' scalar quantizers read our codes as they are: QT_8bit decodes sq8, QT_fp16 float16. The metric is the inner
product, which of unit queries with what a code decodes to is our score; lists are still chosen by L2.
"""

from __future__ import annotations

from typing import Any

import faiss
import numpy as np

from pipeline.errors import NotSupportedError
from pipeline.index.codecs import Sq8
from pipeline.index.quantizer import Quantizer
from pipeline.search.lists import Lists


def to_faiss(quantizer: Quantizer, lists: Lists) -> faiss.IndexIVF:
    """A trained and filled IndexIVFScalarQuantizer; ids are row addresses, deleted rows left out.

    Raises:
        NotSupportedError: faiss' RaBitQ has other factors and no rotation.
        StoreError: a part is missing or damaged.
    """
    codec = quantizer.codec
    if codec.name not in ("float16", "sq8"):
        raise NotSupportedError(
            f"faiss reads no codes of {codec.name} as we write them; build the index with index.codec=sq8"
        )
    coarse = faiss.IndexFlatL2(quantizer.dim)
    coarse.add(quantizer.centroids)
    is_sq8 = isinstance(codec, Sq8)
    kind = faiss.ScalarQuantizer.QT_8bit if is_sq8 else faiss.ScalarQuantizer.QT_fp16
    made = faiss.IndexIVFScalarQuantizer(
        coarse, quantizer.dim, quantizer.nlist, kind, faiss.METRIC_INNER_PRODUCT, False
    )
    coarse.this.disown()  # type: ignore[attr-defined]
    made.own_fields = True
    if isinstance(codec, Sq8):
        faiss.copy_array_to_vector(np.concatenate([codec.low, codec.span]), made.sq.trained)
    made.is_trained = True
    entries: Any = made.invlists
    for list_id in range(quantizer.nlist):
        for number in lists.directory.groups_of([list_id]):
            group = lists.groups([number])[number]
            codes = np.ascontiguousarray(group.codes)
            entries.add_entries(list_id, len(codes), faiss.swig_ptr(group.addresses), faiss.swig_ptr(codes))
            made.ntotal += len(codes)
    return made
