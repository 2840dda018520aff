"""The exception tree. Each class knows the exit code its command ends with.

    VecmillError                 1    Vecmill's own fault
    +-- UsageError               2    found before work: usage, config, model or path wrong
    |   +-- ConfigError               a key, a value, an override
    |   +-- InputError                nothing to read, a column that is not there
    |   +-- ModelError                not found, not loadable, not of a kind Vecmill encodes with
    |   +-- StoreError                of another corpus, newer than this reader, not a store
    |   +-- ClusterError              too small for what the config asks
    |   +-- NotSupportedError         "not supported yet: ..."
    +-- LimitError               3    data refused by a limit or gate; work kept, nothing published
    +-- ConflictError            4    another writer published first, or holds the lease
    +-- EnvironmentFault        75    storage, cluster, credentials, disk: the same command goes on
    |   +-- StorageFault              storage did not do what was asked
    |   |   +-- ChangedError          an object is no longer the one that was listed
    |   +-- CredentialsFault          missing, expired, or without the rights
    |   +-- AcceleratorFault          broken for the process that uses it
    |   +-- ClusterGone               Ray ended under the run
    Interrupted       130, 143   a signal; resumable. No Exception: code that handles those must let it pass

A message says what is wrong, the value, and the way out, in one sentence or two.
"""

from __future__ import annotations

import signal


class VecmillError(Exception):
    """Vecmill's own fault unless a subclass says otherwise."""

    exit_code = 1


class UsageError(VecmillError):
    """Usage, config, model or path wrong; found before work."""

    exit_code = 2


class ConfigError(UsageError):
    """A config key, value or override that cannot be used."""


class InputError(UsageError):
    """The corpus cannot be read as the config describes it."""


class ModelError(UsageError):
    """The model cannot be found, loaded, or used as an encoder."""


class StoreError(UsageError):
    """The store is of another corpus, newer than this reader, or no store."""


class ClusterError(UsageError):
    """The cluster is too small, or of the wrong shape, for what the config asks."""


class NotSupportedError(UsageError):
    """Part of the design, not built yet."""

    def __init__(self, what: str) -> None:
        super().__init__(what if what.startswith("not supported yet: ") else f"not supported yet: {what}")


class LimitError(VecmillError):
    """Data refused by a limit or a gate; work is kept, nothing is published."""

    exit_code = 3


class ConflictError(VecmillError):
    """Another writer published first, or holds the lease."""

    exit_code = 4


class EnvironmentFault(VecmillError):
    """Storage, cluster, credentials or disk; the same command goes on."""

    exit_code = 75


class StorageFault(EnvironmentFault):
    """Storage did not do what was asked."""


class ChangedError(StorageFault):
    """An object is no longer the one that was listed; `file_uri` says which where the reader of many knows."""

    file_uri: str | None = None


class CredentialsFault(EnvironmentFault):
    """Credentials are missing, expired, or lack a right."""


class AcceleratorFault(EnvironmentFault):
    """The accelerator broke over what it was given; its process cannot use it any more."""


class ClusterGone(EnvironmentFault):
    """The Ray cluster ended under the run; what Ray has left in this process ends it before long, with exit 1."""


class Interrupted(BaseException):
    """A signal arrived; the same command goes on.

    Like KeyboardInterrupt no Exception: what retries, or logs what it takes for its own fault (Ray Data
    does), would else hold a signal for one.
    """

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal_number)
        self.signal_number = signal_number
        self.exit_code = 128 + signal_number

    def __str__(self) -> str:
        return f"interrupted by {signal.Signals(self.signal_number).name}"
