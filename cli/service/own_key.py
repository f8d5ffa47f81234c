"""The API key of `llmis up` itself: created at its start, revoked at its end.

It is in a file under the data folder, where `llmis` finds it. Read access to that folder makes
an admin in any case: it also holds the URL of the embedded Redis.
"""

import redis

from cli.address import own_key_path
from cli.service.private_file import write_private
from shared import api_keys
from shared.api_keys import Scope
from shared.limits import Limits
from shared.settings.fields import Settings


def make(settings: Settings, client: "redis.Redis") -> str:
    """Create the key of this start and revoke the one of a killed service. Raises redis.RedisError,
    OSError, SettingsError."""
    revoke(settings, client)
    unlimited = dict.fromkeys(Limits.__struct_fields__, 0)
    key, _ = api_keys.create(client, name_of(settings), Scope.ADMIN, limits=unlimited)
    write_private(own_key_path(settings), key + "\n")
    return key


def revoke(settings: Settings, client: "redis.Redis") -> None:
    """Raises redis.RedisError, SettingsError."""
    own_key_path(settings).unlink(missing_ok=True)
    api_keys.revoke(client, name_of(settings))


def name_of(settings: Settings) -> str:
    """Raises SettingsError."""
    return f"llmis up, {settings.node}:{settings.data_path}"
