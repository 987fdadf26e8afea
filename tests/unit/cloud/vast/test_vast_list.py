"""Unknown is never empty, and never gone."""

from __future__ import annotations

from typing import Any

import pytest

from tests.fakes.scripted_http import Reply, Seen
from tests.unit.cloud.vast.conftest import OFFICIAL, answered, scene
from tsgb.errors import (
    ProviderAuthError,
    ProviderError,
    ProviderGone,
    ProviderRefused,
    ProviderUnreachable,
)

ROW = OFFICIAL["list"]["response"]["body"]["instances"][0]


def page(ids: range, total: int, token: str | None, **changes: Any) -> Reply:
    rows = [ROW | {"id": number} for number in ids]
    body = {
        "success": True,
        "instances_found": len(rows),
        "total_instances": total,
        "next_token": token,
        "instances": rows,
    }
    return Reply(200, body | changes)


def test_all_pages_are_read() -> None:
    pages = [
        page(range(1, 26), 60, "25"),
        page(range(26, 51), 60, "50"),
        page(range(51, 61), 60, None),
    ]
    vast, script, _ = scene(*pages, *pages)
    assert [instance.id for instance in vast.instances()] == list(range(1, 61))
    assert [seen.query.get("after_token") for seen in script.seen] == [None, "25", "50"] * 2


def test_an_empty_list_is_one_that_says_so() -> None:
    assert scene(page(range(0), 0, None)).vast.instances() == ()


def without(name: str) -> Reply:
    reply = page(range(1, 3), 2, None)
    return Reply(200, {k: v for k, v in reply.body.items() if k != name})


NOT_WHOLE = [
    pytest.param(page(range(1, 3), 3, None), id="one is missing"),
    pytest.param(page(range(1, 3), 2, None, instances_found=3), id="a row is missing"),
    pytest.param(page(range(1, 3), 2, None, success=False), id="not a success"),
    pytest.param(page(range(1, 3), 2, None, success="yes"), id="success of another kind"),
    pytest.param(page(range(0), 0, None, instances=None), id="no list"),
    pytest.param(page(range(0), 0, None, instances={}), id="an object"),
    pytest.param(page(range(1), 1, None, instances=[{"label": "x"}]), id="a row without id"),
    pytest.param(page(range(1, 3), 2, "same"), id="pages without an end"),
    pytest.param(without("success"), id="no word of success"),
    pytest.param(without("instances"), id="no instances"),
    pytest.param(without("next_token"), id="no word of the next page"),
    pytest.param(Reply(200, "<html>log in</html>"), id="a page for people"),
    pytest.param(Reply(200, ""), id="nothing"),
    pytest.param(Reply(200, []), id="a bare list"),
    pytest.param(Reply(200, {}), id="an empty object"),
    pytest.param(Reply(502, "<html>"), id="502"),
    pytest.param(Reply(500, {"success": False, "error": "internal"}), id="500"),
    pytest.param(Reply(404, {"detail": "Not Found"}), id="404"),
    pytest.param(Reply(404, {"success": False, "msg": "no instances"}), id="404 in its words"),
    pytest.param(Reply(404, {"error": "no_such_instance"}), id="404 of one"),
    pytest.param(Reply(410, {"success": False, "error": "deprecated_endpoint"}), id="410"),
    pytest.param(Reply(301, "", {"Location": "/elsewhere"}), id="redirect"),
    pytest.param(answered("bad_key"), id="revoked key"),
]


@pytest.mark.parametrize("reply", NOT_WHOLE)
def test_what_is_not_whole_is_an_error(reply: Reply) -> None:
    with pytest.raises(ProviderError) as caught:
        scene(reply).vast.instances()
    assert not isinstance(caught.value, ProviderGone)


@pytest.mark.parametrize("reply", NOT_WHOLE)
def test_a_later_page_that_is_not_whole_is_an_error_too(reply: Reply) -> None:
    def respond(seen: Seen) -> Reply:
        return reply if "after_token" in seen.query else page(range(50, 75), 27, "25")

    with pytest.raises(ProviderError):
        scene(respond=respond).vast.instances()


def test_a_list_that_changes_while_it_is_read_is_read_again() -> None:
    vast, script, _ = scene(
        page(range(1, 26), 26, "25"), page(range(0), 26, None), page(range(1, 26), 25, None)
    )
    assert len(vast.instances()) == 25
    assert [seen.query.get("after_token") for seen in script.seen] == [None, "25", None]


def test_a_row_that_slips_between_two_pages_is_not_lost() -> None:
    """Instance 3 ends after the first page: 26 moves up to it, and the second begins with 27."""
    again = page(range(4, 29), 27, "25"), page(range(29, 31), 27, None)
    vast, script, _ = scene(
        page(range(1, 26), 30, "25"), page(range(27, 31), 29, None), *again, *again
    )
    assert 26 in {instance.id for instance in vast.instances()}
    assert len(script.seen) == 6


def test_a_row_that_slips_while_another_begins_is_not_lost() -> None:
    """Instance 1 ends and 28 begins after the first page: there are 27 of 27, without 26."""
    slipped = page(range(1, 26), 27, "25"), page(range(27, 29), 27, None)
    after = page(range(2, 27), 27, "25"), page(range(27, 29), 27, None)
    vast, script, _ = scene(*slipped, *after, *after, *after)
    assert [instance.id for instance in vast.instances()] == list(range(2, 29))
    assert len(script.seen) == 8


def test_one_that_begins_between_two_looks_is_no_reason_for_a_third() -> None:
    first = page(range(1, 26), 26, "25"), page(range(26, 27), 26, None)
    second = page(range(1, 26), 27, "25"), page(range(26, 28), 27, None)
    vast, script, _ = scene(*first, *second)
    assert len(vast.instances()) == 27
    assert len(script.seen) == 4


GONE = [
    pytest.param(answered("destroy_again"), id="404"),
    pytest.param(Reply(200, {"success": False, "error": "no_such_instance"}), id="200"),
    pytest.param(Reply(404, {"success": False, "msg": "not found"}), id="404 without a code"),
]
NOT_GONE = [
    pytest.param(answered("bad_key"), ProviderAuthError, id="revoked key"),
    pytest.param(Reply(401, {"msg": "Invalid user key"}), ProviderAuthError, id="401"),
    pytest.param(Reply(404, "<html>no such page</html>"), ProviderRefused, id="404 of a proxy"),
    pytest.param(Reply(404, {"detail": "Not Found"}), ProviderRefused, id="404 of another server"),
    pytest.param(Reply(404, {"error": "no_such_user"}), ProviderRefused, id="something else"),
    pytest.param(Reply(404, {"error": "no_such_ask"}), ProviderRefused, id="an offer"),
    pytest.param(Reply(400, {"error": "resources_unavailable"}), ProviderRefused, id="its GPU"),
    pytest.param(Reply(410, {"error": "deprecated_endpoint"}), ProviderRefused, id="410"),
    pytest.param(Reply(502, "<html>"), ProviderUnreachable, id="502"),
    pytest.param(Reply(200, {}), ProviderUnreachable, id="nothing said"),
    pytest.param(Reply(200, {"instances": {}}), ProviderUnreachable, id="an empty row"),
    pytest.param(Reply(200, {"instances": []}), ProviderUnreachable, id="an empty list"),
    pytest.param(Reply(200, {"instances": {"id": 8}}), ProviderUnreachable, id="another one"),
]


def test_null_is_gone() -> None:
    assert scene(answered("show_missing")).vast.show(7) is None


@pytest.mark.parametrize("reply", GONE)
def test_gone_in_the_words_of_the_service(reply: Reply) -> None:
    assert scene(reply).vast.show(7) is None
    scene(reply).vast.destroy(7)
    for change in ("label", "stop", "change_bid", "logs"):
        arguments: tuple[Any, ...] = {"label": ("x",), "change_bid": (0.2,)}.get(change, ())
        with pytest.raises(ProviderGone):
            getattr(scene(reply).vast, change)(7, *arguments)


@pytest.mark.parametrize(("reply", "kind"), NOT_GONE)
def test_all_else_is_no_proof(reply: Reply, kind: type[ProviderError]) -> None:
    for call in ("show", "destroy"):
        with pytest.raises(ProviderError) as caught:
            getattr(scene(reply).vast, call)(7)
        assert type(caught.value) is kind


def test_a_change_counts_only_if_the_answer_says_so() -> None:
    for body in ({}, {"success": None}, {"success": 1}, {"msg": "ok"}):
        with pytest.raises(ProviderUnreachable):
            scene(Reply(200, body)).vast.stop(7)
