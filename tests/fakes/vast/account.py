"""The account: its credit, its keys and its roles."""

from __future__ import annotations

from typing import Any

from tests.fakes.vast.keys import Keys, scopes_of
from tests.fakes.vast.messages import Answer, Request, ok, refused
from tests.fakes.vast.world import World


class Account:
    """One user, with a card on file only where that pays in by itself."""

    def __init__(self, world: World, keys: Keys) -> None:
        self._world = world
        self._keys = keys
        self._roles: list[dict[str, Any]] = []

    def user(self) -> Answer:
        bill = self._world.options.autobill
        return ok(
            {
                "id": 1,
                "email": "a@b.c",
                "credit": float(self._world.ledger.credit(self._world.now)),
                "balance": 0.0,
                "balance_threshold": 0.0,
                "ssh_key": None,
                "sid": "x",
                "host_agreement_accepted": False,
                "can_pay": True,
                "autobill_threshold": bill and float(bill),
                "autobill_amount": bill and float(bill),
            }
        )

    def variables(self) -> Answer:
        return ok({"success": True, "secrets": dict(self._world.options.account_env)})

    def list_keys(self) -> Answer:
        rows = [
            {"id": key.id, "name": key.name, "permissions": _permissions(key.scopes)}
            for key in self._keys.account_keys()
        ]
        return ok({"apikeys": rows})

    def add_key(self, request: Request) -> Answer:
        body = request.body if isinstance(request.body, dict) else {}
        try:
            scopes = scopes_of(body.get("permissions"))
        except ValueError as error:
            return refused(400, "invalid_args", str(error))
        key, token = self._keys.add(str(body.get("name")), scopes)
        return ok(id=key.id, key=token, permissions=_permissions(scopes))

    def revoke_key(self, number: int) -> Answer:
        if self._keys.revoke(number):
            return ok()
        return refused(404, "no_such_key", f"API key {number} not found.")

    def roles(self) -> Answer:
        return ok(self._roles)

    def add_role(self, request: Request) -> Answer:
        body = request.body if isinstance(request.body, dict) else {}
        self._roles.append({"id": len(self._roles) + 1, **body})
        return ok()


def _permissions(scopes: frozenset[str]) -> dict[str, Any]:
    return {"api": {scope: {} for scope in sorted(scopes)}}
