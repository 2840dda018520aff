"""JSONL: each line an object, whose keys are the columns."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import numpy as np

from pipeline.config import SplitBounds
from pipeline.read import lines as lines_of
from pipeline.read.documents import Fault, Faults, ReadSplit, Rows, Target
from pipeline.read.fields import rows_of_json
from pipeline.read.lines import Layout, Line, LineCount, open_range, read_layout
from pipeline.splits import Cut, Split
from pipeline.uris import Storage


def read_jsonl(
    storage: Storage, split: Split, target: Target, bounds: SplitBounds, done: Collection[Cut]
) -> Iterator[ReadSplit]:
    """The pieces of a range; as `read_layout`. Lines of pieces that are done are not parsed."""
    layout = Layout(open_range, lines_of.plain_lines, LineCount, _rows)
    return read_layout(storage, split, target, bounds, done, layout)


def _rows(lines: Sequence[Line], target: Target) -> Rows:
    faults: Faults = {}
    objects: list[dict[str, Any]] = []
    for position, line in enumerate(lines):
        value = _parsed(line)
        if isinstance(value, Fault):
            faults[position] = value
            objects.append({})
        else:
            objects.append(value)
    numbers = np.array([line.offset for line in lines], np.int64)
    return rows_of_json(objects, numbers, target, faults, [line.data for line in lines])


def _parsed(line: Line) -> dict[str, Any] | Fault:
    """The object of a line. Messages quote nothing of it: quarantine holds no text unless asked to."""
    if line.is_overlong:
        return Fault("invalid_json", f"a line of {line.num_bytes} bytes; {lines_of.MAX_LINE_BYTES} are the most")
    try:
        value = json.loads(line.data.decode(), parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        return Fault("invalid_utf8", f"no UTF-8 from byte {error.start} of the line on")
    except json.JSONDecodeError as error:
        return Fault("invalid_json", f"{error.msg} at character {error.pos} of the line")
    except RecursionError:
        return Fault("invalid_json", "nested too deeply")
    except ValueError as error:
        return Fault("invalid_json", str(error))
    if not isinstance(value, dict):
        return Fault("not_an_object", f"the line is a {type(value).__name__}, not an object")
    return value


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number in JSON")
