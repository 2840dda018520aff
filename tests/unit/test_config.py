"""The config: what is refused is refused with a sentence that helps; what decides a row decides its fingerprint."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.config import AUTO_MAX_ROWS, Config, PoolSize, load_config, parse_config, redact_uri
from pipeline.errors import ConfigError, NotSupportedError, UsageError

SECRET = "planted-secret-7f3a"

MINIMAL = {"input": {"uri": "docs"}, "store": {"uri": "vectors"}}


def config(overrides: Mapping[str, Any] | None = None) -> Config:
    """The smallest config, with `section.key` values put over it."""
    raw: dict[str, Any] = {section: dict(keys) for section, keys in MINIMAL.items()}
    for dotted, value in (overrides or {}).items():
        section, _, key = dotted.partition(".")
        raw.setdefault(section, {})[key] = value
    return parse_config(raw)


def write(folder: Path, text: str) -> Path:
    path = folder / "config.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_absent_keys_mean_the_defaults_of_the_design() -> None:
    found = config()
    assert found.store.dtype == "float16"
    assert found.encoder.model == "sentence-transformers/all-MiniLM-L6-v2"
    assert found.encoder.compute == found.encoder.token_budget == found.cluster.encoders == "auto"
    assert found.splits.num_rows == AUTO_MAX_ROWS
    assert found.splits.max_bytes == 64 * 2**20
    assert (found.limits.max_quarantined_ratio, found.limits.max_quarantined_files) == (0.01, 0)
    assert found.limits.max_deleted_ratio == 0.1


@pytest.mark.parametrize(
    ("raw", "sentence"),
    [
        ({**MINIMAL, "encodr": {}}, "unknown config key: encodr; did you mean encoder?"),
        ({**MINIMAL, "store": {"uri": "x", "dtyp": 1}}, "unknown config key: store.dtyp; did you mean store.dtype?"),
        (
            {**MINIMAL, "encoder": {"chunk": {"token": 1}}},
            "unknown config key: encoder.chunk.token; did you mean encoder.chunk.tokens?",
        ),
        (
            {**MINIMAL, "cluster": {"encoders": {"min": 1, "maxx": 2}}},
            "unknown config key: cluster.encoders.maxx; did you mean cluster.encoders.max?",
        ),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_known_one(raw: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_config(raw)
    assert str(error.value) == sentence


def test_an_unknown_key_like_no_other_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"^unknown config key: store\.zzz; .*store\.uri, store\.dtype"):
        config({"store.zzz": 1})


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        ({"store.dtype": "int8"}, r"store\.dtype: .*'float16' or 'float32'.*got 'int8'"),
        ({"encoder.max_tokens": 0}, r"encoder\.max_tokens: .*got 0"),
        ({"encoder.token_budget": 0}, r"encoder\.token_budget must be positive: 0"),
        ({"splits.max_bytes": "lots"}, r"splits\.max_bytes: .*got 'lots'"),
        ({"splits.max_rows": 0}, r"splits.*max_rows.*0"),
        ({"splits.max_bytes": 0}, r"splits.*max_bytes.*0"),
        ({"splits.max_bytes": 2**30 + 1}, r"splits\.max_bytes must be at most 1GiB: 1073741825"),
        ({"cluster.encoders": 0}, r"cluster\.encoders must be at least 1: 0"),
        ({"cluster.encoders": {"min": 3, "max": 2}}, r"cluster\.encoders: min 3 is above max 2"),
        ({"limits.max_quarantined_ratio": 1.5}, r"limits\.max_quarantined_ratio: .*got 1\.5"),
        ({"input.text": "no column"}, r"input\.text: 'no column' names no column"),
        ({"input.keep": ["vector"]}, r"input\.keep: vector is the name of a column that every shard has"),
        ({"input.keep": ["a", "a"]}, r"input\.keep names a column twice: a, a"),
        ({"input.uri": None}, r"input\.uri: .*got None"),
    ],
)
def test_a_wrong_value_is_refused_with_key_and_value(overrides: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence) as error:
        config(overrides)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("section", ["input", "store"])
def test_a_missing_required_key_is_named(section: str) -> None:
    with pytest.raises(ConfigError, match=rf"config key missing: {section}\.uri"):
        parse_config({**MINIMAL, section: {}})
    with pytest.raises(ConfigError, match=f"config key missing: {section}; "):
        parse_config({name: keys for name, keys in MINIMAL.items() if name != section})


@pytest.mark.parametrize(
    "overrides",
    [
        {"encoder.trust_remote_code": True},
    ],
    ids=str,
)
def test_what_is_not_built_yet_is_refused_never_half_done(overrides: dict[str, Any]) -> None:
    with pytest.raises(NotSupportedError, match="^not supported yet: ") as error:
        config(overrides)
    assert error.value.exit_code == 2


@pytest.mark.parametrize(
    ("encoder", "sentence"),
    [
        ({"encoder.chunk": {"tokens": 128}}, "encoder.chunk is set, and encoder.overlong is truncate"),
        (
            {"encoder.overlong": "chunk", "encoder.chunk": {"tokens": 32}},
            "encoder.chunk.overlap_tokens: 32 is not below encoder.chunk.tokens: 32",
        ),
    ],
    ids=str,
)
def test_chunks_that_make_no_sense_are_refused(encoder: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        config(encoder)


@pytest.mark.parametrize("overrides", [{"encoder.pooling": "loudest"}, {"encoder.truncate_dim": 0}], ids=str)
def test_a_pooling_or_a_width_that_there_is_not_is_refused(overrides: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="|".join(overrides)):
        config(overrides)
    assert config({"encoder.pooling": "lasttoken", "encoder.truncate_dim": 64}).encoder.truncate_dim == 64


def test_the_template_names_its_columns_each_once() -> None:
    assert config({"input.text": "{title}\n\n{body} ({title})"}).input.text_columns == ("title", "body")


def test_a_config_cannot_be_changed_after_it_was_checked() -> None:
    with pytest.raises(ValueError, match="frozen"):
        config().store.dtype = "float32"


def test_overrides_come_over_the_file_as_yaml_values(tmp_path: Path) -> None:
    path = write(tmp_path, yaml.safe_dump(MINIMAL))
    found = load_config(
        path,
        [
            "input.keep=[lang, year]",
            "store.keep_text=true",
            "encoder.revision=null",
            "cluster.encoders={min: 1, max: 4}",
            "limits.max_quarantined_ratio=0.5",
            "input.text='{a}={b}'",  # quoted: braces are YAML's mappings
        ],
    )
    assert found.input.keep == ("lang", "year")
    assert found.store.keep_text is True
    assert found.encoder.revision is None
    assert found.cluster.encoders == PoolSize(min=1, max=4)
    assert found.limits.max_quarantined_ratio == 0.5
    assert found.input.text == "{a}={b}"


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("store.dtype", "override must be key.path=value: store.dtype"),
        ("=1", "override must be key.path=value: =1"),
        ("store.dtyp=float32", "unknown config key: store.dtyp; did you mean store.dtype?"),
        ("store.uri.x=1", "override goes through uri, which is a value, not a section: store.uri.x=1"),
        ("store.uri=[", "override's value is not YAML: store.uri=[; quote it"),
    ],
)
def test_a_wrong_override_is_refused(tmp_path: Path, override: str, sentence: str) -> None:
    path = write(tmp_path, yaml.safe_dump(MINIMAL))
    with pytest.raises(ConfigError) as error:
        load_config(path, [override])
    assert str(error.value) == sentence


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("input: [", "config is not YAML: .*config.yaml"),
        ("- input", "config must be a mapping of sections .*config.yaml holds list"),
        ("", "config must be a mapping of sections .*config.yaml holds NoneType"),
        ("input: docs\nstore: {uri: x}", "input: .*got 'docs'"),
    ],
)
def test_a_file_that_is_no_config_is_refused(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence) as error:
        load_config(write(tmp_path, text))
    assert "\n" not in str(error.value)


def test_a_missing_file_or_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="config not found: .*none.yaml; configs/local.yaml is one to start from"):
        load_config(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="config is a folder: .*; give the YAML file"):
        load_config(tmp_path)


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(b"input: {uri: \xff\xfe}")
    with pytest.raises(ConfigError, match="config cannot be read: .*config.yaml"):
        load_config(path)


@pytest.mark.parametrize("section", ["input", "store"])
def test_no_credential_is_shown(section: str) -> None:
    """Promise 10, with a planted secret: in options, nested options, and the URI itself."""
    found = config(
        {
            f"{section}.uri": f"s3://someone:{SECRET}@bucket/prefix",
            f"{section}.storage_options": {"key": SECRET, "client_kwargs": {"aws_secret_access_key": SECRET}},
        }
    )
    redacted = found.redacted()
    assert SECRET not in json.dumps(redacted)
    assert SECRET not in repr(getattr(found, section).storage_options.keys())
    assert redacted[section]["uri"] == "s3://***@bucket/prefix"
    assert redacted[section]["storage_options"] == {"key": "***", "client_kwargs": "***"}


def test_no_credential_of_the_options_is_in_a_repr() -> None:
    found = config({"store.storage_options": {"secret": SECRET}, "input.storage_options": {"secret": SECRET}})
    assert SECRET not in repr(found) + str(found)


def test_no_credential_is_in_the_sentence_about_a_wrong_value() -> None:
    for value in (SECRET, [SECRET], {1: SECRET}):
        with pytest.raises(UsageError) as error:
            config({"store.storage_options": value})
        assert SECRET not in str(error.value)


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("s3://bucket/docs", "s3://bucket/docs"),
        ("s3://key:secret@bucket/docs", "s3://***@bucket/docs"),
        ("/data/a@b/docs", "/data/a@b/docs"),
        ("s3://bucket/a@b", "s3://bucket/a@b"),
    ],
)
def test_a_uri_loses_its_user_and_nothing_else(uri: str, shown: str) -> None:
    assert redact_uri(uri) == shown


def test_the_shard_fingerprint_is_the_same_in_every_process_and_version() -> None:
    """It is part of paths in the store: a change here loses every store, unless ROW_FORMAT_VERSION says so."""
    assert config().shard_fingerprint({}) == "4a9963e2bc2b666f"


@pytest.mark.parametrize(
    "overrides",
    [
        {"input.format": "jsonl"},
        {"input.id": "url"},
        {"input.text": "{title} {text}"},
        {"store.dtype": "float32"},
        {"store.keep_text": True},
        {"input.csv": {"delimiter": ";"}},
    ],
    ids=str,
)
def test_the_shard_fingerprint_changes_with_what_shapes_a_row(overrides: dict[str, Any]) -> None:
    assert config(overrides).shard_fingerprint({}) != config().shard_fingerprint({})


def test_the_shard_fingerprint_changes_with_kept_columns_and_their_types() -> None:
    found = config({"input.keep": ["year"]})
    assert len({found.shard_fingerprint(types) for types in ({}, {"year": "int32"}, {"year": "int64"})}) == 3


@pytest.mark.parametrize(
    "overrides",
    [
        {"input.uri": "elsewhere"},
        {"input.uri": ["elsewhere", "and there/*.csv"]},
        {"input.csv": {"quote": '"', "multiline": True}},  # as it is without
        {"input.storage_options": {"key": "x"}},
        {"store.uri": "elsewhere"},
        {"store.storage_options": {"key": "x"}},
        {"encoder.token_budget": 1024},
        {"encoder.compute": "float32"},
        {"encoder.model": "other"},  # has a fingerprint of its own
        {"splits.max_rows": 7},
        {"splits.max_bytes": "1MiB"},
        {"cluster.encoders": 3},
        {"index.recall_target": 0.5},
        {"limits.max_deleted_ratio": 1},
    ],
    ids=str,
)
def test_the_shard_fingerprint_ignores_what_shapes_no_row(overrides: dict[str, Any]) -> None:
    assert config(overrides).shard_fingerprint({}) == config().shard_fingerprint({})


@pytest.mark.parametrize("text", ["{title} {body}", "{body}", "'{body}'", '"{title}: {body}"', "{title}: {body}"])
def test_a_template_on_the_command_line_needs_no_quotes_of_yaml(tmp_path: Path, text: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("input: {uri: in}\nstore: {uri: out}\n")
    assert load_config(path, [f"input.text={text}"]).input.text == text.strip("'\"")


def test_a_broken_file_never_shows_the_line_that_may_hold_a_secret(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text('input: {uri: in}\nstore:\n  storage_options: {key: a, secret: "TOPSECRET\n')
    with pytest.raises(ConfigError) as error:
        load_config(path)
    assert "TOPSECRET" not in str(error.value)
    assert "line" in str(error.value)


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("cluster.encoders=many", "cluster.encoders: must be auto, a number, or {min: ..., max: ...}, got 'many'"),
        ("splits.max_rows=many", "splits.max_rows: must be auto or a number, got 'many'"),
        ("input=5", "input: must be a section, a mapping of keys, got 5"),
        ("input.keep=lang", "input.keep: must be a list, such as [a, b], got 'lang'"),
        ("input.uri=''", "input.uri is empty; give a folder, a prefix, a file, a glob, or a list of those"),
        ("input.text={}", "input.text: '{}' has empty braces; name a column in them"),
    ],
)
def test_a_wrong_value_is_told_in_words_of_the_config(tmp_path: Path, override: str, sentence: str) -> None:
    path = write(tmp_path, yaml.safe_dump(MINIMAL))
    with pytest.raises(ConfigError) as error:
        load_config(path, [override])
    assert str(error.value) == sentence


def test_the_order_of_kept_columns_is_part_of_the_shard_fingerprint() -> None:
    """It is the order of the shards' columns, and of what a row hash is made of."""
    one, other = {"a": "string", "b": "int64"}, {"b": "int64", "a": "string"}
    assert config().shard_fingerprint(one) != config().shard_fingerprint(other)
