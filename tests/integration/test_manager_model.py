"""`tsgb manager run` with a model of one's own, on machines that stand in for cards.

The model is pushed; the planner names the class of card, the search finds it; hosts have an old
driver, keep the probe from running, have a slow line, and preempt. The end is that of a run on one
computer which nobody disturbed, bit for bit, it is evaluated, and the bill is right.

It takes minutes. In the default run `test_rental.py` has the bad hosts, `test_manager_run.py` the
preemptions and the bill, and `tests/unit/models/test_pushed.py` the pieces.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from flows.prepare import arm_configs
from tests.fakes.chat_model import save_chat_model
from tests.fakes.manager import Manager
from tests.fakes.sentinels import leaking_files, leaks
from tests.integration.test_chat_model import SMALLEST
from tests.integration.test_kill import STATE, TENSORS, undisturbed, without_time
from tests.integration.test_manager_ends import set_options
from tests.integration.test_manager_run import CENT
from tests.integration.test_rented_machine import FAKE_PROBE
from tsgb.checkpoint.reader import CheckpointReader
from tsgb.cloud.orphans import InstanceLabel
from tsgb.config import Arm, Profile, RunConfig
from tsgb.run_options import RunOptions

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(900)]

CARD_IMAGE = {
    # The simulated host says what the driver in its container would; nothing here has a card.
    "TSGB_PROBE_COMMAND": shlex.join([sys.executable, "-c", FAKE_PROBE]),
    # In each container's own directory, so that each one downloads the model.
    "TSGB_CACHE_DIR": "cache",
}
SIZES: Mapping[str, Any] = {
    **SMALLEST,
    "selfplay": {**SMALLEST["selfplay"], "rounds": 40},
    "checkpoint_interval": 8,
}
BAD_HOSTS: tuple[tuple[Mapping[str, Any], str], ...] = (
    ({"cuda": 12.4}, "the driver carries CUDA 12.4"),
    ({"strips": ["TSGB_CARD_GB"]}, "its heartbeat has no probe of the card"),
    ({"inet_down": 0.1}, "no heartbeat within 30 s of its rental"),
)
"""What is wrong with the machines that are rented first, and how they end."""
PREEMPTIONS = 2


class Misfortune(threading.Thread):
    """Spoils the machines that are rented first, and preempts the next ones while they train."""

    def __init__(self, manager: Manager) -> None:
        super().__init__(daemon=True)
        self.vast = manager.vast
        self.documents = manager.documents
        self.exchange = manager.directory / "machines"
        self.left = PREEMPTIONS
        self.over = threading.Event()
        self.read: list[str] = []
        """Names of files that machines saw, which are deleted when their attempt is over."""
        self.leaking: list[str] = []
        """Those with a secret in them."""

    def run(self) -> None:
        spoiled: list[int] = []
        preempted: list[int] = []
        while self.left and not self.over.wait(0.1):
            for row in self.vast.sim("state")["instances"]:
                number = row["id"]
                if number in spoiled or number in preempted:
                    continue
                if len(spoiled) < len(BAD_HOSTS):
                    change, _ = BAD_HOSTS[len(spoiled)]
                    self.vast.sim(f"machines/{row['machine_id']}", change)
                    spoiled.append(number)
                elif self.left and row["phase"] == "running" and self._trains(row):
                    self._look()
                    self.vast.do(number, "preempt", outage_seconds=600)
                    preempted.append(number)
                    self.left -= 1

    def _look(self) -> None:
        for directory, _, names in os.walk(self.exchange):
            for name in names:
                with suppress(FileNotFoundError):  # the machine is at work on them
                    data = Path(directory, name).read_bytes()
                    self.read.append(name)
                    self.leaking += [name] if leaks(data) else []

    def _trains(self, row: Mapping[str, Any]) -> bool:
        label = InstanceLabel.parse(row["label"])
        assert label is not None
        arms = (self.documents.heartbeat(label.attempt) or {}).get("arms") or {}
        return any((arm.get("step") or 0) > 0 for arm in arms.values())


def test_a_pushed_model_is_trained_on_cards_and_evaluated(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    # Rentals take a second to boot, in which their machine is spoiled.
    service = {"boot_seconds": (1.0, 1.5), "wheels_gb": "0.13", "download_speed": 100.0}
    with Manager(tmp_path, CARD_IMAGE, num_machines=240, **service) as manager:
        pushed = manager.push_model(str(save_chat_model(tmp_path / "tiny")))
        config = config_of(pushed["model"])
        wanted, _ = undisturbed(config, tmp_path / "home")
        misfortune = Misfortune(manager)
        misfortune.start()
        try:
            code, out = manager.run(*arguments(pushed["model"]), TSGB_PROVISION_SECONDS="30")
        finally:
            misfortune.over.set()
            misfortune.join()
        log = manager.log.read_text()
        assert code == 0, log
        assert misfortune.left == 0, f"it was over before all trouble had come\n{log}"
        reader = CheckpointReader(manager.open())
        ref = reader.newest()
        assert ref is not None
        assert ref.step == config.total_steps
        files = reader.read(ref)
        assert [name for name in TENSORS if files[name] != wanted[name]] == []
        assert without_time(files[STATE]) == without_time(wanted[STATE])
        check_bill(manager, log)
        assert manager.push_model(str(tmp_path / "tiny")) == {**pushed, "sent_bytes": 0}
    pieces = list((tmp_path / "machines" / "_models" / "pieces").iterdir())
    assert sum(piece.stat().st_size for piece in pieces) == pushed["sent_bytes"] == pushed["bytes"]
    assert {"config.json", "lease.json", "beat.json"} <= set(misfortune.read)
    assert misfortune.leaking == []
    assert leaking_files(tmp_path / "machines") == []
    document = json.loads(out)
    assert [document[stage]["state"] for stage in ("stage1", "stage2")] == ["COMPLETED"] * 2
    assert {row["guard"] for row in document["results"]} >= {"none", "untrained", "selfplay"}
    record_property("log", log)


def config_of(model: str) -> RunConfig:
    """What is trained."""
    options = RunOptions(
        profile=Profile.SMOKE,
        env="canary",
        arms=[Arm.SELFPLAY],
        overrides={**SIZES, "model": {"pretrained": model}},
    )
    return arm_configs(options)[Arm.SELFPLAY]


def arguments(model: str) -> list[str]:
    """The same on the command line."""
    words = ["--profile", "smoke", "--env", "canary", "--model", model, "--arms", "selfplay"]
    return [*words, "--json", *set_options(SIZES)]


def check_bill(manager: Manager, log: str) -> None:
    """Each machine ended for its own reason, was the only one, and is paid for."""
    attempts = list(manager.documents.attempts())
    ends = [(one.result.cause.value, one.result.message) for one in attempts if one.result]
    for (cause, message), (_, reason) in zip(ends, BAD_HOSTS, strict=False):
        assert (cause, reason in message) == ("bad_host", True), message
    causes = [cause for cause, _ in ends]
    assert causes[len(BAD_HOSTS) :] == [*["preempted"] * PREEMPTIONS, "done"], log
    rented = [one.intent for one in attempts if one.intent is not None]
    assert {intent.card_gb for intent in rented} == {8.0}, "the class that the planner names"
    bill = manager.vast.sim("ledger")
    assert not any(one["live"] for one in bill["instances"].values())
    assert bill["max_live"] == 1
    spent = Decimal(manager.ledger().spent) / 10**6
    assert abs(spent - Decimal(bill["spent"])) < CENT
    sys.stdout.write(f"\n{causes}, ${spent} in the books, ${bill['spent']} billed\n")
