"""Records of the Vast.ai API: the fields that we use, with their units.

Rows of the service have many more fields. A field that is absent or of another type is None, which
means unknown. A row is refused only if its id is missing.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import (
    AfterValidator,
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

from tsgb.checkpoint.documents import printable

_SCRIPT_CHARACTERS = 4096
_ENVIRONMENT_CHARACTERS = 32_768
_TEXT_CHARACTERS = 4096


def _or_unknown(value: Any, inner: ValidatorFunctionWrapHandler) -> Any:
    try:
        return inner(value)
    except ValidationError:
        return None


def _shown(text: str | None) -> str | None:
    """Return the end of a text as one printable line, because hosts choose some of it."""
    return None if text is None else printable(" ".join(text[-_TEXT_CHARACTERS:].splitlines()))


_Finite = Annotated[float, Field(allow_inf_nan=False)]
_Number = Annotated[_Finite | None, WrapValidator(_or_unknown)]
_Whole = Annotated[int | None, WrapValidator(_or_unknown)]
_Text = Annotated[str | None, AfterValidator(_shown), WrapValidator(_or_unknown)]
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
    """Identifier for `create`; valid for one rental."""
    machine_id: int
    """The machine, over all its offers."""
    host_id: _Whole = None
    """The machine's owner."""
    gpu_name: _Text = None
    """Name of its GPUs, such as `RTX 4090`, with a space."""
    num_gpus: _Whole = None
    """GPUs of the offer."""
    gpu_ram: _Number = None
    """Memory of each GPU, MB."""
    gpu_frac: _Number = None
    """Share of the machine's GPUs that the offer has."""
    cpu_ram: _Number = None
    """Main memory of the whole machine, MB."""
    compute_cap: _Whole = None
    """CUDA compute capability times 100: 890 is 8.9."""
    cuda_max_good: _Number = None
    """The highest CUDA version that the driver carries."""
    disk_space: _Number = None
    """Storage, GB."""
    inet_up: _Number = None
    """Upload bandwidth, Mb/s."""
    inet_down: _Number = None
    """Download bandwidth, Mb/s."""
    inet_up_cost: _Number = None
    """Price of sent data in any state of the instance, $/GB."""
    inet_down_cost: _Number = None
    """Price of received data in any state of the instance, $/GB."""
    dph_base: _Number = None
    """Price without storage, $/h."""
    dph_total: _Number = None
    """Price with the storage that was asked for, without traffic, $/h."""
    min_bid: _Number = None
    """Lowest bid that starts an instance, $/h."""
    is_bid: _Flag = None
    """Whether the prices are those of an interruptible rental."""
    storage_cost: _Number = None
    """Price of storage, $/GB a month of 730 h."""
    reliability: _Number = Field(
        default=None, validation_alias=AliasChoices("reliability2", "reliability")
    )
    """Reliability of the host, from 0 to 1."""
    rentable: _Flag = None
    """Whether it can be rented now."""
    verification: _Text = None
    """State of the machine's verification, such as `verified`."""
    external: _Flag = None
    """Whether it belongs to another market; None and False mean the service's own."""
    duration: _Number = None
    """Seconds until the contract's limit."""
    geolocation: _Text = None
    """Place of the machine, such as `Sweden, SE`."""
    dlperf: _Number = None
    """The service's own score for deep learning."""


class InstanceRow(_Row):
    """A contract of this account; it costs money in every state, until it is destroyed.

    Example: `InstanceRow(id=7835610, label="tsgb/home/run-abc/1", actual_status="running")`
    """

    id: int
    """Number of the instance."""
    label: _Text = None
    """Label that its renter chose."""
    actual_status: _Text = None
    """State of the container: None (not there yet), created, loading, running, stopped, frozen,
    exited, rebooting, unknown, offline."""
    intended_status: _Text = None
    """State that was asked for: running, stopped, frozen."""
    cur_state: _Text = None
    """State of the contract: running, stopped, unloaded."""
    next_state: _Text = None
    """State of the contract as soon as a pending change is done."""
    status_msg: _Text = None
    """Remark of the service, such as an error of the container runtime."""
    machine_id: _Whole = None
    """The machine, over all its offers."""
    host_id: _Whole = None
    """The machine's owner."""
    gpu_name: _Text = None
    """Name of its GPUs."""
    num_gpus: _Whole = None
    """GPUs of the instance."""
    is_bid: _Flag = None
    """Whether it is interruptible; never assumed."""
    min_bid: _Number = None
    """Bid, $/h."""
    dph_base: _Number = None
    """Price without storage, $/h."""
    dph_total: _Number = None
    """Price with storage, without traffic, $/h."""
    disk_space: _Number = None
    """Storage, GB."""
    storage_cost: _Number = None
    """Price of storage, $/GB a month of 730 h."""
    start_date: _Number = None
    """Time of the rental, seconds since 1970."""
    end_date: _Number = None
    """Time of the contract's limit, seconds since 1970."""


class AccountRow(_Row):
    """The account that the key belongs to.

    Example: `AccountRow(id=1, credit=25.0)`
    """

    id: int
    """Number of the account."""
    credit: _Finite
    """Dollars that can be spent."""
    autobill_threshold: _Number = None
    """Dollars of credit below which a card is charged; None if that is off, or not told."""
    autobill_amount: _Number = None
    """Dollars that are charged then."""

    @property
    def bills_itself(self) -> bool | None:
        """Whether a card adds credit that runs low; None if the row does not tell."""
        if any((amount or 0) > 0 for amount in (self.autobill_threshold, self.autobill_amount)):
            return True
        told = {"autobill_threshold", "autobill_amount"} & self.model_fields_set
        return False if told else None


class Rental(BaseModel):
    """Request for `create`, always for an interruptible rental at a bid.

    Example: `Rental(image="tsgb/worker:1", label="tsgb/home/run-abc/1", price=0.15, disk_gb=60)`
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", hide_input_in_errors=True, use_attribute_docstrings=True
    )

    image: Annotated[str, Field(min_length=1, max_length=1024)]
    """Container image."""
    label: Annotated[str, Field(min_length=1, max_length=256)]
    """Label by which it is found if the answer is lost: no other rental may have the same."""
    price: Price
    """Bid in $/h, which is what is paid. Without one the service rents at the full price."""
    disk_gb: Annotated[float, Field(ge=8, allow_inf_nan=False)]
    """Storage, GB; it cannot grow."""
    onstart: str = ""
    """Shell script that runs at every start of the container; with `args` the entry point, which
    replaces the image's."""
    args: tuple[str, ...] = ()
    """Arguments of the entry point. The container then gets no SSH server and opens no port."""
    env: dict[Annotated[str, Field(min_length=1, max_length=256)], SecretStr] = {}
    """Environment of the container."""

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
        """Return the body of the request, secrets in plain text."""
        body: dict[str, Any] = {
            "client_id": "me",
            "image": self.image,
            "env": {name: value.get_secret_value() for name, value in self.env.items()},
            "price": self.price,
            "disk": self.disk_gb,
            "label": self.label,
            # The service runs a script beside an SSH server, and an entry point without one.
            "runtype": "ssh_proxy" if self.onstart and not self.args else "args",
            "cancel_unavail": True,  # fail now: what waits in a queue starts and costs later
        }
        if self.onstart:
            body["onstart"] = self.onstart
        if self.args:
            body["args"] = list(self.args)
        return body
