"""The create request: what is checked, in which order, and what each refusal leaves behind."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from decimal import Decimal
from random import Random
from typing import Any

from tests.fakes.vast.contracts import Contract
from tests.fakes.vast.keys import Keys
from tests.fakes.vast.messages import Answer, Request, no_such_ask, ok, refused
from tests.fakes.vast.offers import Machine
from tests.fakes.vast.world import QUEUED_MESSAGE, World

MIN_BID, MAX_BID = Decimal("0.001"), Decimal(128)
MIN_DISK_GB = 8
MAX_LABEL, MAX_IMAGE = 256, 1024
MAX_ENV_NAME, MAX_ENV = 256, 32768


def create(world: World, keys: Keys, request: Request, ask_id: int) -> Answer:
    """`PUT /api/v0/asks/{id}/`: there is no idempotency key, and an error can leave a contract."""
    body = request.body if isinstance(request.body, dict) else {}
    price = body.get("price")
    try:
        env = _check(world, body)
    except ValueError as error:
        return refused(400, "invalid_args", str(error), ask_id=ask_id)
    if price is not None and not MIN_BID <= price <= MAX_BID:
        message = f"price must be between {MIN_BID} and {MAX_BID}"
        return refused(400, "invalid_price", message, ask_id=ask_id)
    if world.ledger.credit(world.now) <= 0:
        return refused(400, "insufficient_credit", "Your account lacks credit.", ask_id=ask_id)
    machine = _machine(world, request, body, ask_id)
    if machine is None:
        return no_such_ask(ask_id)
    if price is not None and price < machine.min_bid:
        return _bid_too_low(world, keys, machine, body, env, ask_id)
    contract = world.create(machine, body, env)
    key = _instance_key(keys, contract)
    queued = body.get("target_state", "running") == "running" and not world.start(contract)
    more = {"msg": QUEUED_MESSAGE} if queued else {}
    return ok(new_contract=contract.id, instance_api_key=key, **more)


def _machine(
    world: World, request: Request, body: Mapping[str, Any], ask_id: int
) -> Machine | None:
    """Whose offer it is; None if it is gone, or cannot start now and the caller will not wait."""
    machine = world.machine_of_ask(ask_id)
    if machine is not None and world.now >= machine.end_date:
        return None
    if machine is None:
        return world.past_asks.get(ask_id) if request.duplicated else None
    draw = Random(f"{world.options.seed}/refusal/{ask_id}").random()
    if draw < world.options.refusal:
        world.take(machine, world.options.outage_seconds)
    if not machine.is_free(world.now) and body.get("cancel_unavail", body.get("price") is None):
        world.renew_ask(machine)
        return None
    return machine


def _bid_too_low(
    world: World, keys: Keys, machine: Machine, body: dict[str, Any], env: Any, ask_id: int
) -> Answer:
    how = world.options.low_bid
    more: dict[str, Any] = {"ask_id": ask_id}
    if how != "refused":
        contract = world.create(machine, body, env)
        _instance_key(keys, contract)
        more["new_contract"] = contract.id
    return refused(200 if how == "success_false" else 400, "invalid_price", "bid too low", **more)


def _instance_key(keys: Keys, contract: Contract) -> str:
    keys.add(f"C.{contract.id}", frozenset(), instance=contract.id, token=contract.key)
    return contract.key


def _check(world: World, body: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The environment of a body that is in order.

    Raises:
        ValueError: it is not.
    """
    for name in ("price", "disk"):
        if not isinstance(body.get(name), int | Decimal | None):
            raise ValueError(f"{name} {body[name]!r} is no number")  # noqa: TRY004
    image = body.get("image") or body.get("template_hash_id")
    if not image or len(str(image)) > MAX_IMAGE:
        raise ValueError("image or template_hash_id is required, at most 1024 characters")
    if len(body.get("label") or "") > MAX_LABEL:
        raise ValueError(f"label is longer than {MAX_LABEL} characters")
    if Decimal(body.get("disk") or 10) < MIN_DISK_GB:
        raise ValueError(f"disk must be at least {MIN_DISK_GB} GB")
    args = "".join(map(str, body.get("args") or [])) + (body.get("args_str") or "")
    if len(args + (body.get("onstart") or "")) > world.options.onstart_limit:
        raise ValueError(f"onstart and args exceed {world.options.onstart_limit} characters")
    env = parse_env(body.get("env"))
    if any(len(name) > MAX_ENV_NAME for name, _ in env):
        raise ValueError(f"a name in env is longer than {MAX_ENV_NAME} characters")
    if sum(len(name) + len(value) for name, value in env) > MAX_ENV:
        raise ValueError(f"env is longer than {MAX_ENV} characters")
    return env


def parse_env(env: Any) -> list[tuple[str, str]]:
    """From the JSON object that everybody sends, or the docker flags that the yaml documents.

    Raises:
        ValueError: it is neither.
    """
    if env is None:
        return []
    if isinstance(env, Mapping):
        return [(str(name), str(value)) for name, value in env.items()]
    if not isinstance(env, str):
        raise ValueError("env is neither an object nor a string of docker flags")  # noqa: TRY004
    pairs: list[tuple[str, str]] = []
    words = iter(shlex.split(env))
    for word in words:
        value = next(words, "")
        if word == "-p":
            pairs.append((f"-p {value}", "1"))
        elif word == "-e" and re.match(r"[^=]+=", value):
            name, _, given = value.partition("=")
            pairs.append((name, given))
        else:
            raise ValueError(f"env: {word!r} {value!r} is neither -e NAME=VALUE nor -p PORTS")
    return pairs
