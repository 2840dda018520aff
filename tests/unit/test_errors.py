"""Exit codes are an interface: cron and operators act on them (design, section 6)."""

from __future__ import annotations

import signal

import pytest

from pipeline import errors


def _classes(root: type[errors.VecmillError]) -> list[type[errors.VecmillError]]:
    return [root, *(found for child in root.__subclasses__() for found in _classes(child))]


EXIT_CODES = {
    errors.VecmillError: 1,
    errors.UsageError: 2,
    errors.ConfigError: 2,
    errors.InputError: 2,
    errors.ModelError: 2,
    errors.StoreError: 2,
    errors.ClusterError: 2,
    errors.NotSupportedError: 2,
    errors.LimitError: 3,
    errors.ConflictError: 4,
    errors.EnvironmentFault: 75,
    errors.StorageFault: 75,
    errors.ChangedError: 75,
    errors.CredentialsFault: 75,
    errors.AcceleratorFault: 75,
    errors.ClusterGone: 75,
}


@pytest.mark.parametrize(("kind", "exit_code"), EXIT_CODES.items())
def test_each_kind_ends_with_its_exit_code(kind: type[errors.VecmillError], exit_code: int) -> None:
    assert kind("what").exit_code == exit_code


def test_every_error_is_in_the_table_and_in_the_docstring() -> None:
    found = {kind for kind in _classes(errors.VecmillError) if kind.__module__ == errors.__name__}
    assert found == {*EXIT_CODES}
    assert errors.__doc__ is not None
    missing = [kind.__name__ for kind in {*found, errors.Interrupted} if f"{kind.__name__} " not in errors.__doc__]
    assert not missing


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interruption_ends_like_the_shell_reports_its_signal(number: signal.Signals, exit_code: int) -> None:
    error = errors.Interrupted(number)
    assert error.exit_code == exit_code
    assert str(error) == f"interrupted by {number.name}"
    assert not isinstance(error, Exception), "a library that handles exceptions would handle the signal"


def test_what_is_not_built_yet_always_says_so_once() -> None:
    assert str(errors.NotSupportedError("csv")) == "not supported yet: csv"
    assert str(errors.NotSupportedError("not supported yet: csv")) == "not supported yet: csv"
