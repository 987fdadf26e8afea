"""Declarations of endpoints: what is accepted, and that each wrong value is one clear line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes.sentinels import leaks, new_key
from tsgb.errors import UsageError
from tsgb.targets.endpoint import (
    EndpointKind,
    EndpointSpec,
    by_name,
    is_endpoint,
    make_endpoint,
    parse_endpoint,
    read_targets_file,
)


@pytest.mark.parametrize(
    ("text", "name", "model", "address", "key_name"),
    [
        ("openai:gpt-4.1", "gpt-4.1", "gpt-4.1", "https://api.openai.com/v1", "OPENAI_API_KEY"),
        ("openai:m@https://h/v1/", "m", "m", "https://h/v1", "OPENAI_API_KEY"),
        ("openai:a/llama3:8b@http://127.0.0.1:80/v1", "llama3-8b", "a/llama3:8b",
         "http://127.0.0.1:80/v1", "OPENAI_API_KEY"),
        ("openai:m@v2@http://[::1]:1/v1", "m-v2", "m@v2", "http://[::1]:1/v1", "OPENAI_API_KEY"),
        ("anthropic:c", "c", "c", "https://api.anthropic.com", "ANTHROPIC_API_KEY"),
        ("huggingface:o/m", "m", "o/m",
         "https://router.huggingface.co/hf-inference/models/o/m", "HF_TOKEN"),
        ("huggingface:o/m@https://x.endpoints.huggingface.cloud", "m", "o/m",
         "https://x.endpoints.huggingface.cloud", "HF_TOKEN"),
        ("huggingface:m@https://tgi.example.org", "m", "m", "https://tgi.example.org", None),
        ("huggingface:m@https://nothuggingface.co", "m", "m", "https://nothuggingface.co", None),
    ],
)  # fmt: skip
def test_the_form_of_the_command_line(
    text: str, name: str, model: str, address: str, key_name: str | None
) -> None:
    spec = parse_endpoint(text)
    assert (spec.name, spec.model, spec.address, spec.key_name) == (name, model, address, key_name)
    assert is_endpoint(text)
    assert not is_endpoint("B_far")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("openai:", "--target 'openai:' is no endpoint: write KIND:MODEL"),
        ("open:m", "--target 'open' is no endpoint: write KIND:MODEL"),
        ("m@https://h/v1", "--target 'm@https' is no endpoint"),
        ("openai:https://h/v1", "write the model before the address"),
        ("openai:m@ftp://h", "openai:m: url is no address: write https://host/v1"),
        ("openai:m@https://", "openai:m: url is no address"),
        ("openai:m@https://h:port/", "openai:m: url is no address"),
        ("openai:m@https://h/a b", "openai:m: url is no address"),
        ("openai:m@http://h/v1", "openai:m: url sends to h what others can read: write https://"),
        ("openai:m@http://localhost.evil.org/", "sends to localhost.evil.org what others"),
        ("openai:m@http://127.0.0.1.evil.org/", "sends to 127.0.0.1.evil.org what others"),
        ("openai:m m", "openai:m m: model has characters"),
        ("openai:" + "m" * 201, "model has characters that it must not have, or is too short"),
    ],
)
def test_a_wrong_form_is_one_line(text: str, line: str) -> None:
    with pytest.raises(UsageError) as error:
        parse_endpoint(text)
    assert line in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "form",
    [
        "openai:m@https://user:{}@host/v1",
        "openai:m@https://{}@host/v1",
        "openai:m@https://host/v1?key={}",
        "openai:m@https://host/v1#{}",
        "https://user:{}@host/v1",
        "openai:https://user:{}@host/v1",
    ],
)
def test_a_key_in_the_address_is_refused_and_not_repeated(form: str) -> None:
    with pytest.raises(UsageError) as error:
        parse_endpoint(form.format(new_key()))
    assert not leaks(str(error.value))


GOOD: dict[str, Any] = {"name": "a", "kind": "openai", "model": "m"}


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"kind": "cohere"}, "kind input should be"),
        ({"temperature": -0.1}, "temperature input should be greater than or equal to 0"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": "0.5"}, "temperature input should be a valid number"),
        ({"top_p": 0.0}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"concurrency": True}, "concurrency input should be a valid integer"),
        ({"concurrency": 257}, "concurrency"),
        ({"requests_per_minute": 0.0}, "requests_per_minute"),
        ({"timeout_seconds": 0.0}, "timeout_seconds"),
        ({"most_attempts": 0}, "most_attempts"),
        ({"dollars_in": -1.0}, "dollars_in"),
        ({"kind": "anthropic", "seed": 1}, "seed is not taken by anthropic"),
        ({"key_variable": "VAST_API_KEY"}, "key_variable is VAST_API_KEY, which no endpoint"),
        ({"key_variable": "HOME"}, "key_variable has characters"),
        ({"name": "../a"}, "name has characters"),
        ({"colour": 1}, "there is no 'colour': choose of kind, model, url"),
    ],
)
def test_a_wrong_value_is_one_line(values: dict[str, Any], line: str) -> None:
    with pytest.raises(UsageError, match=r"^here: ") as error:
        make_endpoint({**GOOD, **values}, "here")
    assert line in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["key", "api_key", "api-key", "token", "Authorization"])
def test_a_key_among_the_values_is_refused_and_not_repeated(name: str) -> None:
    with pytest.raises(UsageError, match="keys come only from the environment") as error:
        make_endpoint({**GOOD, name: new_key()}, "here")
    assert not leaks(str(error.value))


@pytest.mark.parametrize("name", ["key_variable", "kind", "model", "url", "seed"])
def test_a_key_at_a_wrong_place_is_not_repeated(name: str) -> None:
    with pytest.raises(UsageError) as error:
        make_endpoint({**GOOD, name: f"{new_key()} {new_key()}"}, "here")
    assert not leaks(str(error.value))
    assert error.value.__cause__ is None


def test_a_file_of_endpoints(tmp_path: Path) -> None:
    path = tmp_path / "targets.toml"
    path.write_text(
        '[targets.big]\nkind = "openai"\nmodel = "gpt-4.1"\ntemperature = "default"\n'
        'dollars_in = 2\ndollars_out = 8.0\nkey_variable = "MY_KEY"\n'
        '[targets.small]\nkind = "huggingface"\nmodel = "o/m"\nurl = "http://localhost:80"\n'
        'key_variable = ""\n'
    )
    big, small = read_targets_file(path)
    assert (big.name, big.temperature, big.dollars_in, big.key_name) == ("big", None, 2.0, "MY_KEY")
    assert (small.name, small.key_name, small.needs_key) == ("small", None, False)
    assert [*by_name([big, small])] == ["big", "small"]


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"[targets", "is not TOML"),
        (b"\xff", "is not UTF-8"),
        (b"", "must have tables"),
        (b"[other.a]\n", "must have tables"),
        (b"targets = 3", "must have tables"),
        (b"[targets]\na = 1", "targets.a is no table"),
        (b"[targets.a]\nkind = 'openai'", "targets.a: model field required"),
        (b"[targets.a]\nname = 'b'", "has a name already"),
        (b"[targets.'a b']\nkind='openai'\nmodel='m'", "name has characters"),
        (b"#" * (1 << 20) + b"##", "more than"),
    ],
)
def test_a_wrong_file_is_one_line(tmp_path: Path, content: bytes, line: str) -> None:
    path = tmp_path / "t.toml"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"^--targets-file ") as error:
        read_targets_file(path)
    assert line in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        read_targets_file(tmp_path / "none.toml")


def test_two_of_one_name_are_refused() -> None:
    with pytest.raises(UsageError, match="two endpoints are called 'm' in tables"):
        by_name([parse_endpoint("openai:m"), parse_endpoint("anthropic:m")])


CHANGES: dict[str, Any] = {
    "kind": EndpointKind.HUGGINGFACE,
    "url": "https://h/v1",
    "model": "n",
    "temperature": 1.0,
    "top_p": 0.5,
    "max_tokens": 7,
    "seed": 3,
}


@pytest.mark.parametrize("name", EndpointSpec.model_fields)
def test_the_identity_is_what_determines_the_answers(name: str) -> None:
    spec = parse_endpoint("openai:m")
    other: dict[str, Any] = {
        "name": "b", "concurrency": 1, "requests_per_minute": 1.0, "tokens_per_minute": 1.0,
        "timeout_seconds": 1.0, "most_attempts": 1, "dollars_in": 1.0, "dollars_out": 1.0,
        "key_variable": "B_KEY", **CHANGES,
    }  # fmt: skip
    changed = spec.model_copy(update={name: other[name]})
    assert (changed.identity != spec.identity) == (name in CHANGES)


@given(st.text(max_size=60))
def test_no_text_does_anything_but_a_usage_error(text: str) -> None:
    line = ""
    try:
        parse_endpoint(f"openai:{text}")
    except UsageError as error:
        line = str(error)
    assert len(line.splitlines()) <= 1
