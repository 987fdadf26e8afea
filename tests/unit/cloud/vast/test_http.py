"""The key goes to one address and into nothing else."""

from __future__ import annotations

import logging
import pickle
import traceback
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from tests.fakes.scripted_http import Reply, Script, serve
from tests.fakes.sentinels import sentinel
from tests.unit.cloud.vast.conftest import KEY, answered, rental, scene
from tsgb.cloud.vast.client import VastClient
from tsgb.cloud.vast.http import Wire
from tsgb.cloud.vast.search import Search
from tsgb.errors import ProviderAuthError, ProviderError, TSGBError, UsageError

PASSWORD = sentinel("webdav")
ECHO = {"msg": f"you sent Bearer {KEY}\nand {PASSWORD}", "error": f"bad {KEY}"}
REPLIES = [
    *(Reply(status, ECHO) for status in (200, 301, 400, 401, 403, 404, 410, 429, 500, 502)),
    *(Reply(status, f"no {KEY} {PASSWORD}") for status in (200, 400, 404, 429, 503)),
    answered("bad_key"),
    Reply(then="close"),
    Reply(200, {"x": KEY * 9}, then="cut"),
]
CALLS: dict[str, Callable[[VastClient], Any]] = {
    "account": lambda vast: vast.account(),
    "search": lambda vast: vast.search(Search(disk_gb=8)),
    "create": lambda vast: vast.create(1, rental(env={"TSGB_STORE_PASS": PASSWORD})),
    "instances": lambda vast: vast.instances(),
    "show": lambda vast: vast.show(7),
    "destroy": lambda vast: vast.destroy(7),
    "logs": lambda vast: vast.logs(7),
}


def written(error: BaseException) -> str:
    """All that anybody might print of an error."""
    lines = ["".join(traceback.format_exception(error))]
    step: BaseException | None = error
    while step is not None:
        lines += [repr(step), str(step), repr(vars(step))]
        frame = step.__traceback__
        while frame is not None:  # as printers with local variables do
            if "/tsgb/" in frame.tb_frame.f_code.co_filename:
                lines += [repr(value) for value in frame.tb_frame.f_locals.values()]
            frame = frame.tb_next
        step = step.__cause__ or step.__context__
    return "\n".join(lines)


@pytest.mark.parametrize("call", CALLS)
def test_no_error_and_no_log_line_holds_it(call: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    for reply in REPLIES:
        script = Script([reply])
        with serve(script) as url:
            vast, *_ = scene(url=url, on_loopback=True, retry_seconds=0)
            try:
                CALLS[call](vast)
            except ProviderError as error:
                text = "".join(traceback.format_exception(error)) + repr(error)
                text += repr(vars(error)) + repr(pickle.dumps(error))
                assert KEY not in text
                assert PASSWORD not in text or call != "create"
            assert script.seen[0].headers["authorization"] == f"Bearer {KEY}"
            assert KEY not in repr(vast) + repr(vars(vast)) + str(vast)
    assert KEY not in caplog.text


def test_nor_do_the_variables_of_a_traceback() -> None:
    """Some printers show them. What the service echoes may be among them; the key must not."""
    with pytest.raises(ProviderError) as caught:
        scene(Reply(503, "")).vast.instances()
    assert KEY not in written(caught.value)


def test_an_error_of_the_service_is_one_printable_line() -> None:
    body = {"error": "odd\x1b[2J", "msg": "\x1b]0;title\x07" + "x" * 5000 + "\r\n"}
    with pytest.raises(ProviderError) as caught:
        scene(Reply(400, body)).vast.account()
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400


def test_a_rental_hides_its_environment() -> None:
    asked = rental(env={"TSGB_STORE_PASS": PASSWORD})
    assert PASSWORD not in repr(asked) + str(asked) + asked.model_dump_json()
    vast, script, _ = scene(answered("create"))
    vast.create(1, asked)
    assert script.seen[0].body["env"] == {"TSGB_STORE_PASS": PASSWORD}


def test_errors_survive_a_process() -> None:
    vast, *_ = scene(answered("low_bid"))
    with pytest.raises(ProviderError) as caught:
        vast.create(1, rental())
    copy = pickle.loads(pickle.dumps(caught.value))  # noqa: S301 - our own
    assert str(copy) == str(caught.value)
    assert (copy.code, copy.status, copy.instance_id) == ("invalid_price", 400, 7835612)


@pytest.mark.parametrize("key", ["", "  ", "two words-4711", "line\nbreak-4711", "ü-4711"])
def test_what_cannot_be_a_key_is_refused_before_it_is_sent(key: str) -> None:
    with pytest.raises(ProviderAuthError, match="VAST_API_KEY") as caught:
        VastClient(SecretStr(key))
    assert "4711" not in "".join(traceback.format_exception(caught.value))


def test_the_line_end_of_a_file_is_no_part_of_it() -> None:
    script = Script([answered("account")])
    with VastClient(SecretStr(f" {KEY}\n"), transport=script.transport) as vast:
        vast.account()
    assert script.seen[0].headers["authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize(
    "url",
    [
        "http://console.vast.ai",
        "http://10.0.0.1:8000",
        "http://127.0.0.1.example.org",
        "ftp://console.vast.ai",
        "console.vast.ai",
        "https://",
        "https://user:pass-4711@console.vast.ai",
        "https://console.vast.ai?api_key=pass-4711",
        "https://console.vast.ai:port",
        "https://[",
        "",
    ],
)
def test_it_does_not_go_where_others_could_read_it(url: str) -> None:
    with pytest.raises(UsageError, match="TSGB_VAST_URL") as caught:
        VastClient(SecretStr(KEY), url=url)
    assert "pass-4711" not in str(caught.value)
    assert isinstance(caught.value, TSGBError)


@pytest.mark.parametrize(
    "url", ["http://localhost:1/", "http://[::1]:1", "https://x.example/base/"]
)
def test_where_it_may_go(url: str) -> None:
    assert repr(VastClient(SecretStr(KEY), url=url)) == f"VastClient({url.rstrip('/')!r})"


def test_a_path_in_the_address_is_kept() -> None:
    vast, script, _ = scene(answered("account"), url="https://x.example/base/")
    vast.account()
    assert script.seen[0].path == "/base/api/v0/users/current"


def test_it_is_not_taken_along_by_a_redirect() -> None:
    elsewhere = Script([answered("account")])
    with serve(elsewhere) as url:
        vast, script, _ = scene(Reply(307, "", {"Location": url}))
        with pytest.raises(ProviderError):
            vast.account()
    assert elsewhere.seen == []
    assert len(script.seen) == 1


def test_an_answer_that_drips_ends_in_time() -> None:
    """Each byte comes soon after the one before; all of them would take ten seconds."""
    with serve(Script([Reply(200, "x" * 100, then="drip")])) as url:
        wire = Wire(SecretStr(KEY), url)
        with pytest.raises(httpx.ReadTimeout, match=r"not all came in 0\.3 s"):
            wire.send("GET", "/", seconds=0.3)


def test_no_proxy_sees_what_goes_to_a_simulator(monkeypatch: pytest.MonkeyPatch) -> None:
    proxy, simulator = Script([answered("account")]), Script([answered("account")])
    with serve(proxy) as proxy_url, serve(simulator) as url:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy_url)
        scene(url=url, on_loopback=True).vast.account()
    assert (len(proxy.seen), len(simulator.seen)) == (0, 1)
