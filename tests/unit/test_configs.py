"""Every config that ships loads, agrees with the others, and names nothing that the config does not have."""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic import BaseModel

from pipeline.config import Config, load_config

ROOT = Path(__file__).parents[2]
SHIPPED = sorted(path for path in (ROOT / "configs").glob("*.yaml") if path.name != "rayjob.yaml")

# Keys that no shipped config has reason to set; anything else in the model must be shown by one of them.
NOT_SHOWN = {
    "input.csv.delimiter",
    "input.csv.quote",
    "input.csv.encoding",
    "input.csv.multiline",
    "store.quarantine_text",
    "encoder.prompt",
    "encoder.query_prompt",
    "encoder.pooling",
    "encoder.max_tokens",
    "encoder.overlong",
    "encoder.chunk.tokens",
    "encoder.chunk.overlap_tokens",
    "encoder.truncate_dim",
    "encoder.trust_remote_code",
    "cluster.encoders.min",
    "cluster.encoders.max",
    "index.recall_target",
    "index.codec",
    "index.nlist",
    "index.queries",
}


def model_keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Every key of the config, dotted; of a section only its keys."""
    for name, field in model.model_fields.items():
        sections = [
            inner
            for inner in (field.annotation, *get_args(field.annotation))
            if isinstance(inner, type) and issubclass(inner, BaseModel)
        ]
        if not sections or sections[0] is not field.annotation:
            yield prefix + name
        for section in sections:
            yield from model_keys(section, f"{prefix}{name}.")


def file_keys(value: dict[str, Any], known: set[str], prefix: str = "") -> Iterator[str]:
    for name, inner in value.items():
        if prefix + name in known:
            yield prefix + name
        elif isinstance(inner, dict):
            yield from file_keys(inner, known, f"{prefix}{name}.")


def rayjob() -> dict[str, Any]:
    value = yaml.safe_load((ROOT / "configs" / "rayjob.yaml").read_text(encoding="utf-8"))
    assert isinstance(value, dict)
    return value


def test_the_configs_of_the_design_ship() -> None:
    assert {path.stem for path in SHIPPED} == {"local", "s3", "gpu", "cluster"}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_config_loads(path: Path) -> None:
    assert isinstance(load_config(path), Config)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_no_shipped_config_holds_a_credential(path: Path) -> None:
    found = load_config(path)
    assert not found.input.storage_options
    assert not found.store.storage_options


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_new_user_is_told_how_to_run_it(path: Path) -> None:
    comment = "".join(line for line in path.read_text(encoding="utf-8").splitlines(True) if line.startswith("#"))
    assert f"configs/{path.name}" in comment


def test_every_number_in_the_cluster_config_says_why() -> None:
    """The comment stands on the line, or just above it."""
    lines = (ROOT / "configs" / "cluster.yaml").read_text(encoding="utf-8").splitlines()
    bare = [
        line
        for above, line in itertools.pairwise(lines)
        if re.match(r"\s+\w+: [\d.]+", line) and "#" not in line and not above.lstrip().startswith("#")
    ]
    assert not bare


def test_every_key_of_the_config_is_shown_or_known_not_to_be() -> None:
    known = set(model_keys(Config))
    shown = {key for path in SHIPPED for key in file_keys(yaml.safe_load(path.read_text(encoding="utf-8")), known)}
    assert known - shown == NOT_SHOWN


def test_the_rayjob_runs_the_cluster_config() -> None:
    job = rayjob()
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    command = shlex.split(job["spec"]["entrypoint"])
    assert command == ["python", "-m", "jobs.embed", "configs/cluster.yaml"]
    assert (ROOT / command[-1]).exists()
    assert job["spec"]["shutdownAfterJobFinishes"] is True


def test_the_encoders_of_the_cluster_config_fit_into_the_rayjobs_gpus() -> None:
    cluster = load_config(ROOT / "configs" / "cluster.yaml").cluster
    num_gpus = sum(
        group["minReplicas"] * int(container["resources"]["limits"]["nvidia.com/gpu"])
        for group in rayjob()["spec"]["rayClusterSpec"]["workerGroupSpecs"]
        for container in group["template"]["spec"]["containers"]
    )
    assert isinstance(cluster.encoders, int)
    assert cluster.encoders * cluster.gpus_per_encoder == num_gpus


def test_the_rayjobs_pods_are_all_alike_where_they_must_be() -> None:
    """One image: nodes with different versions of Ray do not talk. Credentials by reference; /dev/shm everywhere."""
    spec = rayjob()["spec"]["rayClusterSpec"]
    groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
    containers = [container for group in groups for container in group["template"]["spec"]["containers"]]
    assert len({container["image"] for container in containers}) == 1
    for group, container in zip(groups, containers, strict=True):
        assert container["resources"]["requests"] == container["resources"]["limits"]
        assert all(set(source) == {"secretRef"} for source in container["envFrom"])
        mounted = {mount["name"] for mount in container["volumeMounts"] if mount["mountPath"] == "/dev/shm"}
        assert mounted == {volume["name"] for volume in group["template"]["spec"]["volumes"]}


def test_versions_are_those_of_the_package() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    job = rayjob()["spec"]["rayClusterSpec"]
    ray = re.search(r'"ray\[data,default\]==([\d.]+)\.\*"', text)
    version = re.search(r'^version = "(.+)"', text, re.MULTILINE)
    assert ray is not None
    assert version is not None
    assert job["rayVersion"].startswith(f"{ray[1]}.")
    assert job["headGroupSpec"]["template"]["spec"]["containers"][0]["image"].endswith(f":{version[1]}")
