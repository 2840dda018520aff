from __future__ import annotations

from pipeline.search.cache import Cache


def test_what_was_used_longest_ago_goes_first() -> None:
    cache: Cache[str] = Cache(10)
    for key in "abc":
        cache.put(key, key.upper(), 3)
    assert cache.get("a") == "A"
    cache.put("d", "D", 4)
    assert [cache.get(key) for key in "abcd"] == ["A", None, "C", "D"]
    assert cache.num_bytes == 10


def test_what_is_larger_than_the_cache_is_not_held() -> None:
    cache: Cache[str] = Cache(10)
    cache.put("a", "A", 5)
    cache.put("b", "B", 11)
    assert (cache.get("a"), cache.get("b"), cache.num_bytes) == ("A", None, 5)


def test_a_value_put_again_counts_once() -> None:
    cache: Cache[str] = Cache(10)
    for size in (3, 4, 5):
        cache.put("a", "A", size)
    assert cache.num_bytes == 5
