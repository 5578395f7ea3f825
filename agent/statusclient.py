"""The status of a running agent, read over HTTP or HTTPS from its `/api/v1/status`.

The other side may be anybody: its answer is bounded in bytes and in time, and only what is a status is taken.
"""

from __future__ import annotations

import base64
import netrc
import ssl
import urllib.error
import urllib.request
from http.client import HTTPException, HTTPResponse
from typing import NamedTuple
from urllib.parse import SplitResult, unquote, urlsplit

import msgspec

from agent.errors import ConfigError, UllageError
from agent.patience import within
from agent.status import Status

PATH = "/api/v1/status"
LIMIT = 64 << 20  # bytes: ten thousands of watermarks' targets have less
WITHIN = 30.0  # seconds for all of it
SILENCE = 10.0  # seconds without a byte
_CHUNK = 1 << 16


class Trust(NamedTuple):
    """Files in PEM: whom to trust instead of the system's authorities; our own certificate, and its key."""

    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A password is for the server that was named."""

    def redirect_request(self, *_arguments: object) -> None:
        return None


def fetch(url: str, trust: Trust | None = None, seconds: float = WITHIN) -> Status:
    """Return the status of the agent at `http[s]://[USER:PASSWORD@]HOST[:PORT][/PREFIX]`.

    A user that the URL does not name is looked for in ~/.netrc. Raises ConfigError for what was given, UllageError, in
    words and without the password, for what came of it.
    """
    parts = _split(url)
    shown = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/')}"
    request = urllib.request.Request(  # noqa: S310  http and https alone, see _split
        shown + PATH, headers={"Accept": "application/json", **_authorization(parts)}
    )
    handlers: list[urllib.request.BaseHandler] = [_NoRedirects()]
    if parts.scheme == "https":
        handlers.append(urllib.request.HTTPSHandler(context=_context(trust or Trust())))
    opener = urllib.request.build_opener(*handlers)
    body = within(seconds, lambda: _read(opener, request, shown), shown)
    try:
        return msgspec.json.decode(body, type=Status)
    except (msgspec.MsgspecError, RecursionError, ValueError) as error:
        raise UllageError(f"{shown}: answers, but not as an Ullage agent of this version: {error}"[:500]) from error


def _split(url: str) -> SplitResult:
    expected = "expected http[s]://[USER:PASSWORD@]HOST[:PORT]"
    try:
        parts = urlsplit(url)
        is_good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError as error:
        raise ConfigError(f"--from: {error}: {expected}") from error
    if not is_good or parts.query or parts.fragment or not url.isprintable() or " " in url:
        raise ConfigError(f"--from: {expected}")
    return parts


def _authorization(parts: SplitResult) -> dict[str, str]:
    user, password = unquote(parts.username or ""), unquote(parts.password or "")
    if not user:
        try:
            known = netrc.netrc().authenticators(parts.hostname or "")
        except FileNotFoundError:
            known = None
        except (OSError, netrc.NetrcParseError) as error:
            raise ConfigError(f"~/.netrc: cannot be used: {error}") from error
        if known is None:
            return {}
        user, _, password = known[0], known[1], known[2] or ""
    return {"Authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}


def _context(trust: Trust) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=trust.ca_file)
        if trust.cert_file:
            context.load_cert_chain(trust.cert_file, trust.key_file)
    except (OSError, ssl.SSLError) as error:
        files = ", ".join(filter(None, trust))
        raise ConfigError(f"{files}: cannot be used: {error.strerror or error}") from error
    return context


def _read(opener: urllib.request.OpenerDirector, request: urllib.request.Request, shown: str) -> bytes:
    try:
        with opener.open(request, timeout=SILENCE) as answer:
            return _body(answer, shown)
    except urllib.error.HTTPError as error:
        error.close()
        raise UllageError(f"{shown}: {_refusal(error.code)}") from error
    except (OSError, HTTPException, ValueError) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        raise UllageError(f"{shown}: {_failure(reason)}"[:500]) from error


def _body(answer: HTTPResponse, shown: str) -> bytes:
    body = bytearray()
    while part := answer.read(_CHUNK):
        body += part
        if len(body) > LIMIT:
            raise UllageError(f"{shown}: its answer is larger than {LIMIT >> 20} MiB")
    return bytes(body)


def _refusal(code: int) -> str:
    if code == 401:  # noqa: PLR2004  Unauthorized
        return "wants a user and a password: https://USER:PASSWORD@HOST, or in ~/.netrc"
    if code == 404:  # noqa: PLR2004  Not Found
        return f"has no {PATH}: it is no Ullage agent, or has a prefix before it"
    return f"answered {code} instead of its status"


def _failure(reason: object) -> str:
    if isinstance(reason, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {reason.verify_message} (--from.ca-file says whom to trust)"
    if isinstance(reason, TimeoutError):
        return f"no answer within {SILENCE:g} seconds"
    if isinstance(reason, OSError) and reason.strerror:
        return f"cannot be reached: {reason.strerror}"
    return f"cannot be read: {reason}"
