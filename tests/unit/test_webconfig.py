from __future__ import annotations

import base64
import os
import shutil
import ssl
import subprocess
import sys
import threading
import time
from pathlib import Path

import bcrypt
import pytest

from agent.errors import ConfigError
from agent.webconfig import Users, load
from tests.certificates import Authority

HASH = "$2y$10$mDwo.lAisC94iLAyP81MCesa29IzH37oigHC/42V2pdJlUprsJPze"  # of exporter-toolkit's sample file
COST = 4  # the least that bcrypt takes


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with authority.crt, server.crt and .key, other.key, and secret.key, which has a passphrase."""
    directory = tmp_path_factory.mktemp("certificates")
    authority = Authority(directory)
    _, key = authority.issue("server", "DNS:localhost")
    authority.issue("other")
    encrypted = ("-aes256", "-passout", "pass:secret", "-out", str(directory / "secret.key"))
    subprocess.run(["openssl", "pkey", "-in", str(key), *encrypted], check=True)
    return directory


@pytest.fixture
def directory(tmp_path: Path, certificates: Path) -> Path:
    return Path(shutil.copytree(certificates, tmp_path / "web"))


def write(directory: Path, text: str) -> str:
    file = directory / "web.yml"
    file.write_text(text)
    return str(file)


def tls(*lines: str) -> str:
    settings = ("cert_file: server.crt", "key_file: server.key", *lines)
    return "tls_server_config:\n" + "".join(f"  {line}\n" for line in settings)


def indented(path: Path) -> str:
    return "".join(f"    {line}\n" for line in path.read_text().splitlines())


def basic(credentials: bytes) -> str:
    return "Basic " + base64.b64encode(credentials).decode()


def hashed(password: bytes) -> bytes:
    return bcrypt.hashpw(password, bcrypt.gensalt(COST))


FULL = tls(
    "client_ca_file: authority.crt",
    "client_auth_type: RequireAndVerifyClientCert",
    "client_allowed_sans: [prometheus]",
    "min_version: TLS12",
    "max_version: TLS12",
    "cipher_suites:",
    "- TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256",
    "- TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384",
    "- TLS_AES_128_GCM_SHA256",
    "prefer_server_cipher_suites: false",
    "curve_preferences: [X25519]",
) + (
    f"http_server_config:\n  http2: false\n  headers: {{X-Frame-Options: deny, X-XSS-Protection: ''}}\n"
    f"basic_auth_users:\n  alice: {HASH}\n"
)


def test_everything_that_can_be_said(directory: Path) -> None:
    web = load(write(directory, FULL))
    assert web.context is not None
    assert web.context.verify_mode is ssl.CERT_REQUIRED
    assert (web.context.minimum_version, web.context.maximum_version) == (ssl.TLSVersion.TLSv1_2,) * 2
    names = [cipher["name"] for cipher in web.context.get_ciphers() if not cipher["name"].startswith("TLS_")]
    assert names == ["ECDHE-RSA-AES128-GCM-SHA256", "ECDHE-ECDSA-AES256-GCM-SHA384"]
    assert not web.context.options & ssl.OP_CIPHER_SERVER_PREFERENCE
    assert web.allowed_sans == frozenset({"prometheus"})
    assert web.headers == {"X-Frame-Options": "deny"}
    assert web.users is not None


@pytest.mark.parametrize("text", ["", "{}\n", "tls_server_config:\nbasic_auth_users:\nhttp_server_config: {}\n"])
def test_an_empty_file_switches_nothing_on(tmp_path: Path, text: str) -> None:
    web = load(write(tmp_path, text))
    assert (web.context, web.users, web.allowed_sans, web.headers) == (None, None, None, {})


def test_versions_are_1_2_and_1_3_unless_told(directory: Path) -> None:
    context = load(write(directory, tls())).context
    assert context is not None
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2
    assert context.maximum_version is ssl.TLSVersion.TLSv1_3
    assert context.options & ssl.OP_NO_RENEGOTIATION


def test_certificate_key_and_authority_may_stand_in_the_file(directory: Path) -> None:
    parts = {"cert": "server.crt", "key": "server.key", "client_ca": "authority.crt"}
    text = "tls_server_config:\n  client_auth_type: RequireAndVerifyClientCert\n"
    text += "".join(f"  {key}: |\n{indented(directory / file)}" for key, file in parts.items())
    context = load(write(directory, text)).context
    assert context is not None
    assert [dict(pair[0] for pair in each["subject"])["commonName"] for each in context.get_ca_certs()] == ["authority"]  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tls_server_configs: {}\n", "web.yml: tls_server_configs: unknown key; did you mean 'tls_server_config'?"),
        ("rate_limit: {}\n", "web.yml: rate_limit: unknown key"),
        (
            "tls_server_config: {cert_flie: x}\n",
            "web.yml: tls_server_config.cert_flie: unknown key; did you mean 'cert_file'?",
        ),
        ("tls_server_config: {min_version: TLS13}\n", "web.yml: tls_server_config: expected cert_file (or cert)"),
        ("tls_server_config: {cert_file: server.crt}\n", "web.yml: tls_server_config: expected key_file (or key)"),
        ("tls_server_config: [1]\n", "web.yml: tls_server_config: [1]: expected a mapping of keys to values"),
        (tls("cert: x"), "tls_server_config: cert and cert_file: expected only one of them"),
        (tls().replace("server.crt", "none.crt"), "/none.crt: cannot be read: No such file or directory"),
        (tls().replace("server.crt", "."), "cannot be read: Is a directory"),
        (
            tls().replace("server.crt", "web.yml"),
            "('web.yml', 'server.key'): expected a certificate and its key, both in PEM (",
        ),
        (tls().replace("server.key", "other.key"), "both in PEM (key values mismatch)"),
        (tls().replace("server.key", "secret.key"), "tls_server_config.key_file: the key is encrypted"),
        (tls("client_auth_type: RequireAnyClientCert"), "Python's ssl takes no unverified certificate"),
        (tls("client_auth_type: RequestClientCert"), "Python's ssl takes no unverified certificate"),
        (tls("client_auth_type: Always"), "client_auth_type: 'Always': expected NoClientCert or "),
        (tls("client_auth_type: RequireAndVerifyClientCert"), "expected client_ca_file (or client_ca) beside it"),
        (tls("client_ca_file: authority.crt"), "expected RequireAndVerifyClientCert beside a client CA"),
        (
            tls("client_auth_type: RequireAndVerifyClientCert", "client_ca_file: web.yml"),
            "client_ca_file: 'web.yml': expected certificates in PEM (",
        ),
        (tls("client_allowed_sans: []"), "expected at least one name"),
        (tls("client_allowed_sans: [a]"), "expected client_auth_type: RequireAndVerifyClientCert beside it"),
        (tls("client_allowed_sans: a"), "client_allowed_sans: 'a': expected a list, got a text"),
        (tls("min_version: TLS11"), "min_version: 'TLS11': expected TLS12 or TLS13"),
        (tls("max_version: TLS14"), "max_version: 'TLS14': expected TLS12 or TLS13"),
        (
            tls("min_version: TLS13", "max_version: TLS12"),
            "min_version: 'TLS13': expected no more than max_version, TLS12",
        ),
        (tls("min_version: 1.2"), "min_version: 1.2: expected a text, got a number"),
        (tls("cipher_suites: [TLS_NONE]"), "cipher_suites: 'TLS_NONE': expected any of TLS_ECDHE_"),
        (tls("cipher_suites: [TLS_AES_128_GCM_SHA256]"), "for these alone say `min_version: TLS13`"),
        (tls("curve_preferences: [X448]"), "curve_preferences: 'X448': expected any of CurveP256, "),
        (tls("curve_preferences: [X25519, CurveP256]"), "expected one curve: Python's ssl cannot hold a list"),
        ("http_server_config: {http2: true}\n", "http_server_config.http2: True: expected false: HTTP/2 is not served"),
        ("http_server_config: {headers: {X-Frame-Option: deny}}\n", "did you mean 'X-Frame-Options'?"),
        ("http_server_config: {headers: {X-Frame-Options: all}}\n", "'all': expected deny or sameorigin"),
        ('http_server_config: {headers: {X-XSS-Protection: "0\\r\\nX: y"}}\n', "expected a text in one line of ASCII"),
        (f"basic_auth_users: {{'a:b': '{HASH}'}}\n", "expected a name without a colon"),
        ("basic_auth_users: {alice: null}\n", "basic_auth_users.alice: (not shown): expected a bcrypt hash"),
        ("basic_auth_users: {alice: $2y$10$short}\n", "basic_auth_users.alice: (not shown): expected a bcrypt hash"),
        (f"basic_auth_users:\n  alice: {HASH}\n  alice: {HASH}\n", "key 'alice' twice, again in line 3"),
    ],
)
def test_what_is_wrong_is_named(directory: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        load(write(directory, text))
    assert message in str(error.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yml: cannot be read: No such file"):
        load(str(tmp_path / "none.yml"))


@pytest.mark.parametrize(
    "text",
    [
        "basic_auth_users: {alice: hunter2}\n",
        "basic_auth_users: {alice: [hunter2]}\n",
        "tls_server_config: {cert: x, key: hunter2}\n",
        "tls_server_config: {cert: x, key: [hunter2]}\n",
        "tls_server_config: {cert: x, key: hunter2, key_file: y}\n",
    ],
)
def test_secrets_are_in_no_message(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError) as error:
        load(write(tmp_path, text))
    assert "hunter2" not in str(error.value)


def test_what_is_accepted_is_valid_for_prometheus_too(directory: Path) -> None:
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not installed")
    for text in (FULL, tls(), f"basic_auth_users:\n  alice: {HASH}\n", "{}\n"):
        file = write(directory, text.replace("  client_allowed_sans: [prometheus]\n", ""))
        load(file)  # Debian's promtool 2.42 does not know client_allowed_sans yet
        checked = subprocess.run(["promtool", "check", "web-config", file], capture_output=True, text=True, check=False)
        assert checked.returncode == 0, checked.stderr


# -- changes of files --


@pytest.mark.parametrize("name", ["web.yml", "server.crt", "server.key", "authority.crt"])
def test_a_changed_file_is_seen_once(directory: Path, name: str) -> None:
    web = load(write(directory, FULL))
    assert not web.changed()
    os.utime(directory / name, ns=(1, 1))
    assert web.changed()
    assert not web.changed()


def test_a_file_that_vanishes_and_returns_is_a_change_each_time(directory: Path) -> None:
    web = load(write(directory, tls()))
    (directory / "server.crt").rename(directory / "aside.crt")
    assert web.changed()
    (directory / "aside.crt").rename(directory / "server.crt")
    assert web.changed()


def test_a_link_that_is_turned_is_a_change_as_kubernetes_renews_secrets(directory: Path) -> None:
    for number in (1, 2):
        shutil.copytree(directory, directory.parent / f"data-{number}")
    link = directory.parent / "data"
    link.symlink_to("data-1")
    web = load(write(directory, tls().replace("file: ", f"file: {link}/")))
    turned = directory.parent / "turned"
    turned.symlink_to("data-2")
    turned.rename(link)
    assert web.changed()


# -- users --


@pytest.mark.parametrize("prefix", [b"$2a$", b"$2b$", b"$2y$"])
def test_hashes_of_all_tools_are_understood(prefix: bytes) -> None:
    users = Users({b"alice": prefix + hashed(b"sesame")[4:]})
    assert users.admit(basic(b"alice:sesame"), 1)
    assert not users.admit(basic(b"alice:Sesame"), 1)


def test_a_password_is_read_as_far_as_the_tools_that_hash_it_do() -> None:
    users = Users({b"alice": hashed(b"x" * 72)})
    assert users.admit(basic(b"alice:" + b"x" * 80), 1)


@pytest.mark.parametrize(
    "authorization",
    ["", "Basic", "Basic ", "Basic !!!", "Bearer x", "Basic YWxpY2U=", basic(b"alice:a\0b"), "Basic \xff"],
)
def test_malformed_credentials_are_nobodys(authorization: str) -> None:
    assert not Users({b"alice": hashed(b"sesame")}).admit(authorization, 1)


def test_a_password_is_hashed_once_and_remembered() -> None:
    users = Users({b"alice": hashed(b"sesame")})
    assert users.admit(basic(b"alice:sesame"), 1)
    with users._turn:  # nobody else may hash now
        assert users.admit(basic(b"alice:sesame"), 0.01)
        with pytest.raises(TimeoutError):
            users.admit(basic(b"alice:other"), 0.01)


def test_an_unknown_user_costs_what_the_dearest_known_one_does() -> None:
    users = Users({b"alice": hashed(b"sesame"), b"bob": HASH.encode()})
    assert users._nobody.startswith(b"$2b$10$")
    assert not users.admit(basic(b"eve:sesame"), 1)


def test_who_guesses_has_a_small_share_of_the_processor() -> None:
    pauses: list[float] = []
    users = Users({b"alice": hashed(b"sesame")}, pauses.append)
    began = time.thread_time()
    assert not any(users.admit(basic(b"alice:%d" % number), 1) for number in range(20))
    spent = time.thread_time() - began
    assert len(pauses) == 20
    assert 0 < sum(pauses) < 4 * spent
    users.admit(basic(b"alice:sesame"), 1)
    assert not users.admit(basic(b"eve:sesame"), 1)
    assert len(pauses) == 21


def test_what_is_remembered_is_bounded() -> None:
    users = Users({b"%d" % number: hashed(b"x") for number in range(70)})
    for number in range(70):
        assert users.admit(basic(b"%d:x" % number), 1)
    assert len(users._proven) == 64


def test_checks_that_wait_are_bounded_and_their_places_given_back() -> None:
    users = Users({b"alice": hashed(b"sesame")})
    refused = []

    def guess(number: int) -> None:
        try:
            users.admit(basic(b"alice:%d" % number), 10)
        except TimeoutError:
            refused.append(number)

    with users._turn:
        threads = [threading.Thread(target=guess, args=(number,)) for number in range(20)]
        for thread in threads:
            thread.start()
        end = time.monotonic() + 120
        while len(refused) < 4 and time.monotonic() < end:
            time.sleep(0.01)
        assert len(refused) == 4
    for thread in threads:
        thread.join()
    assert users.admit(basic(b"alice:sesame"), 1)


def test_bcrypt_is_imported_only_for_users(tmp_path: Path) -> None:
    program = "import sys; from agent.webconfig import load; load(sys.argv[1]); print('bcrypt' in sys.modules)"
    for text, expected in (("{}\n", "False"), (f"basic_auth_users: {{alice: '{HASH}'}}\n", "True")):
        command = [sys.executable, "-c", program, write(tmp_path, text)]
        assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == expected
