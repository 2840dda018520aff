"""URIs taken apart: where an object is, and the folder that several have in common.

/data/docs                     a local folder, also as file:///data/docs
s3://bucket/docs               object storage, also as s3a://
scheme://path                  whatever else fsspec has, for reading
zip://docs::s3://bucket/a.zip  what is in an archive, at any address (tar:// too)
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from pipeline.config import redact_uri
from pipeline.errors import NotSupportedError, UsageError

ARCHIVES = ("zip", "tar")
_WEB = ("http", "https")


class Address(NamedTuple):
    """A URI in parts.

    Attributes:
        anchor: what no folder is above: "" (local), "s3://bucket", "memory:/", "https://host", "zip:/".
        path: below it, "/"-separated, without slashes around it.
        tail: of an archive, "::" and where that is.
    """

    anchor: str
    path: str
    tail: str = ""

    @classmethod
    def parse(cls, uri: str) -> Address:
        """The parts of a URI, or of a local path, which may be relative.

        Raises:
            NotSupportedError: a scheme that is not known.
            UsageError: credentials in the URI.
        """
        head, separator, tail = uri.partition("::")
        kind, _, inner = head.partition("://")
        if separator and kind in ARCHIVES:
            return cls(f"{kind}:/", inner.strip("/"), f"::{cls.parse(tail).uri}")
        scheme, has_scheme, rest = uri.partition("://")
        if not has_scheme or scheme in ("file", "local"):
            path = rest if has_scheme else uri
            return cls("", str(Path(os.path.abspath(os.path.expanduser(path)))).strip("/"))
        if separator or scheme in ARCHIVES:
            raise NotSupportedError(
                f"{redact_uri(uri)}: of chained URIs zip and tar are read, as zip://folder::s3://bucket/file.zip"
            )
        if redact_uri(uri) != uri:  # messages name URIs, and nothing would read the credentials in one
            raise UsageError(f"credentials in a URI: {redact_uri(uri)}; give them as storage_options, beside the uri")
        if scheme in _WEB and "?" in rest:
            raise NotSupportedError(
                f"query in {scheme}://{rest.partition('?')[0]}?...: it may be a secret, and stores tell what they are "
                "of; give a URL without one, or copy the file to a folder or to s3://"
            )
        if scheme in ("s3", "s3a", *_WEB):
            host, _, path = rest.partition("/")
            return cls(f"{'s3' if scheme == 's3a' else scheme}://{host}", path.strip("/"))
        return cls(f"{scheme}:/", rest.strip("/"))

    @property
    def uri(self) -> str:
        """As one string; a path if it is local."""
        if self.path or not self.anchor:
            return f"{self.anchor}/{self.path}{self.tail}"
        return f"{self.anchor}{'/' if self.anchor.endswith(':/') else ''}{self.tail}"

    @property
    def scheme(self) -> str:
        """Without "://"; "" if it is local."""
        return self.anchor.partition(":")[0]

    @property
    def is_web(self) -> bool:
        """Whether a question mark begins a query, and there are no folders."""
        return self.scheme in _WEB

    def below(self, name: str) -> Address:
        """Of an object in this folder."""
        return self._replace(path=f"{self.path}/{name}".strip("/"))

    def split(self) -> tuple[Address, str]:
        """The folder it is in, and its name there."""
        folder, _, name = self.path.rpartition("/")
        return self._replace(path=folder), name


def common_folder(one: Address, other: Address) -> Address | None:
    """The longest folder that both are in, or are; None if there is none."""
    if (one.anchor, one.tail) != (other.anchor, other.tail):
        return None
    pairs = zip(one.path.split("/"), other.path.split("/"), strict=False)
    shared: list[str] = []
    for mine, theirs in pairs:
        if mine != theirs:
            break
        shared.append(mine)
    return one._replace(path="/".join(shared))
