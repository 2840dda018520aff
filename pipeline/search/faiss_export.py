"""An index as one of faiss, for serving from memory.

faiss' quantizers read our codes: of its scalar ones QT_8bit decodes sq8 and QT_fp16 float16, byte for byte. Its
RaBitQ has the levels and factors of ours in another order, and takes vectors that are rotated already: codes are
written anew from ours, exactly, behind a transform that rotates. The metric is the inner product, which of unit queries
with what a code stands for is our score; lists are still chosen by L2.
"""

from __future__ import annotations

from typing import Any

import faiss
import numpy as np

from pipeline.index.codecs import Codes, Floats, Sq8
from pipeline.index.quantizer import Quantizer
from pipeline.index.rabitq import Rabitq
from pipeline.search.lists import Lists

# Of a sign's estimate, by which faiss leaves out rows before it reads their further bits: so much leaves out none.
_NO_BOUND = 1e30


def to_faiss(quantizer: Quantizer, lists: Lists) -> faiss.Index:
    """A trained and filled index; ids are row addresses, deleted rows left out.

    An IndexIVFScalarQuantizer; of rabitq an IndexIVFRaBitQ behind a rotation (IndexPreTransform).

    Raises:
        StoreError: a part is missing or damaged.
    """
    codec = quantizer.codec
    rotated = codec.rotation if isinstance(codec, Rabitq) else None
    coarse = faiss.IndexFlatL2(quantizer.dim)
    coarse.add(quantizer.centroids if rotated is None else np.ascontiguousarray(quantizer.centroids @ rotated.T))
    made = _empty(quantizer, coarse)
    coarse.this.disown()  # type: ignore[attr-defined]
    made.own_fields = True
    made.is_trained = True
    for list_id in range(quantizer.nlist):
        for number in lists.directory.groups_of([list_id]):
            group = lists.groups([number])[number]
            codes = np.ascontiguousarray(group.codes)
            if isinstance(codec, Rabitq):
                codes = rabitq_codes(codec, codes, quantizer.centroids[list_id])
            made.invlists.add_entries(list_id, len(codes), faiss.swig_ptr(group.addresses), faiss.swig_ptr(codes))
            made.ntotal += len(codes)
    filled: faiss.Index = made
    if rotated is None:
        return filled
    rotation: Any = faiss.LinearTransform(quantizer.dim, quantizer.dim, False)
    faiss.copy_array_to_vector(np.ascontiguousarray(rotated).reshape(-1), rotation.A)
    rotation.is_trained = rotation.is_orthonormal = True
    return faiss.IndexPreTransform(rotation, filled)


def _empty(quantizer: Quantizer, coarse: faiss.IndexFlatL2) -> Any:
    codec, shape = quantizer.codec, (coarse, quantizer.dim, quantizer.nlist)
    if isinstance(codec, Rabitq):
        made: Any = faiss.IndexIVFRaBitQ(*shape, faiss.METRIC_INNER_PRODUCT, True, codec.bits)
        made.qb = 0  # queries as they are, not in a few bits themselves
        return made
    kind = faiss.ScalarQuantizer.QT_8bit if isinstance(codec, Sq8) else faiss.ScalarQuantizer.QT_fp16
    made = faiss.IndexIVFScalarQuantizer(*shape, kind, faiss.METRIC_INNER_PRODUCT, False)
    if isinstance(codec, Sq8):
        faiss.copy_array_to_vector(np.concatenate([codec.low, codec.span]), made.sq.trained)
    return made


def rabitq_codes(codec: Rabitq, codes: Codes, centroid: Floats) -> Codes:
    """Codes (N, B) of one list, whose centroid is (D,), as faiss' RaBitQ lays them out (N, B').

    One bit a dimension: signs; then |r|^2 - |x|^2 and s sqrt(D) / 2. Of several: signs; the first of these, an estimate
    by signs alone with its error, which leaves out no row; the lower bits, from the lowest on; then c . r and s.
    """
    levels, factors = codec.unpacked(codes)
    scale, shift = factors[:, 0], factors[:, 1]
    centred = levels.astype(np.float32) - np.float32((2**codec.bits - 1) / 2)
    own = shift + scale * (centred @ (codec.rotation @ centroid))  # c . r
    signs = np.packbits(levels >> (codec.bits - 1), axis=1, bitorder="little")
    lengths = -2 * own - centroid @ centroid
    if codec.bits == 1:
        return np.concatenate([signs, _bytes(lengths, scale * np.float32(codec.dim**0.5 / 2))], axis=1)
    lower = (levels[:, :, None] >> np.arange(codec.bits - 1, dtype=np.uint8)) & 1
    packed = np.packbits(lower.reshape(len(codes), codec.dim * (codec.bits - 1)), axis=1, bitorder="little")
    estimate = _bytes(lengths, np.zeros_like(scale), np.full_like(scale, _NO_BOUND))
    return np.concatenate([signs, estimate, packed, _bytes(own, scale)], axis=1)


def _bytes(*columns: Floats) -> Codes:
    return np.ascontiguousarray(np.stack(columns, axis=1), "<f4").view(np.uint8)
