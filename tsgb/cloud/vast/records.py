"""What Vast.ai tells us and what we ask of it: the fields that we use, with their units.

Rows of the service have many more fields, and some of those here are sometimes absent or of
another kind: then they are None, which means unknown. A row is refused only where its id is.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import (
    AliasChoices,
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)

_SCRIPT_CHARACTERS = 4096
_ENVIRONMENT_CHARACTERS = 32_768


def _or_unknown(value: Any, inner: ValidatorFunctionWrapHandler) -> Any:
    try:
        return inner(value)
    except ValidationError:
        return None


_Finite = Annotated[float, Field(allow_inf_nan=False)]
_Number = Annotated[_Finite | None, WrapValidator(_or_unknown)]
_Whole = Annotated[int | None, WrapValidator(_or_unknown)]
_Text = Annotated[str | None, WrapValidator(_or_unknown)]
_Flag = Annotated[bool | None, WrapValidator(_or_unknown)]
Price = Annotated[float, Field(ge=0.001, le=128, allow_inf_nan=False)]
"""$/h for all GPUs of an offer together."""


class _Row(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", use_attribute_docstrings=True)


class OfferRow(_Row):
    """A machine that can be rented.

    Example: `OfferRow(ask_id=12345678, machine_id=88888, gpu_name="RTX 4090", min_bid=0.12)`
    """

    ask_id: int = Field(validation_alias=AliasChoices("ask_contract_id", "id", "ask_id"))
    """What `create` takes; good for one rental."""
    machine_id: int
    host_id: _Whole = None
    """The owner."""
    gpu_name: _Text = None
    """`RTX 4090`, with a space."""
    num_gpus: _Whole = None
    gpu_ram: _Number = None
    """MB on each GPU."""
    compute_cap: _Whole = None
    """Times 100: 890 is 8.9."""
    cuda_max_good: _Number = None
    """The highest CUDA version that the driver carries."""
    disk_space: _Number = None
    """GB."""
    inet_up: _Number = None
    """Mb/s."""
    inet_down: _Number = None
    """Mb/s."""
    inet_up_cost: _Number = None
    """$/GB, in any state of the instance."""
    inet_down_cost: _Number = None
    """$/GB, in any state of the instance."""
    dph_base: _Number = None
    """$/h without storage."""
    dph_total: _Number = None
    """$/h with the storage that was asked for, without traffic."""
    min_bid: _Number = None
    """$/h; a bid below it starts nothing."""
    is_bid: _Flag = None
    """Whether the prices are those of an interruptible rental."""
    storage_cost: _Number = None
    """$/GB a month of 730 h."""
    reliability: _Number = Field(
        default=None, validation_alias=AliasChoices("reliability2", "reliability")
    )
    """0 to 1."""
    rentable: _Flag = None
    verification: _Text = None
    external: _Flag = None
    """None as well as False: the service's own market."""
    duration: _Number = None
    """Seconds until the contract's limit."""
    geolocation: _Text = None
    """`Sweden, SE`."""
    dlperf: _Number = None
    """The service's own score for deep learning."""


class InstanceRow(_Row):
    """A contract of this account; it costs money in every state, until it is destroyed.

    Example: `InstanceRow(id=7835610, label="tsgb/home/run-abc/1", actual_status="running")`
    """

    id: int
    label: _Text = None
    actual_status: _Text = None
    """Of the container: None (not there yet), created, loading, running, stopped, frozen, exited,
    rebooting, unknown, offline."""
    intended_status: _Text = None
    """What was asked for: running, stopped, frozen."""
    cur_state: _Text = None
    """Of the contract: running, stopped, unloaded."""
    next_state: _Text = None
    """The same, as soon as a pending change is done."""
    status_msg: _Text = None
    machine_id: _Whole = None
    host_id: _Whole = None
    gpu_name: _Text = None
    num_gpus: _Whole = None
    is_bid: _Flag = None
    """Whether it is interruptible; never assumed."""
    min_bid: _Number = None
    """$/h."""
    dph_base: _Number = None
    """$/h without storage."""
    dph_total: _Number = None
    """$/h with storage, without traffic."""
    disk_space: _Number = None
    """GB."""
    storage_cost: _Number = None
    """$/GB a month of 730 h."""
    start_date: _Number = None
    """Seconds since 1970."""
    end_date: _Number = None
    """Seconds since 1970: the contract's limit."""


class AccountRow(_Row):
    """Whose key it is.

    Example: `AccountRow(id=1, credit=25.0)`
    """

    id: int
    credit: _Finite
    """$ that can be spent."""


class Rental(BaseModel):
    """What `create` asks for: always an interruptible rental at a bid.

    Example: `Rental(image="tsgb/worker:1", label="tsgb/home/run-abc/1", price=0.15, disk_gb=60)`
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", hide_input_in_errors=True, use_attribute_docstrings=True
    )

    image: Annotated[str, Field(min_length=1, max_length=1024)]
    label: Annotated[str, Field(min_length=1, max_length=256)]
    """By which it is found if the answer is lost: no other rental may have the same."""
    price: Price
    """The bid, which is what is paid. Without one the service rents at the full price."""
    disk_gb: Annotated[float, Field(ge=8, allow_inf_nan=False)]
    """It cannot grow."""
    onstart: str = ""
    """Shell script, run at every start of the container; with `args` the entry point instead."""
    args: tuple[str, ...] = ()
    """For the entry point."""
    env: dict[Annotated[str, Field(min_length=1, max_length=256)], SecretStr] = {}

    @model_validator(mode="after")
    def _fits(self) -> Rental:
        secrets = [value.get_secret_value() for value in self.env.values()]
        if any("\ud800" <= c <= "\udfff" for text in secrets for c in text):
            raise ValueError("env has a value that is no text")
        script = len(self.onstart) + sum(map(len, self.args))
        if script > _SCRIPT_CHARACTERS:
            raise ValueError(
                f"onstart and args have {script} characters, the service takes "
                f"{_SCRIPT_CHARACTERS}: put the script into a variable, packed"
            )
        environment = sum(map(len, [*self.env, *secrets]))
        if environment > _ENVIRONMENT_CHARACTERS:
            raise ValueError(
                f"env has {environment} characters, the service takes {_ENVIRONMENT_CHARACTERS}"
            )
        return self

    def body(self) -> dict[str, Any]:
        """What is sent, secrets in plain text."""
        body: dict[str, Any] = {
            "client_id": "me",
            "image": self.image,
            "env": {name: value.get_secret_value() for name, value in self.env.items()},
            "price": self.price,
            "disk": self.disk_gb,
            "label": self.label,
            "runtype": "args" if self.args else "ssh_proxy",
            "cancel_unavail": True,  # fail now: what waits in a queue starts and costs later
        }
        if self.onstart:
            body["onstart"] = self.onstart
        if self.args:
            body["args"] = list(self.args)
        return body
