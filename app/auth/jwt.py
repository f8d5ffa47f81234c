"""JSON Web Tokens as an alternative to API keys: signed by the issuer that the settings name.

Only the issuer's public keys, as a JWKS in a file or at an https URL, decide: keys and addresses
of keys that a token carries itself (`jwk`, `jku`, `x5u`) are not looked at. A file is read again
when it has changed. A URL is asked again every ten minutes, and sooner, but once a minute at most,
for a key that is not known.
"""

import hashlib
import http.client
import logging
import threading
import time
import urllib.request
from typing import Any

import gevent
import jwt
import msgspec
from msgspec import Struct

from shared.api_keys import Scope
from shared.errors import SettingsError
from shared.limits import Limits, limits_of
from shared.settings import Settings

_log = logging.getLogger(__name__)
_ALGORITHMS = ("RS256", "ES256")
"""No symmetric ones: with those, whoever can check a token can make one."""
_MAX_AGE_S = 600.0
_MIN_AGE_S = 60.0
_TIMEOUT_S = 5.0
"""For all of an answer of the URL, however slowly it comes."""
_LEEWAY_S = 30
_MAX_CHARACTERS = 16_384
_MAX_JWKS_BYTES = 1 << 20


class InvalidToken(Exception):
    """The message says what is wrong with the token, and nothing of what it says itself."""

    def __init__(self, message: str, *, is_expired: bool = False) -> None:
        super().__init__(message)
        self.is_expired = is_expired


class Claims(Struct, frozen=True, kw_only=True):
    """What a token says that concerns the service."""

    owner: str
    scope: Scope
    limits: Limits
    expires_at: float
    """Unix time in seconds."""
    key_id: str | None
    """Of the issuer's key that signed it; None = that key has no name."""


def is_token(credential: str) -> bool:
    """Whether it has a token's shape. API keys have no dots."""
    return credential.count(".") == 2


class TokenReader:
    def __init__(self, settings: Settings, *, needs_keys: bool = True) -> None:
        """Read the issuer's keys. Raises SettingsError when a file has none and they are needed;
        a URL may follow."""
        self._settings = settings
        self._source = settings.jwt_jwks
        self._is_url = "://" in self._source
        self._keys: dict[str | None, jwt.PyJWK] = {}
        self._asked_at = float("-inf")
        """Monotonic time of the last attempt to read the URL."""
        self._seen: tuple[int, int, int] | None = None
        """What `stat` said of the file that was read last."""
        self._asking = threading.Lock()
        if not self._is_url:
            try:
                self._read_file()
            except (OSError, ValueError) as exc:
                message = f"jwt_jwks = {self._source!r}: no keys there: {exc}"
                if needs_keys:
                    raise SettingsError(message) from exc
                _log.error("%s. No token holds until there are some", message)

    def refresh(self) -> None:
        """Take over what the issuer has changed. Never raises: the old keys hold until then."""
        if self._is_url:
            if time.monotonic() - self._asked_at > _MAX_AGE_S:
                gevent.spawn(self._ask, _MAX_AGE_S)
            return
        try:
            self._read_file()
        except (OSError, ValueError) as exc:
            _log.warning("jwt_jwks: the keys could not be read again: %s", exc)

    def read(self, token: str) -> Claims:
        """What a token says. Raises InvalidToken."""
        if len(token) > _MAX_CHARACTERS:
            raise InvalidToken("it is too long")
        try:
            key_id = jwt.get_unverified_header(token).get("kid")
            key = self._key(key_id)
            if key is None:
                raise InvalidToken("it is not signed with a key of the issuer")
            said = jwt.decode(
                token,
                key,
                algorithms=_ALGORITHMS,
                audience=self._settings.jwt_audience,
                issuer=self._settings.jwt_issuer,
                leeway=_LEEWAY_S,
                options={"require": ["exp", "sub", "aud", "iss"]},
            )
            return self._claims(said, key_id)
        except jwt.ExpiredSignatureError as exc:
            raise InvalidToken("it has expired", is_expired=True) from exc
        except jwt.PyJWTError as exc:
            raise InvalidToken(_words(exc)) from exc
        except (ValueError, OverflowError, RecursionError) as exc:
            raise InvalidToken("it cannot be read") from exc

    def _claims(self, said: dict[str, Any], key_id: str | None) -> Claims:
        """Raises InvalidToken, and ValueError or OverflowError for what no claim can be."""
        settings = self._settings
        subject = hashlib.sha256(f"{said['iss']} {said['sub']}".encode()).hexdigest()[:24]
        scopes = said.get(settings.jwt_scope_claim, "")
        words = scopes.split() if isinstance(scopes, str) else scopes
        is_admin = isinstance(words, list) and settings.jwt_admin_scope in words
        try:
            own = msgspec.convert(said.get(settings.jwt_limits_claim, {}), dict[str, Any])
            limits = limits_of(settings, own)
        except msgspec.ValidationError as exc:
            raise InvalidToken(f"its claim {settings.jwt_limits_claim}: {exc}") from exc
        return Claims(
            owner=f"jwt-{subject}",
            scope=Scope.ADMIN if is_admin else Scope.USER,
            limits=limits,
            expires_at=float(int(said["exp"])) + _LEEWAY_S,
            key_id=key_id,
        )

    def has_key(self, key_id: str | None) -> bool:
        """Whether the issuer still has that key, as far as is known here."""
        return key_id in self._keys

    # -- the issuer's keys -------------------------------------------------------------------

    def _key(self, key_id: str | None) -> jwt.PyJWK | None:
        if key_id not in self._keys and self._is_url:
            self._ask(_MIN_AGE_S)
        return self._keys.get(key_id)

    def _ask(self, max_age_s: float) -> None:
        """Ask the URL, unless that was done less than `max_age_s` ago. Others wait meanwhile,
        and only they: sockets here are gevent's."""
        with self._asking:
            if time.monotonic() - self._asked_at <= max_age_s:
                return
            self._asked_at = time.monotonic()
            try:
                self._take(_fetch(self._source))
            except (OSError, ValueError) as exc:
                _log.warning("jwt_jwks: the issuer's keys could not be read: %s", exc)

    def _read_file(self) -> None:
        """Raises OSError, ValueError."""
        path = self._settings.resolve(self._source)
        found = path.stat()
        seen = (found.st_ino, found.st_mtime_ns, found.st_size)
        if seen != self._seen:
            # Also when it cannot be read: it is not worth another look before it changes again.
            self._seen = seen
            self._take(path.read_bytes())

    def _take(self, payload: bytes) -> None:
        """Raises ValueError."""
        try:
            keys = jwt.PyJWKSet.from_dict(msgspec.json.decode(payload, type=dict)).keys
            usable = {k.key_id: k for k in keys if k.algorithm_name in _ALGORITHMS}
        except (msgspec.DecodeError, RecursionError, TypeError, jwt.PyJWTError) as exc:
            # A TypeError is a list as `kid` or `alg`.
            raise ValueError(str(exc)) from exc
        if not usable:
            raise ValueError(f"none of its keys is for {' or '.join(_ALGORITHMS)}")
        self._keys = usable


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """The keys come from the address in the settings, or not at all."""

    def redirect_request(self, *_args: Any) -> None:
        return None


_opener = urllib.request.build_opener(_NoRedirects())


def _fetch(url: str) -> bytes:
    """Raises OSError, ValueError."""
    # The opener's own timeout is for each read: an answer of single bytes would never end.
    too_slow = TimeoutError(f"no whole answer in {_TIMEOUT_S:g} s")
    try:
        with (
            gevent.Timeout(_TIMEOUT_S, too_slow),
            _opener.open(url, timeout=_TIMEOUT_S) as response,
        ):
            payload: bytes = response.read(_MAX_JWKS_BYTES + 1)
    except http.client.HTTPException as exc:
        raise ValueError(f"the answer is not HTTP: {type(exc).__name__}") from exc
    if len(payload) > _MAX_JWKS_BYTES:
        raise ValueError(f"more than {_MAX_JWKS_BYTES} bytes")
    return payload


def _words(error: jwt.PyJWTError) -> str:
    """Without what the token says: it may be long, and it goes into an answer."""
    words = {
        jwt.InvalidAudienceError: "its audience is another",
        jwt.InvalidIssuerError: "its issuer is another",
        jwt.InvalidAlgorithmError: f"its algorithm is none of {', '.join(_ALGORITHMS)}",
        jwt.InvalidSignatureError: "its signature is wrong",
        jwt.ImmatureSignatureError: "it does not hold yet",
        jwt.MissingRequiredClaimError: "a claim is missing: exp, sub, aud and iss are needed",
    }
    return next((text for kind, text in words.items() if isinstance(error, kind)), "it is damaged")
