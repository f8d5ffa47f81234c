"""JSON Web Tokens as an alternative to API keys: signed by the issuer that the settings name.

Only the issuer's public keys count, from a JWKS in a file or at an https URL: keys and addresses of
keys in the token itself (`jwk`, `jku`, `x5u`) are ignored. A file that has changed is read again.
A URL is fetched again every ten minutes, and for an unknown key at most once a minute.
"""

import codecs
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

from app.auth.claims import Claims, InvalidToken
from shared.api_keys import Scope
from shared.errors import SettingsError
from shared.limits import limits_of
from shared.settings.fields import Settings

_log = logging.getLogger(__name__)
_ALGORITHMS = ("RS256", "ES256")
"""No symmetric ones: the key that checks a token could also sign one."""
_MAX_AGE_S = 600.0
_MIN_AGE_S = 60.0
_TIMEOUT_S = 5.0
"""For the whole answer of the URL."""
_LEEWAY_S = 30
_MAX_CHARACTERS = 16_384
_MAX_JWKS_BYTES = 1 << 20


class TokenReader:
    """Reads the issuer's keys when it is made; without any, no token is valid."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._source = settings.jwt_jwks
        self._is_url = "://" in self._source
        self._path = settings.resolve(self._source)
        """Unused for a URL."""
        self._keys: dict[str | None, jwt.PyJWK] = {}
        self._fetched_at = float("-inf")
        """Monotonic time of the last attempt to fetch the URL."""
        self._stamp: tuple[int, int, int] | None = None
        """Inode, mtime in ns and size of the file that was read last."""
        self._fetching = threading.Lock()
        if not self._is_url:
            self.refresh()

    def check_file(self) -> None:
        """Raises SettingsError when the keys are a file that has none."""
        if self._is_url:
            return
        try:
            self._set_keys(self._path.read_bytes())
        except (OSError, ValueError) as exc:
            raise SettingsError(f"jwt_jwks = {self._source!r}: no keys there: {exc}") from exc

    def refresh(self) -> None:
        """Read the keys again if that is due. Never raises: without new keys the old ones stay."""
        if self._is_url:
            if time.monotonic() - self._fetched_at > _MAX_AGE_S:
                gevent.spawn(self._fetch_keys, _MAX_AGE_S)
            return
        try:
            self._read_file()
        except (OSError, ValueError) as exc:
            known = len(self._keys)
            _log.error("jwt_jwks: the keys could not be read: %s. Known keys: %d", exc, known)

    def read(self, token: str) -> Claims:
        """Check a token and return its claims. Raises InvalidToken."""
        if len(token) > _MAX_CHARACTERS:
            raise InvalidToken("it is too long")
        try:
            key_id = jwt.get_unverified_header(token).get("kid")
            if key_id not in self._keys and self._is_url:
                self._fetch_keys(_MIN_AGE_S)
            key = self._keys.get(key_id)
            if key is None:
                raise InvalidToken("it is not signed with a key of the issuer")
            payload = jwt.decode(
                token,
                key,
                algorithms=_ALGORITHMS,
                audience=self._settings.jwt_audience,
                issuer=self._settings.jwt_issuer,
                leeway=_LEEWAY_S,
                options={"require": ["exp", "sub", "aud", "iss"]},
            )
            return self._claims(payload, key_id)
        except jwt.ExpiredSignatureError as exc:
            raise InvalidToken("it has expired", is_expired=True) from exc
        except jwt.PyJWTError as exc:
            raise InvalidToken(_reason(exc)) from exc
        except (ValueError, OverflowError, RecursionError) as exc:
            raise InvalidToken("it cannot be read") from exc

    def _claims(self, payload: dict[str, Any], key_id: str | None) -> Claims:
        """Raises InvalidToken, and ValueError or OverflowError for an impossible value."""
        settings = self._settings
        subject = hashlib.sha256(f"{payload['iss']} {payload['sub']}".encode()).hexdigest()[:24]
        scopes = payload.get(settings.jwt_scope_claim, "")
        names = scopes.split() if isinstance(scopes, str) else scopes
        is_admin = isinstance(names, list) and settings.jwt_admin_scope in names
        try:
            own = msgspec.convert(payload.get(settings.jwt_limits_claim, {}), dict[str, Any])
            limits = limits_of(settings, own)
        except msgspec.ValidationError as exc:
            raise InvalidToken(f"its claim {settings.jwt_limits_claim}: {exc}") from exc
        return Claims(
            owner=f"jwt-{subject}",
            scope=Scope.ADMIN if is_admin else Scope.USER,
            limits=limits,
            expires_at=float(int(payload["exp"])) + _LEEWAY_S,
            key_id=key_id,
        )

    def has_key(self, key_id: str | None) -> bool:
        """Whether the issuer had that key when its keys were read last."""
        return key_id in self._keys

    # -- the issuer's keys -------------------------------------------------------------------

    def _fetch_keys(self, max_age_s: float) -> None:
        """Fetch the URL, unless that was tried less than `max_age_s` ago. Callers wait for each
        other; the rest of the process goes on, for sockets are gevent's."""
        with self._fetching:
            if time.monotonic() - self._fetched_at <= max_age_s:
                return
            self._fetched_at = time.monotonic()
            try:
                self._set_keys(_fetch(self._source))
            except (OSError, ValueError) as exc:
                _log.warning("jwt_jwks: the issuer's keys could not be read: %s", exc)

    def _read_file(self) -> None:
        """Raises OSError, ValueError."""
        found = self._path.stat()
        stamp = (found.st_ino, found.st_mtime_ns, found.st_size)
        if stamp != self._stamp:
            # Before it is read: an invalid file is not read again until it changes.
            self._stamp = stamp
            self._set_keys(self._path.read_bytes())

    def _set_keys(self, payload: bytes) -> None:
        """Raises ValueError."""
        try:
            found = msgspec.json.decode(payload.removeprefix(codecs.BOM_UTF8), type=dict)
            keys = jwt.PyJWKSet.from_dict(found).keys
            usable = {k.key_id: k for k in keys if k.algorithm_name in _ALGORITHMS}
        except (msgspec.DecodeError, RecursionError, TypeError, jwt.PyJWTError) as exc:
            # TypeError: `kid` or `alg` is a list.
            raise ValueError(str(exc)) from exc
        if not usable:
            raise ValueError(f"none of its keys is for {' or '.join(_ALGORITHMS)}")
        self._keys = usable


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect could lead into the own network, or to a connection without TLS."""

    def redirect_request(self, *_args: Any) -> None:
        return None


_opener = urllib.request.build_opener(_NoRedirects())


def _fetch(url: str) -> bytes:
    """Raises OSError, ValueError."""
    # The opener's timeout is for each read: an answer that comes byte by byte would never end.
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


def _reason(error: jwt.PyJWTError) -> str:
    """Without quoting the token, which may be long: the text goes into an answer."""
    reasons = {
        jwt.InvalidAudienceError: "its audience is another",
        jwt.InvalidIssuerError: "its issuer is another",
        jwt.InvalidAlgorithmError: f"its algorithm is none of {', '.join(_ALGORITHMS)}",
        jwt.InvalidSignatureError: "its signature is wrong",
        jwt.ImmatureSignatureError: "it is not valid yet",
        jwt.MissingRequiredClaimError: "a claim is missing: exp, sub, aud and iss are needed",
    }
    return next(
        (text for kind, text in reasons.items() if isinstance(error, kind)), "it is damaged"
    )
