from __future__ import annotations

import gzip
import zlib

from hypothesis import given
from hypothesis import strategies as st

from agent.compression import compress, join

PARTS = st.lists(st.lists(st.binary(max_size=300), max_size=4), max_size=6)


@given(PARTS)
def test_joined_pieces_are_what_went_in(pages: list[list[bytes]]) -> None:
    whole = b"".join(part for page in pages for part in page)
    assert gzip.decompress(b"".join(join(map(compress, pages)))) == whole


@given(PARTS)
def test_joined_pieces_are_one_member_as_browsers_read_only_the_first(pages: list[list[bytes]]) -> None:
    whole = b"".join(part for page in pages for part in page)
    reader = zlib.decompressobj(31)
    assert reader.decompress(b"".join(join(map(compress, pages)))) == whole
    assert reader.eof
    assert reader.unused_data == b""


def test_a_piece_is_as_small_as_a_member() -> None:
    page = b"".join(b'ullage_layers{store="overlay2",state="%d"} %d\n' % (n, n * n) for n in range(2000))
    assert len(b"".join(join([compress([page])]))) < len(gzip.compress(page, 1)) + 16
