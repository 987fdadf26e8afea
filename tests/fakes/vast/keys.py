"""Who may do what: the account's keys with their scopes, and each instance's own key."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

ACCOUNT_SCOPES = frozenset(
    {"misc", "user_read", "user_write", "instance_read", "instance_write", "billing_read"}
    | {"billing_write", "machine_read", "machine_write", "team_read", "team_write"}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """One key."""

    id: int
    name: str
    scopes: frozenset[str]
    instance: int | None = None
    """The only instance that it can start, stop and destroy."""


class Keys:
    """All keys by their secret."""

    def __init__(self, account_key: str) -> None:
        self._next_id = 1
        self._keys: dict[str, Key] = {}
        self.add("account", ACCOUNT_SCOPES, token=account_key)

    def add(
        self,
        name: str,
        scopes: frozenset[str],
        *,
        instance: int | None = None,
        token: str | None = None,
    ) -> tuple[Key, str]:
        """A new key and its secret."""
        key = Key(id=self._next_id, name=name, scopes=scopes, instance=instance)
        token = token or secrets.token_hex(16)
        self._next_id += 1
        self._keys[token] = key
        return key, token

    def find(self, token: str | None) -> Key | None:
        return self._keys.get(token or "")

    def account_keys(self) -> list[Key]:
        return [key for key in self._keys.values() if key.instance is None]

    def revoke(self, number: int) -> bool:
        """Whether there was one."""
        tokens = [token for token, key in self._keys.items() if key.id == number]
        for token in tokens:
            del self._keys[token]
        return bool(tokens)


def scopes_of(permissions: Any) -> frozenset[str]:
    """From `{"api": {"misc": {}, "instance_read": {}}}`; everything if there are none.

    Raises:
        ValueError: a scope that there is not.
    """
    if not permissions:
        return ACCOUNT_SCOPES
    named = permissions.get("api", permissions) if isinstance(permissions, Mapping) else {}
    scopes = frozenset(str(name) for name in named)
    if unknown := scopes - ACCOUNT_SCOPES:
        raise ValueError(f"no such permission: {', '.join(sorted(unknown))}")
    return scopes
