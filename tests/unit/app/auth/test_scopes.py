"""The scope that a route needs."""

import pytest

from app.auth.authenticator import Principal, check_scope
from app.auth.scopes import scope_of
from shared.api_keys import Scope
from shared.errors import Forbidden
from shared.limits import Limits


def test_a_new_route_needs_a_key() -> None:
    assert scope_of("/v1/something") is Scope.USER
    assert scope_of("/admin/something") is Scope.ADMIN


def test_a_key_for_requests_does_not_open_metrics() -> None:
    assert scope_of("/metrics") is Scope.METRICS
    with pytest.raises(Forbidden, match="scope metrics"):
        check_scope(Principal(owner="a", scope=Scope.USER, limits=Limits()), Scope.METRICS)
