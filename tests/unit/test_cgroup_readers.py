from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from collectors.readers import slabinfo
from collectors.readers.cgroup import KEYS_V1, KEYS_V2, parse_limit, parse_numbers, parse_pressure, stat_parser

V2 = stat_parser(KEYS_V2)
ALL = b"".join(key + b" %d\n" % number for number, key in enumerate(KEYS_V2))


def test_a_row_is_in_the_order_of_the_keys_wherever_they_stand() -> None:
    assert V2(ALL) == tuple(range(9))
    assert V2(b"\n".join(reversed(ALL.splitlines())) + b"\n") == tuple(range(9))
    assert V2(b"anon 5\nfile_thp 7\nnew_file 3\n" + ALL) == tuple(range(9))


@given(st.lists(st.permutations(ALL.splitlines()), min_size=1, max_size=4), st.booleans())
def test_what_a_parser_has_seen_before_changes_nothing(files: list[list[bytes]], has_more: bool) -> None:  # noqa: FBT001
    used = stat_parser(KEYS_V2)
    for lines in files:
        text = b"\n".join([b"anon 7", *lines, b"zswap 9"] if has_more else lines) + b"\n"
        assert used(text) == tuple(range(9))
        assert used(text.replace(b"shmem 1", b"shmem 123456")) == (0, 123456, *range(2, 9))


def test_an_absent_key_is_unknown_and_an_old_one_is_known_by_its_old_name() -> None:
    text = b"file 4096\nshmem 0\nworkingset_refault 3\n"
    assert V2(text) == (4096, 0, None, None, None, None, None, 3, None)
    assert stat_parser(KEYS_V1)(b"cache 1\ntotal_cache 2\ntotal_workingset_refault 4\n") == (
        *(2, None, None, None, None, None, None, 4),
    )
    assert V2(b"") == (None,) * 9


@given(st.binary(max_size=200))
def test_no_text_breaks_a_parser(text: bytes) -> None:
    assert len(V2(text)) == 9
    assert len(V2(ALL + text)) == 9
    parse_pressure(text)
    parse_numbers(text)
    slabinfo.parse(text, 4096)


@pytest.mark.parametrize(
    ("text", "limit"),
    [(b"max\n", None), (b"67108864\n", 67108864), (b"9223372036854771712\n", None), (b"0\n", 0)],
)
def test_limits(text: bytes, limit: int | None) -> None:
    assert parse_limit(text) == limit


def test_what_is_no_limit_is_refused() -> None:
    with pytest.raises(ValueError, match="lots"):
        parse_limit(b"lots\n")


@pytest.mark.parametrize("digits", [181, 400, 5000])
def test_a_number_that_no_kernel_counts_to_is_unknown(digits: int) -> None:
    number = b"9" * digits
    used = stat_parser(KEYS_V2)
    assert used(ALL) == tuple(range(9))
    assert used(ALL.replace(b"file 0\n", b"file " + number + b"\n")) == (None, *range(1, 9))
    assert parse_pressure(b"some total=" + number + b"\nfull total=7\n") == {"full": 7}
    assert parse_numbers(b"nr " + number + b"\nnr_dirty 5\n") == {"nr_dirty": 5}
    with pytest.raises(ValueError, match="99"):
        parse_limit(number)
    line = b"#\n#\n%s 1 1 192 21 %s : tunables 0 0 0 : slabdata 1 %s 0\n"
    assert slabinfo.parse(line % (b"dentry", b"1", number) + line % (b"inode", number, b"1"), 4096) == {}


@pytest.mark.parametrize("number", [b"-5", b"+5", b"1_0"])
def test_a_number_that_no_kernel_writes_is_unknown_also_where_it_is_looked_for_first(number: bytes) -> None:
    used = stat_parser(KEYS_V2)
    assert used(ALL) == tuple(range(9))
    assert used(ALL.replace(b"file 0\n", b"file " + number + b"\n")) == (None, *range(1, 9))
    with pytest.raises(ValueError, match="expected"):
        parse_limit(number)


def test_pressure_is_in_microseconds() -> None:
    text = b"some avg10=5.25 avg60=1.42 avg300=1.16 total=10245839\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=7\n"
    assert parse_pressure(text) == {"some": 10245839, "full": 7}
    assert parse_pressure(b"some avg10=0.00 avg60=0.00 avg300=0.00 new=1 total=9 more=2\n") == {"some": 9}


def test_numbers_are_taken_and_the_rest_is_passed() -> None:
    assert parse_numbers(b"nr_dirty 5\nbroken\nname x\nnr 7\n") == {"nr_dirty": 5, "nr": 7}


def test_slab_bytes_are_pages_of_all_slabs() -> None:
    text = (
        b"slabinfo - version: 2.1\n# name <active_objs>\n"
        b"dentry 1200066 1200066 192 21 1 : tunables 0 0 0 : slabdata 57146 57146 0\n"
        b"ext4_inode_cache 1020208 1020208 1128 14 4 : tunables 0 0 0 : slabdata 72872 72872 0\nbroken 1\n"
    )
    assert slabinfo.parse(text, 4096) == {"dentry": 57146 * 4096, "ext4_inode_cache": 72872 * 4 * 4096}
