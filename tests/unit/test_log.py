"""The log: one line for each event, whatever names are in it, and nothing that moves a cursor."""

from __future__ import annotations

import io
import json
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from agent import log

HOSTILE = (
    "a\nlevel=error event=forged",
    "a\r\nlevel=error",
    '" level=error event="forged',
    "\\",
    '\\" level=error x="',
    "\x1b[2J\x1b]0;title\x07",
    "\u202egnp.exe",
    "\u2028next\x85next\x0bnext",
    "\udcff\ud800",
    "\0",
    "",
)


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    before = structlog.get_config()
    yield
    structlog.configure(**before)


def written(form: log.Format, tell: Callable[[structlog.typing.FilteringBoundLogger], None]) -> str:
    stream = io.StringIO()
    log.configure("debug", form, stream)
    tell(structlog.get_logger())
    return stream.getvalue()


def check(name: str) -> None:
    for form in log.FORMATS:
        text = written(form, lambda logger: logger.warning("target refused", path=name, size=5))
        assert text.endswith("\n")
        (line,) = text.splitlines()  # at all that Python, and so some viewers, take for the end of one
        assert line.isprintable()
        if form == "json":
            fields = json.loads(line)
            del fields["timestamp"], fields["path"]
            assert fields == {"event": "target refused", "level": "warning", "size": 5}
        else:
            lexer = shlex.shlex(line.partition(" ")[2], posix=True, punctuation_chars=False)
            lexer.whitespace, lexer.whitespace_split, lexer.commenters, lexer.quotes = " ", True, "", '"'
            if 'path="' in line:  # quoted: backslashes mean something then only
                assert [each.partition("=")[0] for each in lexer] == ["level", "event", "path", "size"]
            else:
                assert re.fullmatch(r'.*level=warning event="target refused" path=[^ =]* size=5', line)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_forges_no_line_and_no_field(name: str) -> None:
    check(name)


@given(st.text(st.characters() | st.sampled_from(' ="\\\n\x1b'), max_size=20))
def test_no_text_forges_a_line_or_a_field(name: str) -> None:
    check(name)


@pytest.mark.parametrize("form", log.FORMATS)
def test_what_is_no_text_is_shown_as_one(form: log.Format) -> None:
    line = written(
        form, lambda logger: logger.info("told", path=Path("/a\x1b[2J"), error=OSError("\u202e"), size=5, at=None)
    )
    assert line.strip().isprintable()
    assert ("size=5" if form == "logfmt" else '"size": 5') in line


def test_an_exception_is_one_line_too() -> None:
    def fail(logger: structlog.typing.FilteringBoundLogger) -> None:
        try:
            int("\x1b[2J\nlevel=error")
        except ValueError:
            logger.exception("request failed")

    (line,) = written("logfmt", fail).splitlines()
    assert line.isprintable()
    assert "request failed" in line
