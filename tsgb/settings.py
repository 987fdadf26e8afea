"""The environment of a process as typed settings: the groups, joined. Only edges use it.

What determines a result is in `config.py` instead. This is the only file that touches `os.environ`.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

from dotenv import dotenv_values
from pydantic import SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from tsgb.errors import ConfigError
from tsgb.setting_groups import (
    CloudSettings,
    EndpointSettings,
    ExchangeSettings,
    HubSettings,
    InstanceSettings,
    ServeSettings,
    SettingsGroup,
    WorkerSettings,
)

ENV_FILE = ".env"
"""File in the working directory with more variables; those of the environment win."""
_SECRET_HERE = frozenset(
    {
        "VAST_API_KEY",
        "CONTAINER_API_KEY",
        "TSGB_EXCHANGE_PASS",
        "TSGB_SERVE_TOKEN",
        "TSGB_UPSTREAM_KEY",
    }
)
"""Variables that no child process gets."""
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
"""Hosts as `NO_PROXY` names them."""


class Settings(  # pyright: ignore[reportIncompatibleVariableOverride] - pydantic merges the configs
    ExchangeSettings,
    CloudSettings,
    HubSettings,
    EndpointSettings,
    ServeSettings,
    InstanceSettings,
    WorkerSettings,
    BaseSettings,
):
    """All settings, from environment variables and an `.env` file in the working directory.

    It is each of the groups, so it is passed as it is where one of them is asked for.
    """

    model_config = SettingsConfigDict(
        **SettingsGroup.model_config,
        env_prefix="TSGB_",
        env_file=ENV_FILE,
        env_file_encoding="utf-8-sig",  # Notepad's UTF-8 begins with a byte order mark
        env_ignore_empty=True,
    )

    @model_validator(mode="before")
    @classmethod
    def _with_cache(cls, given: dict[str, Any]) -> dict[str, Any]:
        return given if "cache_dir" in given else {"cache_dir": _user_cache(), **given}


def _user_cache() -> Path:
    """Return the user's cache directory, as the XDG base directory specification names it.

    Raises:
        ConfigError: No home directory is known: `HOME` is unset and the user has no passwd entry.
    """
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if base.is_absolute():  # the specification has a relative path ignored
        return base / "tsgb"
    if not is_home_known():
        raise ConfigError(
            "no home directory for the cache: HOME is not set and this user has no passwd entry; "
            "set TSGB_CACHE_DIR to a directory that you can write"
        )
    return Path.home() / ".cache" / "tsgb"


def is_home_known() -> bool:
    """Return whether this user has a home directory, by `HOME` or by a passwd entry."""
    try:
        Path.home()
    except RuntimeError:
        return False
    return True


def load_settings() -> Settings:
    """Read the environment and the `.env` file now; take loopback addresses out of any proxy.

    Raises:
        ConfigError: A variable has a value that its rule forbids, or `.env` cannot be read.
    """
    _bypass_proxy()
    _check_env_file()
    try:
        return Settings.model_validate({})
    except ValidationError as error:
        first = error.errors()[0]
        if not first["loc"]:
            raise ConfigError(first["msg"].removeprefix("Value error, ")) from None
        name = _variable(str(first["loc"][0]))
        found = "environment variable" if name in os.environ else f"{ENV_FILE}, variable"
        raise ConfigError(
            f"{found} {name}: {first['msg']}; give it an allowed value or unset it"
        ) from error


def endpoint_key(variable: str) -> SecretStr | None:
    """Return the key that a variable of the environment or of the `.env` file holds, if it does.

    Args:
        variable: Name of the variable, as an endpoint's declaration gives it.

    Raises:
        ConfigError: The `.env` file cannot be read.
    """
    value = os.environ.get(variable)
    if not value:
        value = _in_env_file().get(variable)
    return SecretStr(value) if value else None


def setting_variables() -> frozenset[str]:
    """Return the names of all environment variables that are settings."""
    return frozenset(_variable(name) for name in Settings.model_fields)


def secret_variables() -> frozenset[str]:
    """Return the names of the environment variables that hold secrets."""
    return frozenset(
        _variable(name)
        for name, field in Settings.model_fields.items()
        if SecretStr in (field.annotation, *get_args(field.annotation))
    )


def add_to_environment(values: Mapping[str, str]) -> None:
    """Set variables that neither the environment nor the `.env` file has.

    Args:
        values: Values by the name of the variable.

    Raises:
        ConfigError: The `.env` file cannot be read.
    """
    named = _in_env_file()
    for name, value in values.items():
        if not os.environ.get(name) and not named.get(name):
            os.environ[name] = value


def _in_env_file() -> Mapping[str, str | None]:
    """Return the variables of the `.env` file; none where there is no file."""
    _check_env_file()
    return dotenv_values(ENV_FILE, encoding="utf-8-sig")


def _variable(name: str) -> str:
    """Return the name of the environment variable for a field, or for its alias."""
    field = Settings.model_fields.get(name)
    return name if field is None else str(field.validation_alias or f"TSGB_{name.upper()}")


def _check_env_file() -> None:
    """Refuse an `.env` whose variables would be lost, or read wrong."""
    path = Path(ENV_FILE)
    try:
        if path.is_dir():  # as Docker makes one where the file of a bind mount is missing
            raise ConfigError(f"{path.absolute()} is a directory: remove it, or put a file there")
        content = path.read_bytes() if path.is_file() else b""
    except OSError as error:
        raise ConfigError(
            f"{path.absolute()} cannot be read ({error.strerror}): grant read permission, remove "
            "it, or work in another directory"
        ) from error
    try:
        content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        where = f"byte 0x{content[error.start]:02x} in line {line}"
    else:
        if b"\0" not in content:
            return
        where = f"a NUL byte in line {content[: content.index(0)].count(10) + 1}"
    kind = "UTF-16 text" if b"\0" in content else "text in another encoding"
    raise ConfigError(f"{path.absolute()} is {kind}, not UTF-8 ({where}): save it as UTF-8")


def _bypass_proxy() -> None:
    """Keep requests of this process and its children to this very machine away from proxies."""
    names = {name.lower() for name, value in os.environ.items() if value}
    if not names & {"http_proxy", "https_proxy", "all_proxy"}:
        return
    kept = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    hosts = [host.strip() for host in kept.split(",") if host.strip()]
    missing = [host for host in _LOOPBACK if host not in hosts]
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join([*hosts, *missing])


@contextmanager
def without_prefect_settings(directory: Path) -> Generator[None]:
    """Hide the user's settings of Prefect, while Prefect is imported and while its flows run.

    It reads variables, and `.env`, `prefect.toml` and `pyproject.toml` in the working directory.
    This hides the variables; whoever imports Prefect inside does so in another directory.

    Args:
        directory: The home of Prefect inside.
    """
    before = {name: value for name, value in os.environ.items() if name.startswith("PREFECT_")}
    for name in before:
        del os.environ[name]
    inside = {"PREFECT_HOME": str(directory)}
    if not is_home_known():  # Prefect asks for one when it is imported
        inside["HOME"] = str(directory)
    os.environ.update(inside)
    try:
        yield
    finally:
        for name in inside:
            del os.environ[name]
        os.environ.update(before)


def child_environment(settings: Settings | None = None) -> Mapping[str, str]:
    """Return the environment for a process of ours, without Prefect's variables.

    It lacks the keys that rent and destroy machines, too. With `settings`, it has the secrets of
    the store and of the hub even if they came from an `.env` file.
    """
    environment = {
        k: v
        for k, v in os.environ.items()
        if not k.startswith("PREFECT_") and k not in _SECRET_HERE
    }
    if settings is not None:
        if settings.webdav_user is not None:
            environment["RCLONE_WEBDAV_USER"] = settings.webdav_user
        if settings.webdav_pass is not None:
            environment["RCLONE_WEBDAV_PASS"] = settings.webdav_pass.get_secret_value()
        if settings.manifest_key is not None:
            environment["TSGB_MANIFEST_KEY"] = settings.manifest_key.get_secret_value()
        if settings.hf_token is not None:
            environment["HF_TOKEN"] = settings.hf_token.get_secret_value()
    return environment
