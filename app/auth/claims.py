"""What a JSON Web Token says about its sender, and the error for one that is not valid.

It does without the packages that check signatures, which `app.auth.jwt` imports.
"""

from msgspec import Struct

from shared.api_keys import Scope
from shared.limits import Limits


class InvalidToken(Exception):
    """The message says what is wrong with the token, and quotes nothing of it."""

    def __init__(self, message: str, *, is_expired: bool = False) -> None:
        super().__init__(message)
        self.is_expired = is_expired


class Claims(Struct, frozen=True, kw_only=True):
    """The claims of a token that the service uses."""

    owner: str
    scope: Scope
    limits: Limits
    expires_at: float
    """Unix time in seconds."""
    key_id: str | None
    """`kid` of the issuer's key that signed it; None = that key has none."""


def is_token(credential: str) -> bool:
    """Whether a credential has the shape of a token. API keys have no dots."""
    return credential.count(".") == 2
