"""Who sends a request: API keys and JSON Web Tokens.

With the setting `auth` off, keys only tell owners apart and are not checked. With it on, every
invalid key or token is rejected here, and nowhere else. Any greenlet or thread may call.
"""

import threading
import time
from enum import StrEnum
from typing import TYPE_CHECKING

import redis
from msgspec import Struct

from app.auth.claims import InvalidToken, is_token
from app.auth.throttle import FailedKeyThrottle
from app.metrics.definitions import AUTH_FAILURES
from shared import api_keys
from shared.api_keys import ApiKey, Scope
from shared.clock import clock
from shared.errors import Forbidden, LlmisError, QueueUnavailable, TooManyRequests, Unauthorized
from shared.limits import Limits, limits_of
from shared.registry.directory import Directory
from shared.settings.fields import Settings

if TYPE_CHECKING:
    from app.auth.jwt import TokenReader

ANONYMOUS = "anonymous"


class Reason(StrEnum):
    """Why a request is rejected: the label of `llmis_auth_failures_total`."""

    MISSING = "missing"
    UNKNOWN = "unknown"
    EXPIRED = "expired"
    SCOPE = "scope"
    GUESSING = "guessing"


class _Invalid(Exception):
    """A key or token is invalid. Only within this module: callers get the error of `auth_error`."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Principal(Struct, frozen=True, kw_only=True):
    """Who sends a request."""

    owner: str
    """Limits, fair turns, requests and answers belong to this id. Never the key itself."""
    scope: Scope
    limits: Limits
    key_digest: str = ""
    """SHA-256 of the API key; empty = no key is checked again later."""
    expires_at: float = 0.0
    """Unix time in seconds at which the token ends; 0 = it is no token."""
    token_key_id: str | None = None
    """`kid` of the issuer's key that signed the token."""


class Authenticator:
    """Looks keys up in a copy that `refresh` renews: a request costs no round trip to Redis."""

    def __init__(self, settings: Settings, client: "redis.Redis", directory: Directory) -> None:
        self._settings = settings
        self._client = client
        self._directory = directory
        self._keys: dict[str, ApiKey] = {}
        self._version: bytes | None = None
        self._refreshing = threading.Lock()
        self._throttle = FailedKeyThrottle(client)
        self._tokens = _token_reader(settings)

    @property
    def is_on(self) -> bool:
        return self._settings.auth

    def check_issuer_file(self) -> None:
        """Raises SettingsError when the issuer's keys are a file that has none."""
        if self._tokens is not None:
            self._tokens.check_file()

    def refresh(self) -> None:
        """Copy the keys that have changed. Raises redis.RedisError; the old copy stays then."""
        if not self.is_on:
            return
        # One at a time: an older copy must not replace a newer one.
        with self._refreshing:
            version = api_keys.version(self._client)
            if version != self._version:
                # The version was read first: a change between the two calls is read once more.
                self._keys = api_keys.read(self._client)
                self._version = version
        if self._tokens is not None:
            self._tokens.refresh()

    def principal(self, authorization: str, address: str) -> Principal:
        """Identify the sender of a request by its header `Authorization`. Raises Unauthorized, and
        TooManyRequests for an address with too many failed keys."""
        scheme, _, credential = authorization.partition(" ")
        credential = credential.strip() if scheme.lower() == "bearer" else ""
        if not self.is_on:
            return self._unchecked(credential)
        if not credential:
            raise auth_error(Reason.MISSING, "An API key is needed: Authorization: Bearer <key>.")
        return self.identify(credential, address)

    def identify(self, credential: str, address: str) -> Principal:
        """Identify the owner of a key or token. Raises Unauthorized, TooManyRequests, and
        QueueUnavailable for a key that cannot be looked up.

        A valid key is accepted, whatever else has come from the same address.
        """
        if not self.is_on:
            return self._unchecked(credential)
        try:
            if self._tokens is not None and is_token(credential):
                return self._by_token(self._tokens, credential)
            return self._by_key(credential, address)
        except _Invalid as exc:
            if not (self._directory.is_reachable or self._throttle.wait_s(address)):
                # Asking Redis now could block the request for as long as Redis hangs.
                raise QueueUnavailable(
                    "The API key cannot be looked up at the moment. Please try again."
                ) from exc
            wait_s = self._throttle.count(address)
            if wait_s:
                raise auth_error(
                    Reason.GUESSING,
                    "Too many invalid keys have come from this address.",
                    retry_after_s=wait_s,
                ) from exc
            raise auth_error(exc.reason, str(exc)) from exc

    def renewed(self, principal: Principal) -> Principal:
        """Check again, for a connection that lasts. Raises Unauthorized when the key or token is
        no longer valid."""
        if principal.key_digest:
            try:
                return self._of_key(principal.key_digest)
            except _Invalid as exc:
                raise auth_error(exc.reason, str(exc)) from exc
        if self._tokens is not None and principal.expires_at:
            if time.time() >= principal.expires_at:
                raise auth_error(Reason.EXPIRED, "The token has expired.")
            if not self._tokens.has_key(principal.token_key_id):
                raise auth_error(Reason.UNKNOWN, "The issuer has withdrawn the token's key.")
        return principal

    def _unchecked(self, credential: str) -> Principal:
        owner = ANONYMOUS
        if credential:
            owner = f"key-{api_keys.digest(credential)[:24]}"
        return Principal(owner=owner, scope=Scope.USER, limits=limits_of(self._settings))

    def _by_key(self, credential: str, address: str) -> Principal:
        """Raises _Invalid, redis.RedisError."""
        key_digest = api_keys.digest(credential)
        is_new = key_digest not in self._keys and not self._throttle.wait_s(address)
        if is_new and self._directory.is_reachable and api_keys.is_there(self._client, key_digest):
            self.refresh()  # it was made since the last beat
        return self._of_key(key_digest)

    def _of_key(self, key_digest: str) -> Principal:
        """Raises _Invalid."""
        key = self._keys.get(key_digest)
        if key is None:
            raise _Invalid(Reason.UNKNOWN, "The API key is not known.")
        if key.is_expired(clock.now()):
            raise _Invalid(Reason.EXPIRED, "The API key has expired.")
        limits = limits_of(self._settings, key.limits)
        return Principal(owner=key.id, scope=key.scope, limits=limits, key_digest=key_digest)

    def _by_token(self, tokens: "TokenReader", credential: str) -> Principal:
        """Raises _Invalid."""
        try:
            claims = tokens.read(credential)
        except InvalidToken as exc:
            reason = Reason.EXPIRED if exc.is_expired else Reason.UNKNOWN
            raise _Invalid(reason, f"The token is not valid: {exc}.") from exc
        return Principal(
            owner=claims.owner,
            scope=claims.scope,
            limits=claims.limits,
            expires_at=claims.expires_at,
            token_key_id=claims.key_id,
        )


def _token_reader(settings: Settings) -> "TokenReader | None":
    if not (settings.auth and settings.jwt_jwks):
        return None
    # Here: the packages that check signatures are a tenth of the start of a web process.
    from app.auth.jwt import TokenReader

    return TokenReader(settings)


def check_scope(principal: Principal, needed: Scope) -> None:
    """Raises Forbidden. The scope admin includes all others."""
    if principal.scope not in (needed, Scope.ADMIN):
        raise auth_error(Reason.SCOPE, f"This needs an API key with the scope {needed}.")


def auth_error(reason: Reason, message: str, retry_after_s: int = 1) -> LlmisError:
    """Make the error for a rejected request, and count it: call it once per rejection."""
    AUTH_FAILURES.labels(reason.value).inc()
    if reason is Reason.GUESSING:
        return TooManyRequests(message, retry_after_s=retry_after_s)
    return Forbidden(message) if reason is Reason.SCOPE else Unauthorized(message)
