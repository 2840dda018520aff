"""Promise 5 for each family of models under each pooling: the library's own vectors, whatever the batch."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from pipeline.tokens import load
from tests.against_library import encode, encode_with_library, largest_difference
from tests.families import FAMILIES, POOLINGS, make_family, make_texts, set_pooling

TOLERANCE = 1e-5


def resolve_here(folder: Path, resolved: Path, name: str) -> None:
    """What `load._resolve` asks a process of its own for, which takes seconds, in this one."""
    argv, sys.argv = sys.argv, ["-c", str(folder), str(resolved)]
    try:
        exec(load._RESOLVE, {})  # noqa: S102
    finally:
        sys.argv = argv


@pytest.fixture(scope="module", autouse=True)
def _fast(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # two that wait for each other take many times as long over models this small
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(load, "_resolve", resolve_here)
        yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_family(tmp_path_factory.mktemp("families") / "model", request.param)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_vectors_are_the_librarys_in_any_order_and_alone(family: Path, pooling: str) -> None:
    """Texts short, cut, and far from English; the fullest batch in another order, and each text alone."""
    set_pooling(family, POOLINGS[pooling])
    assert largest_difference(family, make_texts()) <= TOLERANCE


@pytest.mark.parametrize("include_prompt", [True, False])
def test_with_a_prompt_vectors_are_the_librarys_whether_or_not_it_takes_part_in_pooling(
    family: Path, include_prompt: bool
) -> None:
    set_pooling(family, [mode for mode in POOLINGS.values() if isinstance(mode, str)], include_prompt=include_prompt)
    assert largest_difference(family, make_texts(), "Represent the query: ") <= TOLERANCE
    prompts = {"prompt": "it: ", "query_prompt": "Represent the query: "}
    queries = encode(family, make_texts()[:9], settings=prompts, queries=True)
    expected = encode_with_library(family, make_texts()[:9], prompt="Represent the query: ")
    assert abs(queries - expected).max() <= TOLERANCE
