"""A small real corpus that every Python carries: the documentation of its own standard library.

Docstrings of public modules, classes and functions are found by parsing the library's source, nothing of it is
imported or run; the language's topics ("how does `with` work") come from `pydoc_data`. About 3,000 documents are
taken by filling all top-level modules evenly, so that no large package crowds out a small one: the most per module
is the largest that keeps the sum within the target, and short names (what lies at the surface) go in first.
The same interpreter always gives the same bytes, so that a second run finds nothing new.
"""

from __future__ import annotations

import ast
import gzip
import inspect
import itertools
import json
import os
import sysconfig
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

NUM_DOCUMENTS = 3_000
MIN_CHARS = 40
"""A shorter docstring says nothing that its name does not."""
NUM_SHARDS = {"parquet": 4, "jsonl.gz": 4}

_SKIPPED = frozenset(
    ["test", "tests", "idlelib", "lib2to3", "turtledemo", "ensurepip", "pydoc_data", "site-packages", "dist-packages"]
)
# Private modules that hold the source of a public one.
_PUBLIC_NAMES = {
    "_collections_abc": "collections.abc",
    "_pydatetime": "datetime",
    "_pydecimal": "decimal",
    "_pyio": "io",
    "concurrent.futures._base": "concurrent.futures",
    "pathlib._local": "pathlib",
    "posixpath": "os.path",
}
_Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


class Document(NamedTuple):
    """One row of the corpus."""

    id: str
    title: str
    body: str
    kind: str


def make_corpus(folder: Path) -> int:
    """Write the corpus as Parquet and JSONL.gz shards into `folder`; returns the number of documents.

    A file that already holds the same bytes is left alone. Without the library's source (some stripped-down
    interpreters) the corpus is smaller, down to 0 documents and no files.
    """
    documents = choose(collect(Path(sysconfig.get_paths()["stdlib"])))
    if not documents:
        return 0
    folder.mkdir(parents=True, exist_ok=True)
    suffixes = [suffix for suffix, count in NUM_SHARDS.items() for _ in range(count)]
    bounds = [len(documents) * i // len(suffixes) for i in range(len(suffixes) + 1)]
    for i, (suffix, (begin, end)) in enumerate(zip(suffixes, itertools.pairwise(bounds), strict=True)):
        rows = [{"id": d.id, "title": d.title, "body": d.body, "kind": d.kind} for d in documents[begin:end]]
        data = _parquet(rows) if suffix == "parquet" else _jsonl_gz(rows)
        write_if_changed(folder / f"part-{i:02d}.{suffix}", data)
    return len(documents)


def write_if_changed(path: Path, data: bytes) -> None:
    """Replace the file's content in one step, unless it is this already."""
    if path.exists() and path.read_bytes() == data:
        return
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(data)
    os.replace(temporary, path)


def collect(stdlib: Path) -> list[Document]:
    """All documents of a standard library's folder, each id once."""
    documents: dict[str, Document] = {}
    for document in itertools.chain(*(_module_documents(*found) for found in _modules(stdlib)), _topics(stdlib)):
        documents.setdefault(document.id, document)
    return list(documents.values())


def choose(documents: Sequence[Document], target: int = NUM_DOCUMENTS) -> list[Document]:
    """At most `target` documents, evenly from all top-level modules, sorted by id; all topics are among them."""
    groups = defaultdict(list)
    for document in documents:
        groups[document.id.partition(".")[0] if document.kind != "topic" else ""].append(document)
    chosen = groups.pop("", [])
    room = target - len(chosen)
    most = 0
    while most < len(documents) and sum(min(len(group), most + 1) for group in groups.values()) <= room:
        most += 1
    for group in groups.values():
        chosen += sorted(group, key=lambda document: document.id.count("."))[:most]
    return sorted(chosen)


def _modules(stdlib: Path) -> Iterator[tuple[str, Path]]:
    """Public modules with their files, in order of name."""
    for path in sorted(stdlib.rglob("*.py")):
        parts = [*path.relative_to(stdlib).parts[:-1], *([path.stem] if path.stem != "__init__" else [])]
        name = ".".join(parts)
        name = _PUBLIC_NAMES.get(name, name)
        if name and not _SKIPPED.intersection(parts) and all(p.isidentifier() and p[0] != "_" for p in name.split(".")):
            yield name, path


def _module_documents(name: str, path: Path) -> Iterator[Document]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the library's own source: not ours to hear
            tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return  # a file for some other Python; the corpus does without it
    text = ast.get_docstring(tree) or _assigned_docstring(tree)
    if len(text) >= MIN_CHARS:
        yield Document(name, name, text, "module")
    yield from _definitions(tree.body, name)


def _assigned_docstring(tree: ast.Module) -> str:
    """The text of `__doc__ = "..."`, as hashlib has it."""
    for node in tree.body:
        match node:
            case ast.Assign(targets=[ast.Name(id="__doc__")], value=ast.Constant(value=str(text))):
                return inspect.cleandoc(text)
    return ""


def _definitions(body: Iterable[ast.stmt], scope: str) -> Iterator[Document]:
    for node in body:
        if isinstance(node, _Definition):
            if node.name.startswith("_"):
                continue
            name = f"{scope}.{node.name}"
            text = ast.get_docstring(node) or ""
            if len(text) >= MIN_CHARS:
                kind = "class" if isinstance(node, ast.ClassDef) else "function"
                yield Document(name, name, f"{_signature(name, node)}\n\n{text}", kind)
            if isinstance(node, ast.ClassDef):
                yield from _definitions(node.body, name)
        elif isinstance(node, ast.If | ast.Try):  # definitions that depend on the platform
            handlers = [s for h in node.handlers for s in h.body] if isinstance(node, ast.Try) else []
            yield from _definitions([*node.body, *handlers, *node.orelse], scope)


def _signature(name: str, node: _Definition) -> str:
    if isinstance(node, ast.ClassDef):
        bases = ", ".join(ast.unparse(base) for base in node.bases)
        return f"class {name}({bases})" if bases else f"class {name}"
    arguments = ast.unparse(node.args).removeprefix("self, ").removeprefix("self").removeprefix("cls, ")
    return f"{name}({arguments})"


def _topics(stdlib: Path) -> Iterator[Document]:
    """The language's topics: a dict literal of reStructuredText in `pydoc_data/topics.py`."""
    path = stdlib / "pydoc_data" / "topics.py"
    if not path.exists():
        return
    for node in ast.parse(path.read_bytes()).body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            for key, text in sorted(ast.literal_eval(node.value).items()):
                title, _, body = text.strip().partition("\n")
                yield Document(f"topic.{key}", title.strip(), body.lstrip("*=-~^\n") or title, "topic")


def _parquet(rows: list[dict[str, str]]) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), sink, compression="zstd")
    data: bytes = sink.getvalue().to_pybytes()
    return data


def _jsonl_gz(rows: list[dict[str, str]]) -> bytes:
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    return gzip.compress(lines.encode(), mtime=0)
