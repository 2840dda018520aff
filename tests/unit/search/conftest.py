"""Indexes that tests of search share; for reading only."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest

from pipeline.search import SearchableSnapshot
from tests.indexed import make_indexed


@pytest.fixture(scope="session")
def indexed(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., SearchableSnapshot]:
    """`make_indexed` in a folder of its own, once for the same arguments."""

    @cache
    def make(codec: str = "sq8", **options: Any) -> SearchableSnapshot:
        return make_indexed(tmp_path_factory.mktemp(codec), codec, **options)

    return make
