"""Checks of `tsgb doctor`: each reports a result, and advice if it failed."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from secrets import token_hex

import httpx
from pydantic import SecretStr

from tsgb.checkpoint.filesystem import open_filesystem
from tsgb.checkpoint.urls import place
from tsgb.cli.account import AccountContext, utc
from tsgb.cloud.connect import check_url, connect
from tsgb.cloud.exchange import Exchange, check_reach
from tsgb.cloud.forecast import FoundOffers, count_offers
from tsgb.cloud.policy import LaunchPolicy
from tsgb.cloud.provider import AccountFacts, Provider, is_loopback
from tsgb.errors import ConfigError, ProviderAuthError, ProviderError, StoreError, UsageError
from tsgb.settings import Settings

_TIMEOUT_SECONDS = 5.0
_CACHE_GIB = 4.0
_IMAGE = re.compile(
    r"([a-z0-9.-]+(:\d+)?/)?[a-z0-9]+([._/-]+[a-z0-9]+)*"
    r"(:[\w][\w.-]{0,127})?(@sha256:[0-9a-f]{64})?"
)
_MORE_SCOPES = "instance_write shows only when something is rented or destroyed"
_OWN_EXCHANGE = (
    "give them a directory and an account of their own with TSGB_EXCHANGE_URL, TSGB_EXCHANGE_USER "
    "and TSGB_EXCHANGE_PASS"
)


@dataclass(frozen=True, slots=True)
class Check:
    """One line of `tsgb doctor`.

    Example: `Check("credit", True, "$25.00, budget of a run $5.00")`
    """

    name: str
    """Name of the thing that was checked."""
    ok: bool | None
    """Whether the check passed; None if it could not be made, or was not necessary."""
    found: str
    """Result of the check, for people."""
    way_out: str = ""
    """Advice for a check that failed; empty otherwise."""


def all_checks(account: AccountContext) -> list[Check]:
    """Make all checks; only those that need the key depend on an earlier one."""
    settings = account.settings
    return [
        *_service(settings),
        _budget(settings),
        *_store(account),
        _disk(settings),
        _prefect(),
        _image(settings),
    ]


# -- the service ---------------------------------------------------------------------------


def _service(settings: Settings) -> Iterator[Check]:
    url = check_url(settings.vast_url)
    key = settings.vast_api_key
    if key is None or not key.get_secret_value().strip():
        yield Check(
            "key",
            False,
            "VAST_API_KEY is not set",
            "create a key with misc, user_read, instance_read and instance_write, put it into .env",
        )
    else:
        try:
            with connect(key, url, retry_seconds=_TIMEOUT_SECONDS) as provider:
                yield from _account(settings, provider)
        except ProviderAuthError as error:  # this cannot be a key
            yield Check("key", False, str(error))
    yield clock_check(url, utc, timedelta(seconds=settings.skew_seconds))


def _account(settings: Settings, provider: Provider) -> Iterator[Check]:
    try:
        facts = provider.facts()
    except ProviderError as error:
        yield Check("key", False, str(error))
        if error.status != 403:  # a key that lacks one permission may have the others
            return
    else:
        yield Check("key", True, f"accepted by {settings.vast_url}, may read the account")
        yield _credit(facts.credit, settings.budget)
        yield _facts(facts)
    try:
        yield _offers(settings, provider)
    except ProviderError as error:
        yield Check("search", False, str(error))
    try:
        num = len(provider.list())
        yield Check("list", True, f"{num} instances; {_MORE_SCOPES}")
    except ProviderError as error:
        yield Check("list", False, str(error))


def _offers(settings: Settings, provider: Provider) -> Check:
    policy = LaunchPolicy.of(settings)
    count = count_offers(FoundOffers.search(provider, policy, narrow=False), policy)
    found = f"{count}; for a model see `tsgb plan --model`"
    way_out = "" if count.fitting else "raise TSGB_MAX_PRICE or ask for less of a machine"
    return Check("search", count.fitting > 0, found, way_out)


def _credit(credit: float, budget: float) -> Check:
    found = f"${credit:.2f}; the budget of a run is ${budget:.2f}"
    if credit >= budget:
        return Check("credit", credit > 0, found, "" if credit > 0 else "add credit")
    return Check("credit", False, found, "add credit, or set TSGB_BUDGET to less")


def _facts(facts: AccountFacts) -> Check:
    if warnings := facts.warnings():
        return Check("account", True, "; ".join(warnings))
    known = {
        "it has no variables that every machine gets": facts.variables is not None,
        "auto-billing is off": facts.bills_itself is not None,
    }
    told = [text for text, is_known in known.items() if is_known]
    return Check("account", True, "; ".join(told) or "the service does not tell more of it")


def _budget(settings: Settings) -> Check:
    found = f"${settings.budget:.2f} for a run, ${settings.max_price:.3f}/h for a machine"
    if settings.budget > 0:
        return Check("budget", True, found)
    return Check("budget", False, found, "nothing is rented for that: set TSGB_BUDGET")


def clock_check(url: str, now: Callable[[], datetime], skew: timedelta) -> Check:
    """Compare this machine's clock with that of the service, which needs no key.

    Args:
        url: URL of the service, or of any server.
        now: Returns the time of day on this machine.
        skew: Difference between two clocks that is tolerated.
    """
    asked = now()
    try:
        answer = httpx.get(url, timeout=_TIMEOUT_SECONDS, trust_env=not is_loopback(url))
        theirs = parsedate_to_datetime(answer.headers["date"])
    except (httpx.HTTPError, KeyError, ValueError) as error:
        reason = "sends no date" if isinstance(error, KeyError) else f"{error}"
        return Check("clock", None, f"not compared: {url}: {reason}")
    theirs = theirs.replace(tzinfo=theirs.tzinfo or UTC)
    nearest = min(max(theirs, asked), now())  # the answer was written between the two readings
    off = (nearest - theirs).total_seconds()
    offset = f"{abs(off):.0f} s {'ahead of' if off > 0 else 'behind'} {url}"
    if abs(off) <= 2:
        return Check("clock", True, f"as that of {url}")
    if abs(off) < skew.total_seconds():
        return Check("clock", True, f"{offset}, within TSGB_SKEW_SECONDS")
    return Check(
        "clock",
        False,
        f"{offset}; TSGB_SKEW_SECONDS allows {skew.total_seconds():.0f} s",
        "set this machine's clock (NTP): leases are judged by it",
    )


# -- this machine --------------------------------------------------------------------------


def _store(account: AccountContext) -> Iterator[Check]:
    runs, settings = account.runs, account.settings
    yield _written("store", runs.url, runs.user, runs.password)
    exchange = Exchange.of(settings, runs.url)
    if exchange.is_own:
        yield _written("exchange", exchange.url, exchange.user, exchange.password)
    try:
        check_reach(exchange, settings.vast_url)
    except UsageError as error:
        yield Check("reach", False, str(error))
        return
    sees = exchange.what_machines_can_do
    if exchange.is_own or exchange.password is None:
        yield Check("machines", True, sees)
    elif settings.manifest_key is None:
        yield Check("machines", False, f"{sees}, and checkpoints are not signed", _OWN_EXCHANGE)
    else:
        yield Check("machines", True, f"{sees}; checkpoints are signed; {_OWN_EXCHANGE}")


def _written(name: str, url: str, user: str | None, password: SecretStr | None) -> Check:
    """Write a small file, read it back and delete it."""
    path, content = f"doctor-{token_hex(4)}.txt", token_hex(16).encode()
    where = place(url)
    try:
        files = open_filesystem(url, user, password, deadline_seconds=_TIMEOUT_SECONDS)
        files.write(path, content)
        same = files.read(path) == content
        files.delete(path)
    except StoreError as error:
        return Check(name, False, f"{where}: {error}")
    except FileNotFoundError:
        same = False
    if same:
        return Check(name, True, f"{where}: written, read back, deleted")
    return Check(name, False, f"{where}: what was written was not read back", "use another")


def _disk(settings: Settings) -> Check:
    try:
        free = shutil.disk_usage(settings.make_cache_dir()).free / 2**30
    except ConfigError as error:
        return Check("disk", False, str(error))
    found = f"{free:.1f} GiB free for {settings.cache_dir}, which takes up to {_CACHE_GIB:g}"
    if free >= _CACHE_GIB:
        return Check("disk", True, found)
    return Check("disk", False, found, "make space, or set TSGB_CACHE_DIR to a larger disk")


def _prefect() -> Check:
    try:
        import prefect
        from prefect.settings import get_current_settings

        url = get_current_settings().api.url
    except ImportError as error:
        return Check("prefect", False, f"{error}", "install tsgb anew")
    except RuntimeError as error:  # without HOME and passwd entry, on import
        return Check("prefect", False, f"{error}", "set HOME to a directory that you can write")
    except ValueError as error:
        return Check(
            "prefect",
            False,
            f"its settings cannot be read: {' '.join(str(error).split())}",
            "mend its variables, .env, prefect.toml or pyproject.toml here; `tsgb experiment` "
            "needs none of them",
        )
    if url is None:
        return Check("prefect", True, f"{prefect.__version__}; no server, tsgb brings its own")
    try:
        httpx.get(f"{url}/health", timeout=_TIMEOUT_SECONDS).raise_for_status()
    except httpx.HTTPError as error:
        return Check(
            "prefect",
            False,
            f"{url} does not answer: {error}",
            "start the server, or unset PREFECT_API_URL",
        )
    return Check("prefect", True, f"{prefect.__version__}; {url} answers")


def _image(settings: Settings) -> Check:
    image = settings.image
    if _IMAGE.fullmatch(image) is None:
        return Check("image", False, f"{image!r} is no image", "set TSGB_IMAGE to name:tag")
    return Check("image", True, image)
