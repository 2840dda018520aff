from __future__ import annotations

from collections.abc import Callable

import pytest

from pipeline.errors import UsageError
from pipeline.index.description import IndexDescription, Measured, Recall, Settings
from pipeline.search import SearchableSnapshot
from pipeline.search.directory import Directory
from pipeline.search.ranges import Range
from pipeline.search.settings import choose_probing
from tests.indexed import NLIST, NUM, QUERIES


def row(nprobe: int, rerank: int, recall: float) -> Recall:
    return Recall(
        nprobe=nprobe,
        rerank=rerank,
        read_ratio=nprobe / 20,
        recall_at_10=recall,
        recall_at_100=recall,
        interval_at_10=(recall, recall),
        chosen_by=recall,
        chosen_by_low=recall,
    )


@pytest.fixture
def description(indexed: Callable[..., SearchableSnapshot]) -> IndexDescription:
    table = (row(2, 0, 0.8), row(4, 0, 0.9), row(4, 40, 0.96), row(8, 0, 0.95), row(8, 40, 0.99))
    measured = Measured(source="words", num_queries=500, num_choosing=500, table=table)
    changes = {"measured": measured, "search": Settings(nprobe=8, rerank=0)}
    return indexed("sq8").index.description.model_copy(update=changes)


def test_the_index_says_how_it_is_searched(description: IndexDescription) -> None:
    found = choose_probing(description, None, None)
    assert (found.nprobe, found.rerank) == (8, 0)
    assert found.measured == row(8, 0, 0.95)


def test_a_recall_asked_for_is_reached_by_the_cheapest_setting(description: IndexDescription) -> None:
    found = choose_probing(description, None, 0.9)
    assert (found.nprobe, found.rerank) == (4, 0)
    found = choose_probing(description, None, 0.96)
    assert found.measured is not None
    assert found.measured.recall_at_10 >= 0.96


def test_a_recall_that_was_not_measured_is_refused_with_what_was(description: IndexDescription) -> None:
    with pytest.raises(
        UsageError, match=r"recall 0.995 is above .* 0.9900 \(nprobe 8, rerank 40\); ask for at most 0.99"
    ):
        choose_probing(description, None, 0.995)


def test_of_other_probes_the_recall_of_fewer_is_known(description: IndexDescription) -> None:
    assert choose_probing(description, 5, None).measured == row(4, 0, 0.9)
    assert choose_probing(description, 1, None).measured is None


@pytest.mark.parametrize("lists_per_row", [1, 2])
def test_the_bytes_of_a_query_are_those_of_its_lists_and_its_rerank(
    lists_per_row: int, indexed: Callable[..., SearchableSnapshot]
) -> None:
    index = indexed("sq8", lists_per_row=lists_per_row).index
    rerank = index.probing().rerank * 2 * 16
    assert index.probing(NLIST).query_bytes == lists_per_row * NUM * (16 + 8) + rerank
    told = [index.probing(nprobe).query_bytes for nprobe in range(1, NLIST + 1)]
    assert told == sorted(told)
    directory, lists = index.directory, index.quantizer.nearest_lists(QUERIES, 4)
    groups = [directory.groups_of(some) for some in lists.tolist()]
    read = [sum(end - begin for group in some for _, begin, end in _ranges(directory, group)) for some in groups]
    assert index.probing(4).query_bytes - rerank == pytest.approx(sum(read) / len(read), rel=0.2)


def _ranges(directory: Directory, group: int) -> list[Range]:
    return [directory.codes_range(group), directory.addresses_range(group)]
