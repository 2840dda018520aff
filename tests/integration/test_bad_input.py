"""Bad input: each kind ends with its own exit code and a sentence, and nothing is published.

The first table needs no flow, whatever is wrong being found before work; the second does.
"""

from __future__ import annotations

import json
import re
import shutil
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet as pq
import pytest

from jobs.cli import LATER_JOBS
from tests.corpus import Job, Ran, make_rows, put_files, run_command
from tests.models import make_model, write_json


class Case(NamedTuple):
    """What is wrong, the exit code, and what the sentence must say: the value, and a way out."""

    name: str
    change: Callable[[Job], list[str]]
    """Makes it wrong; gives the arguments that follow the config."""
    words: tuple[str, ...]
    code: int = 2


def given(*args: str) -> Callable[[Job], list[str]]:
    return lambda job: list(args)


def with_file(name: str, content: bytes | list[dict[str, Any]]) -> Callable[[Job], list[str]]:
    """A file beside the good ones."""

    def change(job: Job) -> list[str]:
        put_files(job.corpus, {name: content})
        return []

    return change


def only_file(name: str, content: bytes) -> Callable[[Job], list[str]]:
    """A corpus of one file."""

    def change(job: Job) -> list[str]:
        job.corpus.delete([info.name for info in job.corpus.list()])
        put_files(job.corpus, {name: content})
        return []

    return change


def with_config(content: bytes) -> Callable[[Job], list[str]]:
    def change(job: Job) -> list[str]:
        (job.folder / "broken.yaml").write_bytes(content)
        return ["--", str(job.folder / "broken.yaml")]

    return change


def without_folder(job: Job) -> list[str]:
    shutil.rmtree(job.corpus.uri)
    return []


def store_of_another_corpus(job: Job) -> list[str]:
    identity = {
        "format_version": 1,
        "min_reader_version": 1,
        "store_id": "0" * 32,
        "created_at": "2026-01-01T00:00:00Z",
    }
    job.store.put("store.json", json.dumps({**identity, "input_root": "s3://other/docs"}).encode())
    return []


def newer_store(job: Job) -> list[str]:
    job.store.put("store.json", json.dumps({"format_version": 9, "min_reader_version": 9}).encode())
    return []


def no_store(job: Job) -> list[str]:
    job.store.put("store.json", b"<html>")
    return []


def file_as_store(job: Job) -> list[str]:
    Path(job.store.uri).write_text("a file")
    return []


USAGE = [
    Case("a misspelt section", given("encodr.model=x"), ("encodr", "did you mean encoder?")),
    Case("a misspelt key", given("store.dtpye=float32"), ("store.dtpye", "did you mean store.dtype?")),
    Case("an unknown key", given("limits.zzz=1"), ("limits.zzz", "limits.max_quarantined_ratio")),
    Case("an override that is none", given("store.dtype"), ("store.dtype", "key.path=value")),
    Case("a value of another kind", given("store.dtype=float64"), ("float64", "float16")),
    Case("a ratio above one", given("limits.max_deleted_ratio=2"), ("limits.max_deleted_ratio", "2")),
    Case("splits of no rows", given("splits.max_rows=0"), ("splits.max_rows", "0", "from 1 to")),
    Case("no encoders", given("cluster.encoders=0"), ("cluster.encoders", "0")),
    Case("a limit of nothing", given("--limit", "0"), ("--limit", "0")),
    Case("a template without columns", given("input.text=nothing"), ("'nothing'", "{title}")),
    Case("a kept column that every shard has", given("input.keep=[doc_id]"), ("doc_id", "rename")),
    Case("config not found", given("--", "/nowhere/c.yaml"), ("/nowhere/c.yaml", "configs/local.yaml")),
    Case("config is no YAML", with_config(b"input: {uri: ["), ("broken.yaml", "not YAML")),
    Case("config is a list", with_config(b"- input"), ("broken.yaml", "list")),
    Case("config is empty", with_config(b""), ("broken.yaml", "mapping of sections")),
    Case("config without input", with_config(b"store: {uri: x}"), ("input",)),
    Case("config is no text", with_config(b"\xff\xfe\x00"), ("broken.yaml",)),
]  # fmt: skip

NOT_YET = [
    Case("another storage for the store", given("store.uri=gs://b/x"), ("not supported yet", "gs://b/x", "s3://")),
    Case("remote code", given("encoder.trust_remote_code=true"), ("not supported yet", "encoder.trust_remote_code")),
]  # fmt: skip

INPUT = [
    Case("folder not found", without_folder, ("no files at", "/in", "input.uri")),
    Case("an empty folder", only_file(".keep", b""), ("hidden", ".keep")),
    Case("no files matched", only_file("readme.md", b"#"), ("readme.md", "input.format")),
    Case("one file of unknown kind", lambda job: _one_file(job, "x.bin"), ("x.bin", "input.format")),
    Case("one of several inputs not found", given("input.uri=[/in/a, /in/b]"), ("no files at", "/in/a")),
    Case("a glob of nothing", given("input.uri=/data/*.parquet"), ("no files at", "/data/*.parquet")),
    Case("Parquet taken for CSV", given("input.format=csv"), ("no column title", "a.parquet")),
    Case("a key that CSV has not", given("input.csv={quotes: x}"), ("input.csv.quotes", "input.csv.quote?")),
    Case("a nested column missing", given("input.text={meta.title}"), ("no column meta.title", "there are:")),
    Case("a column missing in CSV", with_file("t.csv", b"a,b\n"), ("no column title", "t.csv", "there are: a, b")),
    Case("a storage without its package", given("input.uri=gs://bucket/x"), ("gs://", "package")),
    Case("chunk settings without chunks", given("encoder.chunk={tokens: 64}"), ("encoder.chunk", "overlong=chunk")),
    Case("text column missing", given("input.text={titel}"), ("titel", "there are:", "title", "body", "lang", "year")),
    Case("id column missing", given("input.id=url"), ("url", "there are:", "id, title, body")),
    Case("kept column missing", given("input.keep=[country]"), ("country", "there are:", "id, title, body")),
    Case(
        "text column missing in lines",
        only_file("a.jsonl", b'{"id": "1", "headline": "x"}\n'),
        ("title", "a.jsonl", "headline"),
    ),
    Case("a fraction as id", with_file("z.parquet", [{"id": 1.5, "title": "", "body": ""}]), ("z.parquet", "double")),
    Case(
        "a list as text",
        with_file("z.parquet", [{"id": "1", "title": ["x"], "body": ""}]),
        ("{title}", "z.parquet", "list"),
    ),
    Case(
        "a kept column of two types",
        lambda job: [*with_file("z.parquet", [{**make_rows(1)[0], "year": "MCM"}])(job), "input.keep=[year]"],
        ("year", "int64", "string", "one type"),
    ),
    Case("store in its input", lambda job: [f"store.uri={job.corpus.uri}/store"], ("/in/store", "beside")),
    Case("input in its store", lambda job: [f"store.uri={job.folder}"], ("/in", "beside")),
    Case("a store of another corpus", store_of_another_corpus, ("s3://other/docs", "/in", "another store.uri")),
    Case("a newer store", newer_store, ("9", "install a newer one")),
    Case("something else as store.json", no_store, ("store.json",)),
    Case("a file as store", file_as_store, ("/store", "give a folder")),
]


def _one_file(job: Job, name: str) -> list[str]:
    put_files(job.corpus, {name: b"?"})
    return [f"input.uri={job.corpus.uri}/{name}"]


@pytest.fixture(scope="module")
def good_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Written once, so that its files have stood for the two seconds that make an identity."""
    folder = tmp_path_factory.mktemp("good") / "in"
    job = Job.local(folder.parent, Path())
    put_files(job.corpus, {"a.parquet": make_rows(5), "b.jsonl": make_rows(5, begin=5)})
    return folder


@pytest.fixture
def job(tmp_path: Path, good_corpus: Path, tiny_model: Path) -> Job:
    job = Job.local(tmp_path, tiny_model)
    # Links: a copy would be two seconds young again.
    shutil.copytree(good_corpus, job.corpus.uri, copy_function=lambda source, target: Path(target).symlink_to(source))
    return job


def refused(ran: Ran, code: int, *words: str) -> None:
    """The command ended with this code and one sentence that holds the words; no traceback, no answer."""
    assert (ran.code, ran.out) == (code, "")
    assert "Traceback" not in ran.err
    assert "bug" not in ran.sentence
    assert ran.sentence.startswith(("vecmill: ", "Error: "))
    assert [word for word in words if word not in ran.sentence] == [], ran.sentence
    assert len(ran.sentence) < 700


@pytest.mark.usefixtures("no_flow")
@pytest.mark.parametrize("case", [*USAGE, *NOT_YET, *INPUT], ids=lambda case: case.name.replace(" ", "-"))
def test_found_before_work(job: Job, case: Case) -> None:
    args = case.change(job)
    ran = run_command("embed", *(args[1:] if args[:1] == ["--"] else [job.config_path, *args]))
    refused(ran, case.code, *case.words)
    assert job.manifests() == []
    assert job.records() == []


# -- models --------------------------------------------------------------------


def _model(job: Job) -> Path:
    """A model of one's own, to be spoilt."""
    path = job.folder / "model"
    shutil.copytree(job.config["encoder"]["model"], path)
    job.config["encoder"]["model"] = str(path)
    return path


def without_weights(job: Job) -> list[str]:
    (_model(job) / "model.safetensors").unlink()
    return []


def pickled_weights(job: Job) -> list[str]:
    (_model(job) / "model.safetensors").rename(job.folder / "model" / "pytorch_model.bin")
    return []


def torn_weights(job: Job) -> list[str]:
    path = _model(job) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    return []


def decoder_only(job: Job) -> list[str]:
    path = _model(job)
    (path / "modules.json").unlink()
    write_json(path / "config.json", {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "hidden_size": 32})
    return []


def cross_encoder(job: Job) -> list[str]:
    path = _model(job) / "config.json"
    write_json(path, {**json.loads(path.read_text()), "architectures": ["BertForSequenceClassification"]})
    return []


def other_module(kind: str) -> Callable[[Job], list[str]]:
    def change(job: Job) -> list[str]:
        path = _model(job) / "modules.json"
        write_json(path, [*json.loads(path.read_text()), {"idx": 3, "name": "3", "path": "3_X", "type": kind}])
        return []

    return change


def empty_folder_as_model(job: Job) -> list[str]:
    (job.folder / "empty").mkdir()
    return [f"encoder.model={job.folder}/empty"]


MODELS = [
    Case("a folder that is not there", given("encoder.model=/nowhere/m"), ("/nowhere/m", "hub id")),
    Case("an empty folder", empty_folder_as_model, ("/empty", "sentence-transformers layout")),
    Case("without weights", without_weights, ("safetensors", "/model", "save_pretrained")),
    Case("pickled weights only", pickled_weights, ("safetensors", "pytorch_model.bin", "save_pretrained")),
    Case("torn weights", torn_weights, ("model.safetensors", "fetch")),
    Case("decoder-only without pooling", decoder_only, ("decoder-only", "Qwen3ForCausalLM", "last token", "give")),
    Case("a cross-encoder", cross_encoder, ("BertForSequenceClassification", "sentence-embedding model")),
    Case(
        "a module to come",
        other_module("sentence_transformers.models.LSTM"),
        ("not supported yet", "LSTM", "Pooling"),
    ),
    Case("more dimensions than the model has", given("encoder.truncate_dim=33"), ("33", "32 dimensions")),
    Case("code of its own", other_module("custom_st.Transformer"), ("custom_st.Transformer", "no code")),
    Case("more tokens than positions", given("encoder.max_tokens=65"), ("65", "64 positions")),
    Case("a revision of a folder", given("encoder.revision=main"), ("encoder.revision", "leave it out")),
]


@pytest.mark.usefixtures("no_flow")
@pytest.mark.parametrize("case", MODELS, ids=lambda case: case.name.replace(" ", "-"))
def test_a_model_that_will_not_do(job: Job, case: Case) -> None:
    args = case.change(job)
    refused(job.embed(*args), case.code, *case.words)
    assert not job.store.exists(), "a store was begun for a model that is not there"


@pytest.mark.usefixtures("no_flow")
def test_a_hub_model_that_is_not_to_be_had_ends_soon(job: Job) -> None:
    """Offline or online: there is no such model."""
    started = time.monotonic()
    refused(job.embed("encoder.model=vecmill-tests/no-such-model"), 2, "vecmill-tests/no-such-model", "folder")
    assert time.monotonic() - started < 60


# -- object storage ------------------------------------------------------------


@pytest.fixture
def s3_job(s3: Any, tmp_path: Path, tiny_model: Path) -> Job:
    """A corpus in the bucket, a store beside it."""
    job = Job.on_s3(tmp_path, s3.uri, s3.options, tiny_model)
    put_files(job.corpus, {"a.parquet": make_rows(5)})
    return job


@pytest.mark.usefixtures("no_flow")
@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("input.uri=s3://no-such-bucket-here/in", ("no-such-bucket-here", "input.uri")),
        ("store.uri=s3://no-such-bucket-here/s", ("no-such-bucket-here", "store.uri")),
        ("encoder.model=s3://no-such-bucket-here/m", ("no-such-bucket-here", "model not found")),
    ],
)
def test_a_bucket_that_is_not_there(s3_job: Job, key: str, words: tuple[str, ...]) -> None:
    refused(s3_job.embed(key), 2, *words)
    assert s3_job.manifests() == []


@pytest.mark.usefixtures("no_flow")
def test_a_prefix_without_objects(s3_job: Job) -> None:
    refused(s3_job.embed(f"input.uri={s3_job.corpus.uri}/nothing"), 2, "/in/nothing", "input.uri")
    refused(s3_job.embed(f"encoder.model={s3_job.corpus.uri}"), 2, "/in", "a.parquet", "modules.json")


@pytest.mark.usefixtures("no_flow")
@pytest.mark.parametrize(
    ("methods", "part"),
    [("GET", "in"), ("HEAD GET", "in"), ("GET", "store"), ("PUT", "store")],
    ids=lambda value: value,
)
def test_no_rights(s3: Any, s3_job: Job, methods: str, part: str) -> None:
    """On S3 the right to GET is that to HEAD: where a HEAD is refused without a word, a GET is asked why."""
    place = re.compile(rf"[/=]{part}(/|&|$)")
    s3.is_denied = lambda asked, target: asked in methods.split() and bool(place.search(target))
    ran = s3_job.embed()
    s3.is_denied = None
    refused(ran, 75, "no right", f"{s3.uri}/{part}", "grant", "again")
    assert s3_job.manifests() == []


@pytest.mark.usefixtures("no_flow")
@pytest.mark.parametrize("section", ["input", "store"])
def test_missing_credentials(
    s3_job: Job, section: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, s3: Any
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    # An option of no meaning: file systems are kept by their options, and this one must look for credentials anew.
    s3_job.config[section]["storage_options"] = {
        key: value for key, value in s3.options.items() if key not in ("key", "secret")
    } | {"default_fill_cache": section == "input"}
    refused(s3_job.embed(), 75, "credentials", s3.uri, "AWS_ACCESS_KEY_ID", "again")
    assert s3_job.manifests() == []


@pytest.mark.usefixtures("no_flow")
def test_an_endpoint_that_nobody_answers(s3_job: Job, s3: Any) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{unused.getsockname()[1]}"
        s3_job.config["store"]["storage_options"] = {**s3.options, "endpoint_url": endpoint}
        refused(s3_job.embed(), 75, "cannot be reached", "endpoint_url", "again")


SECRETIVE = [
    "input.uri=s3://key:planted@bucket/in",
    "input.uri=s3://key:plan/planted@bucket/in",
    "store.uri=s3://key:planted@bucket/store",
    "store.uri=gs://key:planted@bucket/store",
    "encoder.model=s3://key:planted@bucket/model",
    "encoder.model=gs://key:planted@bucket/model",
    "input.storage_options.secret=@planted",
    "input.storage_options=planted",
    "input.storage_options=[planted]",
    "store.storage_options.secret.more=planted",
    "store.storage_options.secret:planted",
]


@pytest.mark.usefixtures("no_flow")
@pytest.mark.parametrize("override", SECRETIVE)
def test_a_refusal_shows_no_secret(job: Job, override: str) -> None:
    """Where a secret stands in the wrong place, or is not YAML, it is not repeated."""
    job.config["store"]["storage_options"] = {"secret": "planted"}
    ran = job.embed(override)
    assert (ran.code, ran.out) != (0, "")
    assert "planted" not in ran.err
    assert "Traceback" not in ran.err


# -- a file that cannot be read; more kinds, and bad documents, in test_bad_data ----

GOOD = make_rows(30)


@pytest.mark.usefixtures("ray_in_process")
@pytest.mark.parametrize("name", ["z.parquet", "z.jsonl.gz"])
def test_a_file_that_is_cut(tmp_path: Path, tiny_model: Path, name: str) -> None:
    """Refused, with its name; accepted by the limit, nothing of the others is lost and nothing encoded again."""
    job = Job.local(tmp_path, tiny_model)
    rest = make_rows(1500, begin=30)
    put_files(job.corpus, {"a.parquet": GOOD, name: rest})
    whole = job.corpus.read(name)
    put_files(job.corpus, {name: whole[: len(whole) * 2 // 3]})
    refused(job.embed(), 3, name, "limits.max_quarantined_files", "nothing was published", "again")
    assert job.manifests() == []
    records = job.records()
    outcome = job.published("limits.max_quarantined_files=1")
    assert set(records) <= set(job.records()), "splits were encoded again"
    assert (outcome["files_in"], outcome["files_read"], outcome["files_quarantined"]) == (2, 1, 1)
    assert outcome["documents_in"] == outcome["embedded"] + outcome["quarantined"]
    found = job.doc_ids()
    if name == "z.jsonl.gz":  # what lies before the cut is whole
        assert 30 < len(found) < 1530
    else:
        assert len(found) == 30
    assert found == [row["id"] for row in (*GOOD, *rest)][: len(found)]
    [quarantine] = {*job.snapshot().splits["quarantine_file"].drop_null().to_pylist()}  # small files may share one
    [row] = pq.read_table(f"{job.store.uri}/{quarantine}").to_pylist()
    assert (row["reason"], row["input_file"], row["row"]) == ("unreadable_file", name, None)


# -- other commands ------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(LATER_JOBS))
def test_a_command_to_come(name: str) -> None:
    refused(run_command(name), 2, "not supported yet", name)


def test_no_such_command() -> None:
    refused(run_command("embedd"), 2, "embedd")


def _query(job: Job, *args: str) -> Ran:
    return run_command("search", job.config_path, "--query", "river", *args)


def test_search_of_what_is_not_there(job: Job) -> None:
    for command in (["search", "--query", "x"], ["status"]):
        refused(run_command(*command, "/nowhere/store"), 2, "/nowhere/store", "vecmill embed")
    store_of_another_corpus(job)
    refused(run_command("search", job.store.uri, "--query", "x"), 2, "no snapshot yet", "vecmill embed")
    refused(run_command("search", job.store.uri, "a.b=1", "--query", "x"), 2, "a.b=1", "config")


SEARCHES: list[tuple[list[str], tuple[str, ...]]] = [
    (["-k", "0"], ("-k", "0")),
    (["-k", "many"], ("many",)),
    (["--query", " "], ("empty", "' '")),
    (["--queries", "/nowhere/q.jsonl"], ("--query", "--queries", "not both")),
    (["encoder.max_tokens=9"], ("max_tokens", "another store")),
    (["input.text={title}"], ("input.text", "another store")),
    (["encoder.pooling=cls"], ("pooling", "another store")),
]


@pytest.mark.parametrize(("args", "words"), SEARCHES, ids=lambda value: " ".join(value) if value else "")
def test_search_asked_wrongly(published: Job, args: list[str], words: tuple[str, ...]) -> None:
    refused(_query(published, *args), 2, *words)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"river\n", (":1", "id", "text")),
        (b'{"id": 1, "text": "x"}\n{"id": 1, "text": "y"}\n', (":2", "1", "twice")),
        (b'{"id": 1, "text": 7}\n', (":1", "int")),
        (b'{"text": "x"}\n', (":1", "id")),
        (b"\xff\n", ("queries",)),
        (b"", ("no query",)),
        (None, ("queries",)),
    ],
)
def test_a_wrong_file_of_queries(published: Job, tmp_path: Path, line: bytes | None, words: tuple[str, ...]) -> None:
    path = tmp_path / "queries.jsonl"
    if line is not None:
        path.write_bytes(line)
    ran = run_command("search", published.store.uri, "--queries", str(path))
    refused(ran, 2, *([str(path)] if line != b"" else []), *words)


def test_search_with_another_model(published: Job, tmp_path: Path) -> None:
    other = make_model(tmp_path / "other", normalize=False)
    refused(_query(published, f"encoder.model={other}"), 2, str(other), "another store")


@pytest.mark.usefixtures("no_flow")
def test_another_encoder_never_mixes_into_a_store(published: Job) -> None:
    before = published.manifests()
    refused(published.embed("encoder.max_tokens=9"), 2, "another encoder", "another store.uri")
    refused(published.embed("--limit", "3"), 2, "--limit 3", "another store.uri")
    assert published.manifests() == before
