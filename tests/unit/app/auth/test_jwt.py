"""JSON Web Tokens: whose they are, what they allow, and which are refused."""

import contextlib
import hashlib
import hmac
import itertools
import json
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import gevent
import gevent.lock
import jwt
import msgspec
import pytest
import redis
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from app.auth import jwt as tokens
from app.auth.authenticator import Authenticator
from app.auth.claims import Claims, InvalidToken, is_token
from app.auth.jwt import TokenReader
from shared import api_keys
from shared.api_keys import Scope
from shared.errors import SettingsError, Unauthorized
from shared.limits import Limits
from shared.registry.directory import Directory
from shared.settings.fields import Settings

_EC, _STRANGER = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
_RSA = rsa.generate_private_key(65537, 2048)


def _public(key: Any, algorithm: str, key_id: str) -> dict[str, Any]:
    maker = jwt.algorithms.get_default_algorithms()[algorithm]
    public = maker.to_jwk(key.public_key(), as_dict=True)
    return {**public, "kid": key_id, "alg": algorithm, "use": "sig"}


@pytest.fixture
def reader(tmp_path: Path) -> TokenReader:
    keys = {"keys": [_public(_EC, "ES256", "ec"), _public(_RSA, "RS256", "rsa")]}
    (tmp_path / "jwks.json").write_text(json.dumps(keys))
    return TokenReader(_settings(tmp_path))


def _settings(folder: Path) -> Settings:
    return Settings(
        base_dir=str(folder),
        auth=True,
        jwt_jwks="jwks.json",
        jwt_issuer="https://issuer.test",
        jwt_audience="llmis",
    )


def _token(key: Any = _EC, algorithm: str = "ES256", key_id: str = "ec", **claims: Any) -> str:
    body = {
        "iss": "https://issuer.test",
        "aud": "llmis",
        "sub": "alice",
        "exp": int(time.time()) + 300,
        **claims,
    }
    body = {name: value for name, value in body.items() if value is not None}
    return jwt.encode(body, key, algorithm=algorithm, headers={"kid": key_id})


def _read(reader: TokenReader, token: str) -> Claims:
    return reader.read(token)


def test_both_algorithms_name_the_same_owner(reader: TokenReader) -> None:
    first = _read(reader, _token())
    second = _read(reader, _token(_RSA, "RS256", "rsa"))
    assert (first.key_id, second.key_id) == ("ec", "rsa")
    assert first == msgspec.structs.replace(second, key_id="ec")
    assert (first.scope, first.limits) == (Scope.USER, Limits())
    assert "alice" not in first.owner
    assert _read(reader, _token(sub="bob")).owner != first.owner


@pytest.mark.parametrize("scopes", ["read llmis:admin", ["read", "llmis:admin"]])
def test_a_claim_gives_the_admin_scope(reader: TokenReader, scopes: Any) -> None:
    assert _read(reader, _token(scope=scopes)).scope is Scope.ADMIN
    assert _read(reader, _token(scope="llmis:administrator")).scope is Scope.USER


def test_a_claim_gives_limits(reader: TokenReader) -> None:
    claims = _read(reader, _token(llmis_limits={"requests_per_minute": 7}))
    assert claims.limits == Limits(requests_per_minute=7)


@pytest.mark.parametrize(
    "token",
    [
        _token(exp=int(time.time()) - 100),
        _token(exp=None),
        _token(sub=None),
        _token(aud="another"),
        _token(iss="https://another.test"),
        _token(_STRANGER),
        _token(key_id="unknown"),
        _token("a secret that is long enough for this", "HS256"),
        _token(llmis_limits={"requests_per_minute": "many"}),
        _token(llmis_limits={"requests_per_minute": -1}),
        _token(llmis_limits={"requests_per_minute": 10**400}),
        _token(exp=10**400),
        _token(exp="9" * 400),
        _token(sub="\ud800"),
        _token()[:-4] + "AAAA",
        "e30.e30.",
        "a.b.c",
    ],
    ids=range(17),
)
def test_what_is_not_valid_is_refused(reader: TokenReader, token: str) -> None:
    with pytest.raises(InvalidToken):
        reader.read(token)


def test_a_public_key_is_no_secret_to_sign_with(reader: TokenReader) -> None:
    """The classic confusion: HS256 with the issuer's public key as the secret."""
    encode = jwt.utils.base64url_encode
    body = _token().split(".")[1]
    public = _RSA.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    for algorithm in ("HS256", "none", "RS256", "hs256"):
        head = encode(json.dumps({"alg": algorithm, "kid": "rsa"}).encode()).decode()
        signature = hmac.new(public, f"{head}.{body}".encode(), hashlib.sha256).digest()
        for signed in (encode(signature).decode(), ""):
            with pytest.raises(InvalidToken):
                reader.read(f"{head}.{body}.{signed}")


def test_a_token_brings_no_keys_of_its_own(
    reader: TokenReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a key in its header nor an address of keys is looked at."""
    asked: list[str] = []
    monkeypatch.setattr(
        urllib.request.OpenerDirector, "open", lambda _s, url, *_a: asked.append(url)
    )
    body = jwt.decode(_token(), options={"verify_signature": False})
    for header in (
        {"jwk": _public(_STRANGER, "ES256", "own")},
        {"jku": "https://stranger.test/jwks.json"},
        {"x5u": "https://stranger.test/chain.pem"},
    ):
        for key_id in ("own", "ec"):
            token = jwt.encode(body, _STRANGER, "ES256", headers={"kid": key_id, **header})
            with pytest.raises(InvalidToken):
                reader.read(token)
    assert asked == []


@pytest.mark.parametrize(
    "head",
    [
        b'{"alg":"ES256","kid":["ec"]}',
        b'{"alg":"ES256","kid":"ec","crit":["x"]}',
        b'{"alg":"ES256","kid":"ec","b64":false,"crit":["b64"]}',
        b'{"alg":["ES256"],"kid":"ec"}',
        b"[" * 8000,
        b"\xff\xfe",
        b"1e999",
    ],
    ids=range(7),
)
def test_a_strange_header_is_refused(reader: TokenReader, head: bytes) -> None:
    token = f"{jwt.utils.base64url_encode(head).decode()}.{_token().partition('.')[2]}"
    with pytest.raises(InvalidToken):
        reader.read(token)


def test_refusals_do_not_repeat_what_the_token_says(reader: TokenReader) -> None:
    for token in (_token(iss="https://marker.test"), _token(aud="marker"), _token(key_id="marker")):
        with pytest.raises(InvalidToken) as refused:
            reader.read(token)
        assert "marker" not in str(refused.value)


def test_symmetric_keys_of_an_issuer_are_not_used(tmp_path: Path) -> None:
    secret = {"kty": "oct", "k": "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", "kid": "s"}
    keys = {"keys": [secret, _public(_EC, "ES256", "ec")]}
    (tmp_path / "jwks.json").write_text(json.dumps(keys))
    reader = TokenReader(_settings(tmp_path))
    with pytest.raises(InvalidToken):
        reader.read(_token(b"\0" * 32, "HS256", "s"))
    assert _read(reader, _token()).scope is Scope.USER


def test_a_file_that_changes_is_read_again(reader: TokenReader, tmp_path: Path) -> None:
    path = tmp_path / "jwks.json"
    path.write_text(json.dumps({"keys": [_public(_STRANGER, "ES256", "new")]}))
    reader.refresh()
    assert _read(reader, _token(_STRANGER, key_id="new"))
    with pytest.raises(InvalidToken):
        reader.read(_token())
    for broken in ("", '{"keys": []}'):
        path.write_text(broken)
        reader.refresh()
        assert _read(reader, _token(_STRANGER, key_id="new")), "the old keys hold"


def test_a_connection_does_not_outlive_the_key_of_its_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "jwks.json"
    ec_key, rsa_key = _public(_EC, "ES256", "ec"), _public(_RSA, "RS256", "rsa")
    path.write_text(json.dumps({"keys": [ec_key, rsa_key]}))
    authenticator = Authenticator(
        _settings(tmp_path), redis.Redis(port=1), Directory(redis.Redis(port=1))
    )
    monkeypatch.setattr(api_keys, "version", lambda _client: b"")
    monkeypatch.setattr(api_keys, "read", lambda _client: {})
    first = authenticator.identify(_token(), "192.0.2.1")
    second = authenticator.identify(_token(_RSA, "RS256", "rsa"), "192.0.2.1")
    path.write_text(json.dumps({"keys": [rsa_key]}))
    assert authenticator.renewed(first) == first, "nobody has looked yet"
    authenticator.refresh()
    with pytest.raises(Unauthorized, match="withdrawn"):
        authenticator.renewed(first)
    assert authenticator.renewed(second) == second


class _Issuer:
    """Stands for the issuer's web server."""

    def __init__(self) -> None:
        self.keys = [_public(_EC, "ES256", "ec")]
        self.num_asked = 0

    def fetch(self, url: str) -> bytes:
        assert url == "https://issuer.test/jwks.json"
        self.num_asked += 1
        gevent.idle()  # all others wait by now
        return json.dumps({"keys": self.keys}).encode()


@pytest.fixture
def issuer(monkeypatch: pytest.MonkeyPatch) -> _Issuer:
    found = _Issuer()
    monkeypatch.setattr(tokens, "_fetch", found.fetch)
    return found


def test_many_unknown_keys_ask_the_issuer_once_a_minute(
    issuer: _Issuer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens.threading, "Lock", gevent.lock.RLock)
    settings = _settings(tmp_path)
    reader = TokenReader(
        msgspec.structs.replace(settings, jwt_jwks="https://issuer.test/jwks.json")
    )

    def refused(key_id: str) -> bool:
        with pytest.raises(InvalidToken):
            reader.read(_token(key_id=key_id))
        return True

    good = [gevent.spawn(_read, reader, _token()) for _ in range(5)]
    bad = [gevent.spawn(refused, f"unknown-{n}") for n in range(20)]
    gevent.joinall(good + bad, raise_error=True)
    assert issuer.num_asked == 1
    assert len({each.value.owner for each in good}) == 1
    issuer.keys = [_public(_STRANGER, "ES256", "new")]
    with pytest.raises(InvalidToken):
        reader.read(_token(_STRANGER, key_id="new"))
    reader._fetched_at -= tokens._MIN_AGE_S
    assert _read(reader, _token(_STRANGER, key_id="new"))
    assert issuer.num_asked == 2


def test_an_issuer_that_does_not_answer_leaves_its_old_keys(
    issuer: _Issuer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = _settings(tmp_path)
    reader = TokenReader(
        msgspec.structs.replace(settings, jwt_jwks="https://issuer.test/jwks.json")
    )
    assert _read(reader, _token())
    monkeypatch.setattr(tokens, "_fetch", lambda url: (_ for _ in ()).throw(OSError("away")))
    reader._fetched_at = float("-inf")
    reader._fetch_keys(0)
    assert _read(reader, _token())


def test_the_issuer_leads_nowhere_else() -> None:
    """A redirect could lead into the own network, or to a connection without TLS."""
    with _redirecting() as url, pytest.raises(urllib.error.HTTPError, match="302"):
        tokens._fetch(url)


@contextmanager
def _redirecting() -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(302)
            self.send_header("Location", "/elsewhere")
            self.end_headers()
            assert self.path == "/", "nobody follows"

        def log_message(self, *_args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    "answer",
    [
        b"\x16\x03\x01 no HTTP\r\n\r\n",
        b"HTTP/1.1 " + b"9" * 70_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 200 + b"\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nnone\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n200001\r\n" + b" " * 0x200001,
        b"",
    ],
    ids=range(7),
)
def test_an_answer_of_the_issuer_that_is_no_keys_refuses_the_token(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, answer: bytes
) -> None:
    with _answering([answer]) as url:
        reader = TokenReader(msgspec.structs.replace(_settings(tmp_path), jwt_jwks=url))
        with pytest.raises(InvalidToken, match="not signed with a key of the issuer"):
            reader.read(_token())
    assert "could not be read" in caplog.text


def test_an_issuer_that_sends_byte_by_byte_is_not_waited_for() -> None:
    """Each of its bytes comes in time. In a process of its own: sockets have to be gevent's."""
    code = (
        "from gevent import monkey; monkey.patch_all()\n"
        "import sys\n"
        "from app.auth import jwt as tokens\n"
        "tokens._TIMEOUT_S = 2.0\n"
        "try: tokens._fetch(sys.argv[1])\n"
        "except OSError as exc: print(exc)\n"
    )
    slowly = itertools.chain([b"HTTP/1.1 200 OK\r\nx: "], itertools.repeat(b"y"))
    with _answering(slowly) as url:
        done = subprocess.run(
            [sys.executable, "-c", code, url], capture_output=True, text=True, timeout=120
        )
    assert "no whole answer in 2 s" in done.stdout, done.stderr


@contextmanager
def _answering(pieces: Iterable[bytes]) -> Iterator[str]:
    """One connection gets these bytes, whatever it asks."""
    is_over = threading.Event()

    def answer() -> None:
        with contextlib.suppress(OSError), listening.accept()[0] as connection:
            connection.recv(65_536)
            for piece in pieces:
                connection.sendall(piece)
                if is_over.wait(0.05):
                    return

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=answer)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}/"
        finally:
            is_over.set()
            listening.shutdown(socket.SHUT_RDWR)  # ends an accept that no client has ended
            thread.join()


@pytest.mark.parametrize("field", ["kid", "alg"])
def test_keys_with_odd_fields_leave_the_old_ones(
    reader: TokenReader, tmp_path: Path, field: str
) -> None:
    odd = {**_public(_EC, "ES256", "new"), field: ["x"]}
    (tmp_path / "jwks.json").write_text(json.dumps({"keys": [odd]}))
    reader.refresh()
    assert _read(reader, _token())


def test_api_keys_are_no_tokens() -> None:
    assert is_token(_token())
    assert not is_token("sk-llmis-something")


@pytest.mark.parametrize("text", ["", "{}", '{"keys": []}', "[1]"])
def test_a_file_without_keys_can_stop_the_start(tmp_path: Path, text: str) -> None:
    (tmp_path / "jwks.json").write_text(text)
    reader = TokenReader(_settings(tmp_path))
    with pytest.raises(SettingsError, match="jwt_jwks"):
        reader.check_file()
    with pytest.raises(InvalidToken, match="not signed with a key of the issuer"):
        reader.read(_token())


def test_a_byte_order_mark_of_a_file_is_read_over(reader: TokenReader, tmp_path: Path) -> None:
    keys = {"keys": [_public(_STRANGER, "ES256", "new")]}
    (tmp_path / "jwks.json").write_text("\ufeff" + json.dumps(keys))
    reader.check_file()
    assert reader._keys.keys() == {"new"}
