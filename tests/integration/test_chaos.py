"""Nothing lost, nothing doubled, nothing stuck: the edges of tests/chaos that CI has time for.

Every put of the commit protocol with the driver killed, at its three moments in turn, then one of each kind that
costs seconds. `make chaos` plays all edges by themselves, and random rounds after them.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.chaos.edges import EDGES
from tests.chaos.harness import Arena, play

SHORT = (
    "driver killed, each put in turn",
    "encoder killed",
    "read worker killed",
    "reply lost, manifest",
)


@pytest.fixture(scope="module")
def arena(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Arena]:
    with Arena(tmp_path_factory.mktemp("chaos")) as arena:
        yield arena


@pytest.mark.parametrize("name", SHORT)
def test_run_again_it_is_what_a_clean_run_gives(arena: Arena, name: str) -> None:
    [edge] = [edge for edge in EDGES if edge.name == name]
    outcome = play(arena, edge.name, edge.kind, edge.play)
    assert outcome.ok, outcome.error
    assert outcome.counts, outcome
