"""`tsgb doctor`: check whether a run on rented machines would work from here."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from tsgb.cli.options import JsonOption, takes
from tsgb.errors import ProviderError, UsageError
from tsgb.run_options import RunOptions, flag_of

if TYPE_CHECKING:
    from flows.probe import ProbeResult
    from tsgb.cli.account import AccountContext
    from tsgb.cli.checks import Check
    from tsgb.cloud.offers import OfferCount
    from tsgb.models.requirements import Requirements
    from tsgb.settings import Settings


@takes("store", "service_url", "model", "target_model", "black_boxes")
def doctor(
    *,
    probe: Annotated[
        bool,
        typer.Option("--probe", help="Rent a machine for a minute, too: a cent or two. It asks."),
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Rent it without being asked.")] = False,
    dollars: Annotated[
        float, typer.Option("--dollars", min=0.001, max=5, help="Dollars that the probe may cost.")
    ] = 0.05,
    options: RunOptions,
    as_json: JsonOption = False,
) -> None:
    """Check key, credit, store, disk, clock, Prefect and image; exit code 1 if one is not well.

    It reads, and writes and deletes one small file in the store; it costs nothing. With --model it
    looks at that model instead: a few MB of it, never its weights, what memory it takes, and with a
    key how many offers fit it.
    With --probe it also rents the cheapest machine that fits, once all else is well: it shows that
    a start there works, from the image to the first heartbeat, and is destroyed.
    """
    _check_probe(options, dollars, asked=probe, yes=yes, as_json=as_json)
    if options.model is not None:
        _show_model(options.model, options, as_json=as_json)
        return
    check_beside_model(options)
    from tsgb.cli.account import AccountContext
    from tsgb.cli.checks import all_checks
    from tsgb.cli.output import print_json
    from tsgb.errors import ExitCode

    account = AccountContext.read(options)
    checks = all_checks(account)
    if not as_json:
        _show(checks)
    if probe:
        made = _probe(account, checks, dollars, yes=yes)
        checks += made
        if not as_json:
            _show(made)
    if as_json:
        print_json(
            {
                "ok": all(check.ok is not False for check in checks),
                "checks": [asdict(check) for check in checks],
            }
        )
    if any(check.ok is False for check in checks):
        raise typer.Exit(ExitCode.FAILURE)


def _show(checks: Sequence[Check]) -> None:
    from tsgb.cli.output import console

    out = console()
    for check in checks:
        word = {True: "ok", False: "NOT OK", None: "-"}[check.ok]
        way_out = f": {check.way_out}" if check.way_out else ""
        out.print(
            f"{word:>6}  {check.name:<8} {check.found}{way_out}", markup=False, soft_wrap=True
        )


def _check_probe(
    options: RunOptions, dollars: float, *, asked: bool, yes: bool, as_json: bool
) -> None:
    """Refuse a probe that nobody has agreed to and nobody can be asked about.

    Raises:
        UsageError: There is no terminal and no --yes; or the options contradict each other.
    """
    if yes and not asked:
        raise UsageError("--yes is the answer to --probe: give both")
    if asked and options.model is not None:
        raise UsageError("--probe looks at no model: leave --model away, or --probe")
    if asked and not yes and (as_json or not sys.stdin.isatty()):
        raise UsageError(f"--probe rents a machine for up to ${dollars:g}: give --yes too")


def _probe(
    account: AccountContext, checks: Sequence[Check], dollars: float, *, yes: bool
) -> list[Check]:
    """Rent a machine if all else is well and the user agrees; return what it has shown."""
    from flows.probe import RUN, find_machine, probe_account
    from tsgb.cli.checks import Check
    from tsgb.errors import BudgetReached, NoOffer, StoreError

    def note(line: str) -> None:
        typer.echo(line, err=True)

    if any(check.ok is False for check in checks):
        return [Check("probe", None, "nothing was rented: first mend what is not well")]
    try:
        earlier = account.runs.documents(RUN).endings()
        found = find_machine(account.settings, dollars, earlier)
    except (NoOffer, BudgetReached, ProviderError, StoreError) as error:
        return [Check("probe", False, f"nothing was rented: {error}")]
    note(f"the probe rents {found}")
    if not yes and not typer.confirm("Rent it?", err=True):
        return [Check("probe", None, "nothing was rented")]
    return list(_shown(probe_account(account.settings, account.runs.url, dollars, note)))


def _shown(result: ProbeResult) -> Iterator[Check]:
    """Yield a line on each thing that a probe has shown."""
    from tsgb.cli.checks import Check

    if result.failure:
        on = f"{result.machine}: " if result.machine else "no machine was rented: "
        yield Check("probe", False, f"{on}{result.failure}")
    else:
        boot = "" if result.boot_seconds is None else f" {result.boot_seconds:.0f} s after that"
        yield Check("probe", True, f"{result.machine} was rented at ${result.hourly:.3f}/h")
        yield Check(
            "start",
            True,
            "it got image, code and packages, reached the exchange with its own password, and was "
            f"heard of{boot}",
        )
        card = result.card
        told = (
            "none was asked for"
            if card is None
            else f"{card.gpu_name}, driver {card.driver or '?'}, CUDA {card.cuda}, "
            f"{card.memory_gb:.1f} GB, {card.tflops:.1f} TFLOPS in products that were right"
        )
        yield Check("card", None if card is None else True, told)
    if result.machine:
        gone = "it is destroyed, and neither its number nor the list of all shows it"
        yield Check("end", result.is_gone, gone if result.is_gone else "it may still be there")
    yield Check("cost", True, f"${result.dollars:.4f}")


def check_beside_model(options: RunOptions) -> None:
    """Refuse models that are looked at beside --model only.

    Raises:
        UsageError: One is given without it.
    """
    for name in ("target_model", "black_boxes"):
        if getattr(options, name) is not None and options.model is None:
            raise UsageError(f"{flag_of(name).name} is looked at beside --model: give both")


def _show_model(name: str, options: RunOptions, *, as_json: bool) -> None:
    from tsgb.cli.output import console, print_json
    from tsgb.models.requirements import Requirements
    from tsgb.models.source import inspect
    from tsgb.settings import load_settings

    settings = options.applied_to(load_settings())
    cache = settings.cache_dir / "models"
    facts = inspect(name, settings, cache)
    target = options.target_model and inspect(options.target_model, settings, cache)
    boxes = [inspect(box, settings, cache) for box in options.black_boxes or []]
    needs = Requirements.of(
        facts,
        target or None,
        boxes,
        arms=len(options.trained_arms),
        workers=settings,
    )
    offers = _offers(needs, settings)
    if as_json:
        known = asdict(facts)
        del known["sizes"], known["directory"]
        counted = {} if isinstance(offers, str) else offers.document()
        print_json({**known, "memory": needs.document(), **counted})
        return
    lines = {
        "model": facts.name,
        "family": f"{facts.family} ({facts.architecture})",
        "size": f"{_millions(facts.parameters)} parameters, {facts.layers} layers, {facts.dtype}, "
        f"{facts.weight_bytes / 1e9:.3g} GB",
        "tokenizer": facts.tokenizer,
        "template": "chat template with a system role"
        if facts.system_role
        else "chat template without a system role: its text goes before the first user message",
        **needs.lines(),
        "offers": str(offers),
    }
    out = console()
    for label, text in lines.items():
        out.print(f"{label:>11}  {text}", markup=False, soft_wrap=True)


def _offers(needs: Requirements, settings: Settings) -> OfferCount | str:
    """Return how many offers fit a model, by one search; or why that is not known."""
    from flows.rented import provider_of
    from tsgb.cloud.forecast import FoundOffers, count_offers
    from tsgb.cloud.policy import LaunchPolicy

    try:
        policy = LaunchPolicy.of(settings, needs.machine(settings))
        with provider_of(settings) as provider:
            return count_offers(FoundOffers.search(provider, policy, narrow=False), policy)
    except (ProviderError, UsageError) as error:
        return f"not looked for: {error}"


def _millions(num: int) -> str:
    return f"{num / 1e9:.3g}B" if num >= 1e9 else f"{num / 1e6:.3g}M"
