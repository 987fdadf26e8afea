"""What a process reads from its environment: the groups of settings, joined. Only edges use it.

What determines a result is in `config.py` instead. This is the only file that touches `os.environ`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from tsgb.errors import ConfigError
from tsgb.setting_groups import (
    CloudSettings,
    InstanceSettings,
    SettingsGroup,
    StoreSettings,
    WorkerSettings,
)

_NOT_THEIRS = frozenset({"VAST_API_KEY", "CONTAINER_API_KEY"})


class Settings(  # pyright: ignore[reportIncompatibleVariableOverride] - pydantic merges the configs
    StoreSettings, CloudSettings, InstanceSettings, WorkerSettings, BaseSettings
):
    """All settings, from environment variables and an `.env` file in the working directory.

    It is each of the groups, so it is passed as it is where one of them is asked for.
    """

    model_config = SettingsConfigDict(
        **SettingsGroup.model_config, env_prefix="TSGB_", env_file=".env", env_ignore_empty=True
    )

    @model_validator(mode="before")
    @classmethod
    def _with_cache(cls, given: dict[str, Any]) -> dict[str, Any]:
        return {"cache_dir": _user_cache(), **given}


def _user_cache() -> Path:
    """Return the user's cache directory, as the XDG base directory specification names it."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(given) if given else Path.home() / ".cache") / "tsgb"


def load_settings() -> Settings:
    """Read the environment now.

    Raises:
        ConfigError: A variable has a value that its rule forbids.
    """
    try:
        return Settings.model_validate({})
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        raise ConfigError(
            f"environment variable for {name!r}: {first['msg']}; set it right or unset it"
        ) from error


def child_environment(settings: Settings | None = None) -> Mapping[str, str]:
    """Return the environment for a process of ours, without Prefect's variables.

    It lacks the keys that rent and destroy machines, too. With `settings`, it has the store's
    secrets even if they came from an `.env` file.
    """
    environment = {
        k: v for k, v in os.environ.items() if not k.startswith("PREFECT_") and k not in _NOT_THEIRS
    }
    if settings is not None:
        if settings.webdav_user is not None:
            environment["RCLONE_WEBDAV_USER"] = settings.webdav_user
        if settings.webdav_pass is not None:
            environment["RCLONE_WEBDAV_PASS"] = settings.webdav_pass.get_secret_value()
        if settings.manifest_key is not None:
            environment["TSGB_MANIFEST_KEY"] = settings.manifest_key.get_secret_value()
    return environment
