"""The web configuration: TLS, users and extra headers, with the keys of Prometheus' exporter-toolkit.

Source: https://github.com/prometheus/exporter-toolkit/blob/master/docs/web-configuration.md (version 0.14).
What Python's `ssl` cannot do as Go does is refused, never ignored. Relative paths are relative to the file.
"""

from __future__ import annotations

import base64
import contextlib
import hmac
import ipaddress
import os
import re
import secrets
import ssl
import threading
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from agent.errors import ConfigError
from agent.yamlfile import At, read

_VERSIONS = {"TLS12": ssl.TLSVersion.TLSv1_2, "TLS13": ssl.TLSVersion.TLSv1_3}
_UNVERIFIED = ("RequestClientCert", "RequireAnyClientCert", "RequireClientCert")
_CLIENT_AUTH = {
    "NoClientCert": ssl.CERT_NONE,
    "VerifyClientCertIfGiven": ssl.CERT_OPTIONAL,
    "RequireAndVerifyClientCert": ssl.CERT_REQUIRED,
}
_CURVES = {"CurveP256": "prime256v1", "CurveP384": "secp384r1", "CurveP521": "secp521r1", "X25519": "X25519"}
# crypto/tls' names of Go, and OpenSSL's (openssl-ciphers(1)); those of TLS 1.3 cannot be chosen, in Go neither
_CIPHERS = {
    "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256": "ECDHE-ECDSA-AES128-GCM-SHA256",
    "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384": "ECDHE-ECDSA-AES256-GCM-SHA384",
    "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256": "ECDHE-ECDSA-CHACHA20-POLY1305",
    "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA": "ECDHE-ECDSA-AES128-SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA": "ECDHE-ECDSA-AES256-SHA",
    "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256": "ECDHE-RSA-AES128-GCM-SHA256",
    "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384": "ECDHE-RSA-AES256-GCM-SHA384",
    "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256": "ECDHE-RSA-CHACHA20-POLY1305",
    "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA": "ECDHE-RSA-AES128-SHA",
    "TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA": "ECDHE-RSA-AES256-SHA",
    "TLS_RSA_WITH_AES_128_GCM_SHA256": "AES128-GCM-SHA256",
    "TLS_RSA_WITH_AES_256_GCM_SHA384": "AES256-GCM-SHA384",
    "TLS_RSA_WITH_AES_128_CBC_SHA": "AES128-SHA",
    "TLS_RSA_WITH_AES_256_CBC_SHA": "AES256-SHA",
}
_CIPHERS_TLS13 = ("TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256")
_HEADERS: Mapping[str, tuple[str, ...]] = {
    "Content-Security-Policy": (),
    "Strict-Transport-Security": (),
    "X-Content-Type-Options": ("nosniff",),
    "X-Frame-Options": ("deny", "sameorigin"),
    "X-XSS-Protection": (),
}
_HEADER_VALUE = re.compile(r"[\t\x20-\x7e]*")
_BCRYPT = re.compile(rb"\$2[aby]\$(?P<cost>0[4-9]|[12]\d|3[01])\$[./A-Za-z0-9]{53}")
_BCRYPT_READS = 72  # bytes of a password; htpasswd and Go drop the rest, so a hash knows nothing of it
_KEPT = 64  # proven passwords
_REST = 4  # times as long as a check took it is rested after a wrong password
_QUEUE = 16  # password checks that may wait: twice what one peer's connections can ask for
_SANS = ("DNS", "IP Address", "URI", "email")

Signature = tuple[int, int, int, int] | None


class TLSSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`tls_server_config`. `cert`, `key` and `client_ca` are PEM in the file itself."""

    cert: str = ""
    key: Any = ""  # of any type here, so that no message about its type shows it
    client_ca: str = ""
    cert_file: str = ""
    key_file: str = ""
    client_ca_file: str = ""
    client_auth_type: str = "NoClientCert"
    client_allowed_sans: tuple[str, ...] | None = None
    min_version: str = "TLS12"
    max_version: str = "TLS13"
    cipher_suites: tuple[str, ...] = ()
    prefer_server_cipher_suites: bool = True
    curve_preferences: tuple[str, ...] = ()


class HTTPSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`http_server_config`."""

    http2: bool = False
    headers: Any = None


class _Hidden:
    """Stands for a secret in messages."""

    def __repr__(self) -> str:
        return "(not shown)"


class Users:
    """Who may read, by bcrypt hashes. A hash takes tens of milliseconds: one is checked at a time, proofs are kept.

    After a wrong password none is checked for a while: who guesses gets a fifth of one processor.
    """

    def __init__(self, hashes: Mapping[bytes, bytes], pause: Callable[[float], object] = time.sleep) -> None:
        import bcrypt  # noqa: PLC0415  a megabyte that only those pay who have users

        self._check = bcrypt.checkpw
        self._pause = pause
        self._hashes = dict(hashes)
        # an unknown user costs as much time as a known one, and no password has this hash
        cost = max(int(_cost(stored)) for stored in hashes.values())
        self._nobody = b"$2b$%02d$" % cost + b"." * 53
        self._secret = secrets.token_bytes(32)
        self._proven: dict[bytes, None] = {}
        self._turn = threading.Lock()
        self._queue = threading.BoundedSemaphore(_QUEUE)

    def admit(self, authorization: str, within: float) -> bool:
        """Return whether a request's Authorization header names a user and the user's password.

        Raises TimeoutError when too many others are being checked.
        """
        credentials = _credentials(authorization)
        if credentials is None:
            return False
        user, password = credentials
        stored = self._hashes.get(user, self._nobody)
        proof = hmac.digest(self._secret, stored + password, "sha256")
        if proof in self._proven:
            return True
        with contextlib.ExitStack() as stack:
            if not self._queue.acquire(blocking=False):
                raise TimeoutError
            stack.callback(self._queue.release)
            if not self._turn.acquire(timeout=within):
                raise TimeoutError
            stack.callback(self._turn.release)
            if proof in self._proven:
                return True
            began = time.thread_time()
            if not self._check(password[:_BCRYPT_READS], stored):
                self._pause(_REST * (time.thread_time() - began))
                return False
            if len(self._proven) >= _KEPT:
                del self._proven[next(iter(self._proven))]
            self._proven[proof] = None
            return True


@dataclass(slots=True)
class WebConfig:
    """What the file says, ready for use. A new object is loaded when the file, a certificate or a key has changed."""

    path: str
    context: ssl.SSLContext | None = None
    allowed_sans: frozenset[str] | None = None
    users: Users | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    signatures: dict[str, Signature] = field(default_factory=dict)

    def changed(self) -> bool:
        """Return whether a file is another than it was at the load, or at the last call. It looks at the disk."""
        before = self.signatures
        self.signatures = {path: _signature(path) for path in before}
        return self.signatures != before

    def admits(self, certificate: Mapping[str, Any] | None) -> bool:
        """Return whether a client with this verified certificate may speak, see `client_allowed_sans`."""
        if self.allowed_sans is None:
            return True
        names = (certificate or {}).get("subjectAltName", ())
        return any(kind in _SANS and _san(name) in self.allowed_sans for kind, name in names)


def load(path: str) -> WebConfig:
    """Return the web configuration of a file; raises ConfigError."""
    signatures = {path: _signature(path)}
    at = At(path)
    sections = at.mapping(read(path))
    at.known(sections, ("tls_server_config", "http_server_config", "basic_auth_users"))
    web = WebConfig(path, signatures=signatures)
    web.headers = _headers(at.below("http_server_config"), sections.get("http_server_config"))
    web.users = _users(at.below("basic_auth_users"), sections.get("basic_auth_users"))
    at = at.below("tls_server_config")
    if data := at.mapping(sections.get("tls_server_config")):
        section = at.convert(data, TLSSection)
        files = (section.cert_file, section.key_file, section.client_ca_file)
        signatures |= {name: _signature(name) for name in (_beside(path, file) for file in files if file)}
        web.context = _context(at, section)
        web.allowed_sans = _allowed_sans(at.below("client_allowed_sans"), section)
    return web


def _headers(at: At, data: Any) -> Mapping[str, str]:
    section = at.convert(at.mapping(data), HTTPSection)
    if section.http2:
        raise at.below("http2").error(section.http2, "false: HTTP/2 is not served")
    at = at.below("headers")
    headers = at.mapping(section.headers)
    at.known(headers, _HEADERS)
    for name, value in headers.items():
        if not isinstance(value, str) or not _HEADER_VALUE.fullmatch(value):
            raise at.below(name).error(value, "a text in one line of ASCII")
        if value and _HEADERS[name] and value not in _HEADERS[name]:
            raise at.below(name).error(value, " or ".join(_HEADERS[name]))
    return {name: value for name, value in headers.items() if value}


def _users(at: At, data: Any) -> Users | None:
    hashes = {}
    for user, stored in at.mapping(data).items():
        if ":" in user:
            raise at.below(user).error(user, "a name without a colon, which ends it in HTTP")
        hashed = stored.encode() if isinstance(stored, str) else b""
        if not _BCRYPT.fullmatch(hashed):
            raise at.below(user).error(_Hidden(), "a bcrypt hash, as `htpasswd -nBC 10 NAME` prints it")
        hashes[user.encode()] = hashed
    return Users(hashes) if hashes else None


def _context(at: At, section: TLSSection) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(["http/1.1"])
    _set_versions(at, section, context)
    _set_algorithms(at, section, context)
    _load_own(at, section, context)
    _load_clients(at, section, context)
    return context


def _set_versions(at: At, section: TLSSection, context: ssl.SSLContext) -> None:
    for key, value in (("min_version", section.min_version), ("max_version", section.max_version)):
        if value not in _VERSIONS:
            raise at.below(key).error(value, "TLS12 or TLS13; older versions are broken and not served")
    if section.min_version > section.max_version:
        raise at.below("min_version").error(section.min_version, f"no more than max_version, {section.max_version}")
    context.minimum_version = _VERSIONS[section.min_version]
    context.maximum_version = _VERSIONS[section.max_version]


def _set_algorithms(at: At, section: TLSSection, context: ssl.SSLContext) -> None:
    if section.cipher_suites:
        below = at.below("cipher_suites")
        _refuse_others(below, section.cipher_suites, (*_CIPHERS, *_CIPHERS_TLS13))
        chosen = [_CIPHERS[name] for name in section.cipher_suites if name in _CIPHERS]
        if not chosen:
            wanted = "a suite of TLS 1.2: those of 1.3 are always on; for these alone say `min_version: TLS13`"
            raise below.error(list(section.cipher_suites), wanted)
        context.set_ciphers(":".join(chosen))
    if not section.prefer_server_cipher_suites:
        context.options &= ~ssl.OP_CIPHER_SERVER_PREFERENCE
    if section.curve_preferences:
        below = at.below("curve_preferences")
        _refuse_others(below, section.curve_preferences, _CURVES)
        if len(section.curve_preferences) > 1:
            raise below.error(list(section.curve_preferences), "one curve: Python's ssl cannot hold a list of them")
        context.set_ecdh_curve(_CURVES[section.curve_preferences[0]])


def _refuse_others(at: At, names: Collection[str], allowed: Collection[str]) -> None:
    for name in names:
        if name not in allowed:
            raise at.error(name, f"any of {', '.join(allowed)}")


def _load_own(at: At, section: TLSSection, context: ssl.SSLContext) -> None:
    """Load the server's certificate and key."""

    def refuse() -> str:
        raise ConfigError(f"{at.place('key_file')}: the key is encrypted: expected one without a passphrase")

    with contextlib.ExitStack() as stack:
        certificate = _pem(at, "cert", section.cert, section.cert_file, stack)
        key = _pem(at, "key", section.key, section.key_file, stack)
        for name, path in (("cert", certificate), ("key", key)):
            if path is None:
                raise ConfigError(f"{at.place()}: expected {name}_file (or {name})")
        try:
            context.load_cert_chain(certificate or "", key, password=refuse)
        except (ssl.SSLError, ValueError) as error:
            files = section.cert_file or _Hidden(), section.key_file or _Hidden()
            raise at.error(files, f"a certificate and its key, both in PEM ({_reason(error)})") from error


def _load_clients(at: At, section: TLSSection, context: ssl.SSLContext) -> None:
    """Load what client certificates are verified with."""
    kind, below = section.client_auth_type or "NoClientCert", at.below("client_auth_type")
    if kind in _UNVERIFIED:
        wanted = "VerifyClientCertIfGiven or RequireAndVerifyClientCert: Python's ssl takes no unverified certificate"
        raise below.error(kind, wanted)
    if kind not in _CLIENT_AUTH:
        raise below.error(kind, " or ".join(_CLIENT_AUTH))
    with contextlib.ExitStack() as stack:
        authorities = _pem(at, "client_ca", section.client_ca, section.client_ca_file, stack)
        if kind == "NoClientCert":
            if authorities is not None:
                raise below.error(kind, "RequireAndVerifyClientCert beside a client CA, which would do nothing")
            return
        if authorities is None:
            raise below.error(kind, "client_ca_file (or client_ca) beside it, to verify certificates with")
        try:
            context.load_verify_locations(authorities)
        except ssl.SSLError as error:
            given = section.client_ca_file or _Hidden()
            raise at.below("client_ca_file").error(given, f"certificates in PEM ({_reason(error)})") from error
    context.verify_mode = _CLIENT_AUTH[kind]


def _allowed_sans(at: At, section: TLSSection) -> frozenset[str] | None:
    if section.client_allowed_sans is None:
        return None
    if not section.client_allowed_sans:
        raise at.error([], "at least one name: an empty list would let nobody in")
    if section.client_auth_type != "RequireAndVerifyClientCert":
        raise at.error(list(section.client_allowed_sans), "client_auth_type: RequireAndVerifyClientCert beside it")
    return frozenset(_san(name) for name in section.client_allowed_sans)


def _pem(at: At, key: str, text: object, file: str, stack: contextlib.ExitStack) -> str | None:
    """Return a path that OpenSSL can read while `stack` is open, None when neither text nor file is given."""
    if text and file:
        raise ConfigError(f"{at.place()}: {key} and {key}_file: expected only one of them")
    if text:
        if not isinstance(text, str):
            raise at.below(key).error(_Hidden(), "a text in PEM")
        descriptor = os.memfd_create(key)  # load_cert_chain takes only files
        stack.callback(os.close, descriptor)
        os.write(descriptor, text.encode())
        return f"/proc/self/fd/{descriptor}"
    if not file:
        return None
    path = _beside(at.file, file)
    try:
        with open(path, "rb") as stream:
            stream.read(1)
    except OSError as error:
        raise ConfigError(f"{at.place(key + '_file')}: {path}: cannot be read: {error.strerror}") from error
    return path


def _beside(path: str, file: str) -> str:
    return os.path.join(os.path.dirname(path), file)


def _reason(error: ssl.SSLError | ValueError) -> str:
    """Return OpenSSL's reason in lower case: `key values mismatch`."""
    reason = getattr(error, "reason", None) or str(error)
    return str(reason).lower().replace("_", " ")


def _signature(path: str) -> Signature:
    """Return what changes when a file is replaced or rewritten; None when it cannot be seen."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _san(name: str) -> str:
    """Return a name with IP addresses in one spelling, as OpenSSL does not shorten IPv6."""
    try:
        return str(ipaddress.ip_address(name.strip()))
    except ValueError:
        return name


def _cost(stored: bytes) -> bytes:
    match = _BCRYPT.fullmatch(stored)
    assert match is not None
    return match["cost"]


def _credentials(authorization: str) -> tuple[bytes, bytes] | None:
    """Return user and password of `Basic YWxpY2U6c2VzYW1l`, None of anything else."""
    scheme, _, encoded = authorization.partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        user, colon, password = base64.b64decode(encoded.strip(), validate=True).partition(b":")
    except ValueError:
        return None
    return (user, password) if colon else None
