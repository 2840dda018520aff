"""S3 as storage, as far as it goes without a server."""

from __future__ import annotations

import pytest

from pipeline.errors import ConfigError
from pipeline.uris import Storage


@pytest.mark.parametrize("options", [{"endpoint_url": "no url"}, {"no_such_option": 1}])
def test_options_that_cannot_be_used_are_a_config_error(options: dict[str, object]) -> None:
    """Found before any request."""
    with pytest.raises(ConfigError, match="s3://b/x"):
        Storage("s3://b/x", {"key": "k", "secret": "planted", **options}).list()


def test_a_bucket_name_that_cannot_be_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match="Invalid bucket name"):
        Storage("s3://b ucket/x", {"key": "k", "secret": "s"}).list()
