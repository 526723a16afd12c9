"""What Range asks for, as RFC 9110 has it."""

from __future__ import annotations

import pytest

from syncnorm.service.api.http.byte_ranges import ByteRange, UnsatisfiableError, requested

TAG = '"v1"'


@pytest.mark.parametrize(
    ("header", "start", "end"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=0-9", 0, 10),
        ("bytes=0-99", 0, 10),
        ("bytes=3-5", 3, 6),
        ("bytes=9-", 9, 10),
        ("bytes=-1", 9, 10),
        ("bytes=-99", 0, 10),
        ("Bytes = 3-5", 3, 6),
    ],
)
def test_one_range_is_a_part(header: str, start: int, end: int) -> None:
    assert requested(header, None, TAG, 10) == ByteRange(start, end)


@pytest.mark.parametrize(
    "header",
    [None, "", "bytes", "bytes=", "bytes=-", "bytes=5-3", "bytes=a-b", "bytes=0-1,3-4", "lines=0-1", "bytes=+1-2"],
)
def test_what_is_no_single_range_is_the_whole_file(header: str | None) -> None:
    assert requested(header, None, TAG, 10) is None


@pytest.mark.parametrize(
    ("header", "size"), [("bytes=10-", 10), ("bytes=10-20", 10), ("bytes=-0", 10), ("bytes=0-", 0)]
)
def test_range_behind_the_end_can_not_be_satisfied(header: str, size: int) -> None:
    with pytest.raises(UnsatisfiableError, match=f"within the {size} bytes"):
        requested(header, None, TAG, size)


@pytest.mark.parametrize("condition", ['"v2"', 'W/"v1"', "Sat, 01 Jan 2028 00:00:00 GMT", ""])
def test_range_of_another_version_is_the_whole_file(condition: str) -> None:
    assert requested("bytes=3-", condition, TAG, 10) is None
    assert requested("bytes=30-", condition, TAG, 10) is None


def test_range_of_this_version_counts() -> None:
    assert requested("bytes=3-", TAG, TAG, 10) == ByteRange(3, 10)
