"""Repositories of models on the Hugging Face Hub, or a server like it, through their local cache.

It downloads files by name at one commit, and turns what goes wrong into one line with a way out.
The token is handed to `huggingface_hub` and to nothing else.
"""

from __future__ import annotations

import errno
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tsgb.errors import ConfigError, HubUnreachable, UsageError
from tsgb.models.files import DESCRIPTION
from tsgb.setting_groups import HubSettings


@dataclass(frozen=True, slots=True)
class HubSnapshot:
    """A model at one commit of its repository.

    Example: `ModelHub(settings).describe("HuggingFaceTB/SmolLM2-135M-Instruct", "main")`
    """

    directory: Path
    """Directory in the local cache with the files that were asked for."""
    commit: str
    """Commit of the repository, 40 hexadecimal digits."""
    sizes: Mapping[str, int]
    """Bytes of each file of the repository; of those in the cache if the rest is not known."""


class ModelHub:
    """A hub as the settings name it; the local cache is asked first."""

    def __init__(self, settings: HubSettings) -> None:
        """Keep the settings; nothing is read or asked yet."""
        self._settings = settings

    def describe(self, repository: str, revision: str) -> HubSnapshot:
        """Return a model at a revision, with its configuration and tokenizer.

        Args:
            repository: Name as `owner/name`.
            revision: Branch, tag or commit.

        Raises:
            ConfigError: There is no such repository or revision, it may not be read, or it is not
                in the cache and may not be downloaded.
            HubUnreachable: It is not in the cache, and the hub does not answer.
        """
        directory = self._download(repository, revision, DESCRIPTION)
        return HubSnapshot(directory, directory.name, self._sizes(repository, directory))

    def download(self, repository: str, commit: str, names: Collection[str]) -> Path:
        """Return the directory of a model at a commit, with at least the named files.

        Raises:
            ConfigError: See `describe`.
        """
        return self._download(repository, commit, names)

    def needs_token(self, repository: str, commit: str) -> bool:
        """Ask whether somebody without a token may not read a repository; one request."""
        import huggingface_hub
        from httpx2 import HTTPError
        from huggingface_hub.errors import RepositoryNotFoundError

        library: Any = huggingface_hub  # it types some arguments in part only
        endpoint = self._settings.hf_endpoint
        url = library.hf_hub_url(repository, "config.json", revision=commit, endpoint=endpoint)
        try:
            library.get_hf_file_metadata(url, token=False, endpoint=endpoint)
        except RepositoryNotFoundError:  # also of a repository that is gated
            return True
        except (OSError, HTTPError) as error:
            raise self._refusal(repository, commit, error) from None
        return False

    def _download(self, repository: str, revision: str, names: Collection[str]) -> Path:
        import huggingface_hub
        from httpx2 import HTTPError
        from huggingface_hub.errors import HFValidationError, XetDownloadError
        from huggingface_hub.utils import disable_progress_bars

        disable_progress_bars()  # its bars would be torn lines in the log of a worker
        library: Any = huggingface_hub  # it types some arguments in part only
        token = self._settings.hf_token
        try:
            found = library.snapshot_download(
                repository,
                revision=revision,
                cache_dir=self._settings.hf_cache,
                endpoint=self._settings.hf_endpoint,
                token=None if token is None else token.get_secret_value(),
                local_files_only=self._settings.hf_offline,
                allow_patterns=list(names),
            )
        except HFValidationError:
            raise ConfigError(
                f"{repository!r} is no name of a repository: write org/name"
            ) from None
        except (OSError, HTTPError, XetDownloadError, RuntimeError) as error:
            raise self._refusal(repository, revision, error) from None
        return Path(found)

    def _sizes(self, repository: str, directory: Path) -> dict[str, int]:
        from huggingface_hub import get_cached_repo_tree
        from huggingface_hub.errors import CachedRepoTreeNotFoundError

        here = {path.name: path.stat().st_size for path in directory.iterdir() if path.is_file()}
        if self._settings.hf_offline:
            return here
        try:
            files = get_cached_repo_tree(
                repository, revision=directory.name, cache_dir=self._settings.hf_cache
            )
        except CachedRepoTreeNotFoundError:
            return here
        return {file.path: file.size for file in files}

    def _refusal(self, repository: str, revision: str, error: Exception) -> UsageError:
        """Say in one line what went wrong: the original is long, and quotes requests."""
        from huggingface_hub import constants, errors

        host = (self._settings.hf_endpoint or "https://huggingface.co").rstrip("/")
        page = f"{host}/{repository}"
        here = f"run `hf download {repository} --revision {revision}` where there is a network"
        match error:
            case errors.GatedRepoError():
                line = f"{repository} is gated: accept its conditions at {page}, " + (
                    "which the account of your token has not done"
                    if self._has_token
                    else "then set HF_TOKEN to a token of that account"
                )
            case errors.RevisionNotFoundError():
                line = f"{repository} has no revision {revision!r}: see {page}/commits/main"
            case errors.RepositoryNotFoundError():
                may = "your token may not read it" if self._has_token else "it needs HF_TOKEN"
                line = (
                    f"there is no model {repository!r} on {host}, or it is private and {may}; nor "
                    f"is there a directory {repository!r} here: check the name"
                )
            case errors.LocalEntryNotFoundError() if (
                self._settings.hf_offline or constants.is_offline_mode()
            ):
                line = (
                    f"{repository} at {revision} is not in the local cache, or not all of it, and "
                    f"HF_HUB_OFFLINE allows no download: {here}"
                )
            case errors.HfHubHTTPError(response=response) if response.status_code in {401, 403}:
                line = (
                    f"{host} answers {response.status_code} for {repository}: set HF_TOKEN to a "
                    "token that it accepts, or unset it"
                )
            case OSError(errno=errno.ENOSPC):
                line = (
                    f"no space left for {repository}: make space, or set HF_HUB_CACHE to a "
                    "directory on a larger disk"
                )
            case OSError(errno=int(), strerror=reason):
                line = f"{repository} cannot be kept in the local cache: {reason}"
            case _:
                return HubUnreachable(
                    f"{host} {_answer(error.__cause__ or error)}, and {repository} at {revision} "
                    f"is not in the local cache: try again later, or {here}"
                )
        return ConfigError(line)

    @property
    def _has_token(self) -> bool:
        from huggingface_hub import get_token

        return self._settings.hf_token is not None or get_token() is not None


def _answer(error: BaseException) -> str:
    response = getattr(error, "response", None)
    return "does not answer" if response is None else f"answers {response.status_code}"
