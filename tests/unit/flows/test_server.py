"""A Prefect server that cannot be used is one line."""

from __future__ import annotations

from importlib.metadata import version as version_of

import pytest
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from flows.server import connected_server
from tests.fakes.scripted_http import Reply, Script, Seen, serve
from tsgb.errors import TSGBError, UsageError

MINE = version_of("prefect")
OTHER_PATCH = f"{MINE.rpartition('.')[0]}.99"


def complaint(script: Script) -> TSGBError:
    """What is said where the block reads a work pool."""
    with (
        serve(script) as url,
        temporary_settings({PREFECT_API_URL: f"{url}/api", PREFECT_CLIENT_MAX_RETRIES: 0}),
        pytest.raises(TSGBError) as caught,
        connected_server() as client,
    ):
        client.read_work_pool("p")
    assert f"PREFECT_API_URL {url}/api" in str(caught.value)
    return caught.value


@pytest.mark.parametrize(
    ("version", "message"),
    [
        (Reply(body='"3.7.2"'), f"has version 3.7.2, and the client here has {MINE}: give"),
        (Reply(body='"2.20.0"'), r"has version 2.20.0, .* \(TSGB takes prefect<3\.\d+,>=3\.8\.8\)"),
        (Reply(body="<html>"), "is no Prefect server: the URL ends with /api"),
        (Reply(body='{"a": 1}'), "is no Prefect server"),
        (Reply(404), "is no Prefect server"),
        (Reply(401), r"refuses GET /api/admin/version \(status 401\): set PREFECT_API_AUTH_STRING"),
        (Reply(then="close"), "no Prefect server answers at"),
    ],
    ids=["older", "ancient", "page", "other", "missing", "locked", "silent"],
)
def test_a_server_that_is_not_ours(version: Reply, message: str) -> None:
    error = complaint(Script([version]))
    assert isinstance(error, UsageError)
    with pytest.raises(UsageError, match=message):
        raise error


@pytest.mark.parametrize(
    ("answer", "message", "usage"),
    [
        (Reply(403), r"refuses GET /api/work_pools/p \(status 403\)", True),
        (Reply(409, {"detail": "no such variable"}), "status 409: .*no such variable", True),
        (Reply(500, "broken"), "with status 500: broken: see its log, then try again", False),
        (Reply(then="close"), "no Prefect server answers at", True),
    ],
    ids=["forbidden", "refused", "broken", "gone"],
)
def test_what_it_answers_inside(answer: Reply, message: str, usage: bool) -> None:
    def reply(seen: Seen) -> Reply:
        return Reply(body=f'"{OTHER_PATCH}"') if seen.path.endswith("/version") else answer

    error = complaint(Script(reply))
    assert isinstance(error, UsageError) is usage
    with pytest.raises(TSGBError, match=message):
        raise error
