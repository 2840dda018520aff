"""A file of queries: lines of JSON, `{"id": ..., "text": ...}`; a local path, or a URI."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pipeline.errors import UsageError
from pipeline.uris import split_input_uri


def read_queries(uri: str, storage_options: Mapping[str, Any] | None = None) -> dict[str, str]:
    """Texts by id, in order.

    Raises:
        UsageError: there is no such file, or a line of it is no query.
        EnvironmentFault: storage failed.
    """
    storage, name = split_input_uri(uri, storage_options)
    try:
        if name is None:
            raise FileNotFoundError("no such file")
        # By "\n" alone: JSON may hold other line separators, such as U+2028, as they are.
        lines = storage.read(name).decode().split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"queries cannot be read: {storage.full_uri(name or '')}: {error}") from None
    where, queries = storage.full_uri(name), dict[str, str]()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
            query_id, text = str(value["id"]), value["text"]
        except (ValueError, RecursionError, KeyError, TypeError):
            raise UsageError(f'{where}:{number} is no query; a line is {{"id": ..., "text": ...}}') from None
        if not isinstance(text, str):
            raise UsageError(f"{where}:{number}: text is {type(text).__name__}, not a string")
        try:
            (query_id + text).encode()
        except UnicodeEncodeError:
            raise UsageError(f"{where}:{number}: half of a surrogate pair is no text") from None
        if query_id in queries:
            raise UsageError(f"{where}:{number}: the query id {query_id} is there twice")
        queries[query_id] = text
    return queries
