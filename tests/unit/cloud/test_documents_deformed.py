"""Whatever a host writes, each reader of it ends the machine, closes its books and goes on.

The table of documents, deformations and readers; its cells for checkpoints, configurations and
summaries are in `test_promote.py`, `test_soundness.py`, `test_pull.py`, `test_context.py` and
`test_prepare.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import timedelta

import pytest

from tests.fakes.deformations import DEFORMED
from tests.unit.cloud.conftest import Renting
from tsgb.cloud.bill import make_bill
from tsgb.cloud.documents import RunDocuments
from tsgb.cloud.inventory import DeploymentRuns, take_inventory
from tsgb.cloud.lease import SKEW, end
from tsgb.cloud.monitor import look
from tsgb.cloud.reaper import reap
from tsgb.cloud.recover import reconcile, release_all
from tsgb.cloud.running import RunningInstance
from tsgb.cloud.terminate import release
from tsgb.cloud.terminate_by_hand import pick, terminate_by_hand
from tsgb.errors import TSGBError

REPORTS = ("machines/0001/beat.json", "machines/0001/exit.json")


class RunsInMemory(DeploymentRuns):
    """The runs of a test, which lie in no place that a URL names."""

    def documents(self, run: str) -> RunDocuments:
        return OPENED[run]


OPENED: dict[str, RunDocuments] = {}


def runs_of(*given: Renting) -> RunsInMemory:
    OPENED.clear()
    OPENED.update({one.documents.run.run_id: one.documents for one in given})
    return RunsInMemory(url="memory://fake")


def by_flow(renting: Renting, running: RunningInstance) -> None:
    session = renting.session
    for _ in range(3):
        look(session, running)
        renting.cloud.sleep(20)
    release(session, running, "enough", lambda: 0)


def by_hook(renting: Renting, _running: RunningInstance) -> None:
    release_all(renting.flow(), "its flow run ended")


def by_next_flow(renting: Renting, _running: RunningInstance) -> None:
    renting.cloud.sleep(2 * 3600)
    assert reconcile(renting.flow()) is None


def by_reaper(renting: Renting, _running: RunningInstance) -> None:
    renting.cloud.sleep(3 * 3600)
    cloud = renting.cloud
    found = reap(cloud, runs_of(renting), "home", now=cloud.now, sleep=cloud.sleep)
    renting.told += [*found.lines(), str(found.to_json())]


def by_hand(renting: Renting, _running: RunningInstance) -> None:
    cloud, runs = renting.cloud, runs_of(renting)
    inventory = take_inventory(cloud, runs, "home", now=cloud.now)
    items = pick(inventory, list(cloud.servers), force=True, deployment="home", skew=SKEW)
    ended = terminate_by_hand(
        cloud,
        runs,
        items,
        now=cloud.now,
        sleep=cloud.sleep,
        grace=timedelta(seconds=20),
        skew=SKEW,
        note=renting.told.append,
    )
    renting.told += map(str, ended)
    release_all(renting.flow(), "a live flow closes the books itself")


READERS: Mapping[str, Callable[[Renting, RunningInstance], None]] = {
    "flow": by_flow,
    "hook": by_hook,
    "next flow": by_next_flow,
    "reaper": by_reaper,
    "machines": by_hand,
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("what", DEFORMED)
def test_a_report_keeps_no_machine_and_no_books(renting: Renting, what: str, reader: str) -> None:
    renting.session = session = renting.flow()
    running = renting.rent(session)
    folder = running.intent.exchange
    renting.cloud.sleep(100)
    for name in REPORTS:
        renting.seen(folder).write_bytes(name, DEFORMED[what])
    before = set(renting.files.files)
    READERS[reader](renting, running)
    assert renting.cloud.servers == {}
    ledger = renting.flow().ledger
    assert not ledger.accounts[1].is_open
    assert 0 < ledger.spent < 5_000_000
    bill = make_bill(renting.documents, ledger, 0)
    assert "\x1b" not in f"{bill}{bill.as_json()}"
    assert all(line.isprintable() and len(line) < 5000 for line in renting.told)
    assert set(renting.files.files) - before <= {"budget.json"}, "nothing else was made"


@pytest.mark.parametrize("name", ["lease.json", "budget.json", "attempts/0001.json"])
@pytest.mark.parametrize("what", DEFORMED)
def test_a_document_of_one_run_keeps_no_machine_of_another(what: str, name: str) -> None:
    """Where machines have the store's password, they may write over what a flow wrote."""
    bad, good = Renting("bad"), Renting("good")
    good.cloud = bad.cloud
    for one in (bad, good):
        session = one.flow()
        one.rent(session)
        if one is good or name != "lease.json":
            lease = one.documents.lease()
            assert lease is not None
            one.documents.put_lease(end(lease, "done"))
    bad.documents.run.write_bytes(name, DEFORMED[what])
    cloud = bad.cloud
    cloud.sleep(180)
    runs = runs_of(bad, good)
    found = reap(cloud, runs, "home", now=cloud.now, sleep=cloud.sleep)
    left = {server.name.split("/")[2] for server in cloud.servers.values()}
    assert left <= ({"bad"} if name == "lease.json" else set())
    assert all(line.isprintable() for line in found.lines())
    cloud.at += timedelta(hours=72)  # whatever the lease says, the label's deadline is over
    reap(cloud, runs, "home", now=cloud.now, sleep=cloud.sleep)
    assert cloud.servers == {}


@pytest.mark.parametrize("name", ["lease.json", "budget.json", "attempts/0001.json"])
@pytest.mark.parametrize("what", DEFORMED)
def test_a_flow_that_cannot_read_its_own_documents_says_so(
    renting: Renting, what: str, name: str
) -> None:
    """It goes on, or ends with one line that names the document; nothing runs on unseen."""
    renting.rent(renting.flow())
    renting.cloud.sleep(3600)
    renting.documents.run.write_bytes(name, DEFORMED[what])
    said = ""
    try:
        reconcile(renting.flow())
    except TSGBError as error:
        said = str(error)
    assert said.isprintable()
    assert name in said or "another flow" in said or renting.cloud.servers == {}
