"""`tsgb doctor`: check whether a run on rented machines would work from here."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from tsgb.cli.options import JsonOption, takes
from tsgb.errors import UsageError
from tsgb.run_options import RunOptions, flag_of

if TYPE_CHECKING:
    from tsgb.cloud.offers import OfferCount
    from tsgb.models.requirements import Requirements
    from tsgb.settings import Settings


@takes("store", "service_url", "model", "target_model", "black_boxes")
def doctor(options: RunOptions, as_json: JsonOption = False) -> None:
    """Check key, credit, store, disk, clock, Prefect and image; exit code 1 if one is not well.

    It reads, and writes and deletes one small file in the store; it costs nothing. With --model it
    looks at that model instead: a few MB of it, never its weights, what memory it takes, and with a
    key how many offers fit it.
    """
    if options.model is not None:
        _show_model(options.model, options, as_json=as_json)
        return
    check_beside_model(options)
    from tsgb.cli.account import AccountContext
    from tsgb.cli.checks import all_checks
    from tsgb.cli.output import console, print_json
    from tsgb.errors import ExitCode

    checks = all_checks(AccountContext.read(options))
    if as_json:
        print_json(
            {
                "ok": all(check.ok is not False for check in checks),
                "checks": [
                    {
                        "name": check.name,
                        "ok": check.ok,
                        "found": check.found,
                        "way_out": check.way_out,
                    }
                    for check in checks
                ],
            }
        )
    else:
        out = console()
        for check in checks:
            word = {True: "ok", False: "NOT OK", None: "-"}[check.ok]
            way_out = f": {check.way_out}" if check.way_out else ""
            out.print(
                f"{word:>6}  {check.name:<8} {check.found}{way_out}", markup=False, soft_wrap=True
            )
    if any(check.ok is False for check in checks):
        raise typer.Exit(ExitCode.FAILURE)


def check_beside_model(options: RunOptions) -> None:
    """Refuse models that are looked at beside --model only.

    Raises:
        UsageError: One is given without it.
    """
    for name in ("target_model", "black_boxes"):
        if getattr(options, name) is not None and options.model is None:
            raise UsageError(f"{flag_of(name).name} is looked at beside --model: give both")


def _show_model(name: str, options: RunOptions, *, as_json: bool) -> None:
    from dataclasses import asdict

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
    from tsgb.errors import ProviderError

    try:
        policy = LaunchPolicy.of(settings, needs.machine(settings))
        with provider_of(settings) as provider:
            return count_offers(FoundOffers.search(provider, policy, narrow=False), policy)
    except (ProviderError, UsageError) as error:
        return f"not looked for: {error}"


def _millions(num: int) -> str:
    return f"{num / 1e9:.3g}B" if num >= 1e9 else f"{num / 1e6:.3g}M"
