"""One declaration: the model, the command line and the flows agree about a run's options."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml
from hypothesis import given
from hypothesis import strategies as st
from prefect import Flow
from prefect.utilities.callables import parameter_schema
from prefect.utilities.schema_tools import ValidationError, validate

from flows.stage1 import STAGE_2, stage1
from flows.stage2 import stage2
from tsgb.cli import app
from tsgb.config import ABLATIONS, BASELINES, Arm, Profile
from tsgb.errors import UsageError
from tsgb.run_options import NOT_OF_A_RUN, RunOptions, flag_of, read_options

ROOT = Path(__file__).parents[2]
FIELDS = RunOptions.model_fields
SCHEMA = RunOptions.model_json_schema()["properties"]


def command(words: str) -> dict[str, Any]:
    """The options of a command by the name of its parameter."""
    found: Any = typer.main.get_command(app)
    for word in words.split():
        found = found.commands[word]
    return {parameter.name: parameter for parameter in found.params}


@pytest.mark.parametrize(
    ("words", "lacking", "defaults"),
    [
        (
            "experiment",
            {"machine", "machines", "budget", "max_price", "service_url", "evaluate"},
            {},
        ),
        ("manager run", {"machine"}, {}),
        ("manager loop", {"machine", "machines", "evaluate", "seeds"}, {}),
        (
            "train-local",
            {
                *("arms", "targets", "targets_file", "adaptive", "max_requests", "max_cost"),
                *("target_class", "judge_class", "judge", "human_labels", "machine"),
                *("guards", "fresh"),
                *("budget", "max_price", "service_url", "evaluate", "seeds", "machines"),
            },
            {"profile": "smoke", "store": "./checkpoints", "run": "local"},
        ),
    ],
)
def test_a_command_has_the_options_of_the_model(
    words: str, lacking: set[str], defaults: dict[str, Any]
) -> None:
    options = command(words)
    assert set(FIELDS) - set(options) == lacking
    for name in set(FIELDS) - lacking:
        option, field = options[name], FIELDS[name]
        assert "/".join([*option.opts, *option.secondary_opts]) == flag_of(name).name
        assert option.default == defaults.get(name, field.default)
        assert option.help.startswith(str(field.description).rstrip("."))
        [kind, *_] = SCHEMA[name].get("anyOf", [SCHEMA[name]])
        for bound, known in (("min", "minimum"), ("max", "maximum")):
            assert getattr(option, bound) == kind.get(known)


def test_a_flow_has_the_parameters_of_the_model() -> None:
    schema = parameter_schema(stage1).properties
    assert list(schema) == [name for name in FIELDS if name not in NOT_OF_A_RUN]
    for position, (name, shown) in enumerate(schema.items()):
        assert shown["position"] == position
        text = " ".join(str(FIELDS[name].description).split())
        assert shown["description"].startswith(text)
        assert shown["default"] == FIELDS[name].default
    assert schema["max_price"]["description"].endswith("It is at least 0.001 and at most 128.")


def test_stage_2_describes_shared_options_as_stage_1_does() -> None:
    second, first = (parameter_schema(flow) for flow in (stage2, stage1))
    assert second.required == ["run"]
    for name in set(first.properties) & set(second.properties) - {"run", "env"}:
        assert second.properties[name]["description"] == first.properties[name]["description"]


@pytest.mark.parametrize("flow", [stage1, stage2], ids=["stage1", "stage2"])
def test_a_form_reads_without_the_command_line(flow: Flow[..., Any]) -> None:
    for shown in parameter_schema(flow).properties.values():
        assert re.fullmatch(r"[A-Z][a-z]*( [^\n]+){4,}\.", shown["description"])
        assert not re.search(r"--|`", shown["description"])


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("seed", -1, "-1 is less than the minimum of 0"),
        ("seed", 10**15, "is greater than the maximum"),
        ("seed", "7", "is not of type 'integer'"),
        ("run", "../x", "does not match"),
        ("run", "latest", "does not match"),
        ("run", "x\n", "does not match"),
        ("profile", "huge", "is not one of ['smoke', 'demo', 'paper', 'study']"),
        ("machine", "vast", "is not one of ['local', 'rented']"),
        ("arms", ["sft"], "does not contain"),
        ("arms", ["selfplay", "stf"], "'stf' is not one of"),
        ("max_price", 500, "500 is greater than the maximum of 128"),
        ("budget", -1, "-1 is less than the minimum of 0"),
        ("model", "", "should be non-empty"),
        ("targets", ["T_s", ""], "should be non-empty"),
    ],
)
def test_the_server_refuses_before_a_run_is_made(name: str, value: Any, reason: str) -> None:
    """By the check that a server makes of the parameters of a deployment's run."""
    for flow in (stage1, stage2):
        schema = parameter_schema(flow).model_dump()
        if name in schema["properties"]:
            with pytest.raises(ValidationError, match=f"field .*{name}.*{re.escape(reason)}"):
                validate({"run": "r1", name: value}, schema, raise_on_error=True)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=4,
)
TEXTS = st.text(max_size=9) | st.sampled_from([*Arm, *Profile, "rented", "a/b", "latest", "r\n"])
STAGE_1 = parameter_schema(stage1).model_dump()


@given(name=st.sampled_from([*STAGE_1["properties"]]), value=JSON | TEXTS | st.lists(TEXTS))
def test_what_the_form_accepts_the_flow_accepts(name: str, value: Any) -> None:
    if not validate({name: value}, STAGE_1):
        read_options(**{name: value})


def test_the_event_of_a_checkpoint_carries_what_stage_2_takes() -> None:
    deployments = yaml.safe_load((ROOT / "deployments" / "prefect.yaml").read_text())["deployments"]
    [trigger] = next(item for item in deployments if item["name"] == "stage2")["triggers"]
    assert set(trigger["parameters"]) == STAGE_2 | {"checkpoint"}
    assert set(parameter_schema(stage2).properties) == STAGE_2 | {"checkpoint", "more_runs"}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"seed": -1}, "--seed -1: input should be greater than or equal to 0"),
        ({"profile": "huge"}, "--profile 'huge' is not known: choose from smoke, demo, paper"),
        ({"arms": ["selfplay", "stf"]}, "--arms 'stf' is not known: choose from selfplay, sft"),
        ({"arms": ["sft"]}, "lack 'selfplay'"),
        ({"run": "../x"}, r"run id '\.\./x' is not 1 to 128 of"),
        ({"max_price": 200}, "--max-price 200: .* less than or equal to 128"),
        ({"speed": 1}, "no option 'speed': choose of profile, env"),
    ],
)
def test_a_value_that_breaks_its_rule_is_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read_options(**wrong)


def test_arms_begin_with_self_play() -> None:
    assert RunOptions().trained_arms == (Arm.SELFPLAY, Arm.SFT, Arm.FROZEN)
    assert RunOptions(profile=Profile.PAPER).trained_arms == (
        Arm.SELFPLAY,
        *BASELINES,
        *ABLATIONS,
    )
    assert read_options(arms=["sft", "selfplay"]).trained_arms == (Arm.SELFPLAY, Arm.SFT)


def test_the_parameters_of_a_flow_are_json_and_make_the_same_options() -> None:
    options = RunOptions(run="r1", profile=Profile.SMOKE, arms=[Arm.SELFPLAY], budget=2)
    parameters = options.parameters()
    assert parameters["arms"] == ["selfplay"]
    assert "store" not in parameters
    assert read_options(**parameters) == options
