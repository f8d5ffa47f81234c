"""Who sends a request: API keys and JSON Web Tokens.

With the setting `auth` off, keys tell owners apart and are not checked. With it on, every key or
token that does not hold is refused here, and nowhere else.
"""

import threading
import time
from enum import StrEnum

import redis
from msgspec import Struct

from app.guesses import Guesses
from app.metrics import AUTH_FAILURES
from app.sight import Sight
from app.tokens import InvalidToken, TokenReader, is_token
from shared import api_keys
from shared.api_keys import ApiKey, Scope
from shared.errors import Forbidden, LlmisError, QueueUnavailable, TooManyRequests, Unauthorized
from shared.limits import Limits, limits_of
from shared.settings import Settings

ANONYMOUS = "anonymous"


class Reason(StrEnum):
    """Why somebody is refused."""

    MISSING = "missing"
    UNKNOWN = "unknown"
    EXPIRED = "expired"
    SCOPE = "scope"
    GUESSING = "guessing"


class _Invalid(Exception):
    """A key or token does not hold. Inside of this module; outside it is a `refusal`."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Principal(Struct, frozen=True, kw_only=True):
    """Who sends a request."""

    owner: str
    """Limits, turns, requests and their answers are this one's. Never the key itself."""
    scope: Scope
    limits: Limits
    key_digest: str = ""
    """Of the API key; empty = there is none to check."""
    expires_at: float = 0.0
    """Unix time in seconds at which the token ends; 0 = it is none."""
    token_key_id: str | None = None
    """Of the issuer's key that signed the token."""


class Authenticator:
    """Knows the keys by a copy that `refresh` renews: Redis is not asked with every request."""

    def __init__(
        self,
        settings: Settings,
        client: "redis.Redis",
        sight: Sight,
        *,
        needs_issuer: bool = True,
    ) -> None:
        """Raises SettingsError when the issuer's keys are a file that has none, if they are
        needed; else no token holds until it has some."""
        self._settings = settings
        self._client = client
        self._sight = sight
        self._keys: dict[str, ApiKey] = {}
        self._version: bytes | None = None
        self._refreshing = threading.Lock()
        self._guesses = Guesses(client)
        self._tokens: TokenReader | None = None
        if settings.auth and settings.jwt_jwks:
            self._tokens = TokenReader(settings, needs_keys=needs_issuer)

    @property
    def is_on(self) -> bool:
        return self._settings.auth

    def refresh(self) -> None:
        """Take over what has changed. Raises redis.RedisError; the old copy stays then."""
        if not self.is_on:
            return
        # One at a time, or an older copy could take the place of a newer one.
        with self._refreshing:
            version = api_keys.version(self._client)
            if version != self._version:
                # In this order: what changes between the two calls is read once more.
                self._keys = api_keys.read(self._client)
                self._version = version
        if self._tokens is not None:
            self._tokens.refresh()

    def principal(self, authorization: str, address: str) -> Principal:
        """Who sends a request with this header `Authorization` from this address.

        Raises Unauthorized, and TooManyRequests for an address that keeps guessing.
        """
        scheme, _, credential = authorization.partition(" ")
        credential = credential.strip() if scheme.lower() == "bearer" else ""
        if not self.is_on:
            return self._unchecked(credential)
        if not credential:
            raise refusal(Reason.MISSING, "An API key is needed: Authorization: Bearer <key>.")
        return self.identify(credential, address)

    def identify(self, credential: str, address: str) -> Principal:
        """Who has this key or token. Raises Unauthorized, TooManyRequests; QueueUnavailable for
        one that cannot be looked up.

        Whoever has a valid one is let in, whatever others have sent from the same address.
        """
        if not self.is_on:
            return self._unchecked(credential)
        try:
            if self._tokens is not None and is_token(credential):
                return self._by_token(self._tokens, credential)
            return self._by_key(credential, address)
        except _Invalid as exc:
            if not (self._sight.is_clear or self._guesses.wait_s(address)):
                # To ask would hold the request for as long as Redis hangs.
                raise QueueUnavailable(
                    "Whether the API key holds cannot be looked up at the moment. Please try again."
                ) from exc
            wait_s = self._guesses.count(address)
            if wait_s:
                raise refusal(
                    Reason.GUESSING,
                    "Too many keys that do not hold have come from this address.",
                    retry_after_s=wait_s,
                ) from exc
            raise refusal(exc.reason, str(exc)) from exc

    def renewed(self, principal: Principal) -> Principal:
        """The same one, for a connection that lasts. Raises Unauthorized when the key or token
        does not hold any more."""
        if principal.key_digest:
            try:
                return self._of_key(principal.key_digest)
            except _Invalid as exc:
                raise refusal(exc.reason, str(exc)) from exc
        if self._tokens is not None and principal.expires_at:
            if time.time() >= principal.expires_at:
                raise refusal(Reason.EXPIRED, "The token has expired.")
            if not self._tokens.has_key(principal.token_key_id):
                raise refusal(Reason.UNKNOWN, "The issuer has withdrawn the key of the token.")
        return principal

    def _unchecked(self, credential: str) -> Principal:
        owner = ANONYMOUS
        if credential:
            owner = f"key-{api_keys.digest(credential)[:24]}"
        return Principal(owner=owner, scope=Scope.USER, limits=limits_of(self._settings))

    def _by_key(self, credential: str, address: str) -> Principal:
        """Raises _Invalid, redis.RedisError."""
        key_digest = api_keys.digest(credential)
        is_new = key_digest not in self._keys and not self._guesses.wait_s(address)
        if is_new and self._sight.is_clear and api_keys.is_there(self._client, key_digest):
            self.refresh()  # it has just been made
        return self._of_key(key_digest)

    def _of_key(self, key_digest: str) -> Principal:
        """Raises _Invalid."""
        key = self._keys.get(key_digest)
        if key is None:
            raise _Invalid(Reason.UNKNOWN, "The API key is not known.")
        if key.is_expired(time.time()):
            raise _Invalid(Reason.EXPIRED, "The API key has expired.")
        limits = limits_of(self._settings, key.limits)
        return Principal(owner=key.id, scope=key.scope, limits=limits, key_digest=key_digest)

    def _by_token(self, tokens: TokenReader, credential: str) -> Principal:
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


def check_scope(principal: Principal, needed: Scope) -> None:
    """Raises Forbidden. The scope admin has all others in it."""
    if principal.scope not in (needed, Scope.ADMIN):
        raise refusal(Reason.SCOPE, f"This needs an API key with the scope {needed}.")


def refusal(reason: Reason, message: str, retry_after_s: int = 1) -> LlmisError:
    """The error for somebody who is refused: made, and counted, here once for each that is."""
    AUTH_FAILURES.labels(reason.value).inc()
    if reason is Reason.GUESSING:
        return TooManyRequests(message, retry_after_s=retry_after_s)
    return Forbidden(message) if reason is Reason.SCOPE else Unauthorized(message)
