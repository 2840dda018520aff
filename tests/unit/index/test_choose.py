from __future__ import annotations

import pytest

from pipeline.errors import ConfigError, InputError
from pipeline.index.choose import choose


@pytest.mark.parametrize(
    ("num_rows", "dim", "codec", "nlist", "is_exact"),
    [
        (1, 384, "float16", 1, True),
        (3_000, 384, "float16", 1, True),
        (87_000, 384, "float16", 16, True),
        (88_000, 384, "sq8", 2048, False),
        (274_195, 384, "sq8", 2048, False),
        (45_000, 768, "sq8", 1024, False),
        (4 * 10**6, 384, "sq8", 4096, False),
        (10**6, 384, "sq8", 2048, False),
        (10**7, 768, "rabitq", 4096, False),
        (10**9, 128, "sq8", 65536, False),
        (10**8, 768, "rabitq", 32768, False),
    ],
)
def test_auto_goes_by_size(num_rows: int, dim: int, codec: str, nlist: int, is_exact: bool) -> None:
    choice = choose(num_rows, dim)
    assert (choice.codec, choice.nlist, choice.is_exact) == (codec, nlist, is_exact)
    assert choice.num_sample == min(num_rows, max(96 * nlist, 16_384))


def test_what_is_asked_for_is_taken() -> None:
    choice = choose(1000, 384, "sq8", 7)
    assert (choice.codec, choice.nlist, choice.is_exact) == ("sq8", 7, False)
    assert choose(1000, 384, nlist=7).nlist == 7
    assert choose(10**6, 384, "float16").codec == "float16"
    assert not choose(10**6, 384, "float16").is_exact, "only small corpora are read whole"


def test_lists_are_neither_tiny_nor_huge() -> None:
    for num_rows in (10**5, 10**6, 10**7, 10**8, 10**9):
        for dim in (32, 384, 4096):
            for codec in ("float16", "sq8", "rabitq"):
                choice = choose(num_rows, dim, codec)
                num_bytes = {"float16": 2 * dim, "sq8": dim, "rabitq": dim // 2 + 8}[codec]
                # Powers of two: at most a factor of sqrt(2) off.
                assert num_rows / choice.nlist * num_bytes < 2**23
                assert num_rows / choice.nlist > 28


def test_no_rows_and_more_lists_than_rows_are_refused_with_a_sentence() -> None:
    with pytest.raises(InputError, match="no rows, so there is nothing to index"):
        choose(0, 384)
    with pytest.raises(ConfigError, match=r"index\.nlist must be from 1 to the number of rows, 5: 6"):
        choose(5, 384, nlist=6)
