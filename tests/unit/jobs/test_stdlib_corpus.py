"""The quickstart's corpus: real, the same at every run, and made without running what it reads."""

from __future__ import annotations

import gzip
import json
import shutil
import sysconfig
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from jobs.stdlib_corpus import NUM_DOCUMENTS, NUM_SHARDS, Document, choose, collect, make_corpus, write_if_changed

LONG = "Says what it does in rather more than forty characters."


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("quickstart") / "corpus"
    make_corpus(folder)
    return folder


def read(folder: Path) -> list[dict[str, str]]:
    rows: list[dict[str, str]] = []
    for path in sorted(folder.iterdir()):
        if path.suffix == ".parquet":
            rows += pq.read_table(path).to_pylist()
        else:
            rows += [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
    return rows


def library(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder


def ids(documents: list[Document]) -> list[str]:
    return [document.id for document in documents]


def test_about_3000_documents_in_shards_of_both_kinds(corpus: Path) -> None:
    rows = read(corpus)
    assert NUM_DOCUMENTS - 200 < len(rows) <= NUM_DOCUMENTS
    assert len({row["id"] for row in rows}) == len(rows)
    assert {tuple(row) for row in rows} == {("id", "title", "body", "kind")}
    assert all(row["title"].strip() and row["body"].strip() for row in rows)
    assert set(Counter(row["kind"] for row in rows)) >= {"module", "class", "function"}
    found = Counter(path.name.partition(".")[2] for path in corpus.iterdir())
    assert found == NUM_SHARDS


def test_what_everybody_knows_is_in_it(corpus: Path) -> None:
    rows = read(corpus)
    modules = {row["id"].partition(".")[0] for row in rows}
    assert modules >= {
        "json",
        "re",
        "pathlib",
        "subprocess",
        "datetime",
        "csv",
        "hashlib",
        "os",
        "collections",
        "asyncio",
    }
    assert {row["id"] for row in rows} >= {"json.loads", "subprocess.run", "re.sub", "gzip.open", "os.path.join"}


def test_a_second_call_writes_nothing(corpus: Path) -> None:
    """The second quickstart has nothing to do only if the input's identity (size, mtime, ctime) stays."""
    before = {
        path.name: (path.stat().st_mtime_ns, path.stat().st_ctime_ns, path.stat().st_ino) for path in corpus.iterdir()
    }
    assert make_corpus(corpus) > 0
    after = {
        path.name: (path.stat().st_mtime_ns, path.stat().st_ctime_ns, path.stat().st_ino) for path in corpus.iterdir()
    }
    assert after == before


def test_a_damaged_corpus_is_mended(corpus: Path, tmp_path: Path) -> None:
    shutil.copytree(corpus, tmp_path, dirs_exist_ok=True)
    first, second, *_ = sorted(tmp_path.iterdir())
    shutil.copyfile(second, first)
    make_corpus(tmp_path)
    assert first.read_bytes() == (corpus / first.name).read_bytes()


def test_the_same_interpreter_gives_the_same_bytes(corpus: Path, tmp_path: Path) -> None:
    make_corpus(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {
        path.name: path.read_bytes() for path in corpus.iterdir()
    }


def test_public_docstrings_are_found_whatever_stands_around_them(tmp_path: Path) -> None:
    stdlib = library(
        tmp_path,
        {
            "shop.py": f'''
"""{LONG}"""
def buy(thing, *, price=1): "{LONG}"
def short(): "Too short."
def _private(): "{LONG}"
class Basket(dict):
    "{LONG}"
    def add(self, thing): "{LONG}"
    def __len__(self): "{LONG}"
class _Hidden:
    def method(self): "{LONG}"
if 1:
    async def pay(): "{LONG}"
else:
    def pay(): "{LONG}"
try:
    import _shop
except ImportError:
    def fall_back(): "{LONG}"
''',
            "__doc.py": f'"""{LONG}"""',
            "assigned.py": f'import os\n__doc__ = """{LONG}\n    Indented."""',
            "package/__init__.py": f'"""{LONG}"""',
            "package/inner.py": f'def call(self): "{LONG}"',
            "package/_secret.py": f'def call(): "{LONG}"',
            "package/tests/test_inner.py": f'def call(): "{LONG}"',
            "_pydatetime.py": f'class date:\n    "{LONG}"\n    def today(cls): "{LONG}"',
            "test/support.py": f'"""{LONG}"""',
            "site-packages/other.py": f'"""{LONG}"""',
        },
    )
    found = {document.id: document for document in collect(stdlib)}
    assert sorted(found) == [
        "assigned",
        "datetime.date",
        "datetime.date.today",
        "package",
        "package.inner.call",
        "shop",
        "shop.Basket",
        "shop.Basket.add",
        "shop.buy",
        "shop.fall_back",
        "shop.pay",
    ]
    assert found["shop.buy"] == Document("shop.buy", "shop.buy", f"shop.buy(thing, *, price=1)\n\n{LONG}", "function")
    assert found["shop.Basket"].body == f"class shop.Basket(dict)\n\n{LONG}"
    assert found["shop.Basket.add"].body.startswith("shop.Basket.add(thing)\n")
    assert found["assigned"].body == f"{LONG}\nIndented."
    assert found["shop"].kind == "module"


def test_the_library_is_read_never_run(tmp_path: Path) -> None:
    stdlib = library(tmp_path, {"danger.py": f'"""{LONG}"""\nraise SystemExit("it was run")\n'})
    assert ids(collect(stdlib)) == ["danger"]


def test_a_file_that_does_not_parse_costs_only_itself(tmp_path: Path) -> None:
    stdlib = library(tmp_path, {"good.py": f'"""{LONG}"""', "old.py": "print 'two'"})
    (tmp_path / "nul.py").write_bytes(b"\0")
    (tmp_path / "latin.py").write_bytes(b"'\xff'")
    assert ids(collect(stdlib)) == ["good"]


def test_warnings_of_the_librarys_own_source_are_not_heard(tmp_path: Path) -> None:
    """pytest turns warnings into errors: an invalid escape would make the file unparsable here."""
    stdlib = library(tmp_path, {"escape.py": f'"""{LONG}"""\nx = "\\d"\n'})
    assert ids(collect(stdlib)) == ["escape"]


def test_topics_are_read_from_the_dict_of_pydoc(tmp_path: Path) -> None:
    text = 'The "with" statement\n********************\n\nWraps a block.\n'
    stdlib = library(tmp_path, {"pydoc_data/topics.py": f"# generated\ntopics = {{'with': {text!r}}}\n"})
    assert collect(stdlib) == [Document("topic.with", 'The "with" statement', "Wraps a block.", "topic")]


def test_an_interpreter_without_topics_or_without_source_has_a_smaller_corpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stdlib = library(tmp_path / "lib", {"good.py": f'"""{LONG}"""'})
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": str(stdlib)})
    assert make_corpus(tmp_path / "corpus") == 1
    assert ids([Document(**row) for row in read(tmp_path / "corpus")]) == ["good"]
    (stdlib / "good.py").unlink()
    assert make_corpus(tmp_path / "none") == 0
    assert not (tmp_path / "none").exists()


def test_no_module_crowds_out_another() -> None:
    sizes = {"big": 100, "middle": 10, "small": 2}
    documents = [Document(f"{name}.f{i:03}", "t", "b", "function") for name, size in sizes.items() for i in range(size)]
    documents += [Document("topic.x", "t", "b", "topic")]
    chosen = choose(documents, target=20)
    assert Counter(d.id.partition(".")[0] for d in chosen) == {"big": 8, "middle": 8, "small": 2, "topic": 1}
    assert chosen == sorted(chosen)
    assert choose(documents, target=1000) == sorted(documents)


def test_of_a_module_the_surface_goes_in_first() -> None:
    documents = [Document(f"m.C{i}.method", "t", "b", "function") for i in range(3)]
    documents += [Document("m.f", "t", "b", "function"), Document("m", "t", "b", "module")]
    assert ids(choose(documents, target=2)) == ["m", "m.f"]


def test_a_file_is_written_only_for_other_content_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_if_changed(path, b"one")
    first = path.stat().st_ctime_ns
    write_if_changed(path, b"one")
    assert path.stat().st_ctime_ns == first
    write_if_changed(path, b"two")
    assert path.read_bytes() == b"two"
    assert [found.name for found in tmp_path.iterdir()] == ["file"]
