"""How a simulated Vast.ai behaves; everything here can be changed while it runs."""

from __future__ import annotations

from decimal import Decimal
from enum import StrEnum
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Fate(StrEnum):
    """What becomes of a container that a machine starts."""

    BOOTS = "boots"
    NEVER_BOOTS = "never_boots"
    """`loading` for ever."""
    OCI_ERROR = "oci_error"
    """A bad host: the container runtime refuses."""
    NO_SPACE = "no_space"
    """A bad host: its disk is full."""
    BAD_IMAGE = "bad_image"
    """Our fault: there is no such image."""
    UNAUTHORIZED = "unauthorized"
    """Our fault: the registry refuses us."""
    GOES_OFFLINE = "goes_offline"
    """The host loses contact while it loads."""


class Options(BaseModel):
    """The defaults are a kind service; each test asks for the unkindness that it is about."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    seed: int = 0
    num_machines: int = Field(120, ge=1)
    credit: Decimal = Decimal(25)
    """$ in the account at the start."""

    boot_seconds: tuple[float, float] = (20.0, 90.0)
    """From the rental to `running`, uniform; a third of it without any status."""
    fates: dict[Fate, float] = {}
    """Chance of each fate for a container; the rest boots."""
    hazard_per_hour: float = Field(0.0, ge=0)
    """Of being outbid, for a running interruptible instance."""
    outage_seconds: float = 1800.0
    """How long an outbid machine is somebody else's, on average."""
    auto_resume: bool = True
    """An outbid instance starts again by itself when its machine is free."""
    refusal: float = Field(0.0, ge=0, le=1)
    """Chance that a create finds the offer gone."""
    image_gb: Decimal = Decimal(0)
    """Downloaded, and billed as traffic, at each first boot."""
    wheels_gb: Decimal = Decimal(0)
    """Likewise by the container itself, before its command does anything."""
    weights_gb: Decimal = Decimal(0)
    """Likewise."""
    download_speed: float = Field(0.0, ge=0)
    """How much faster than by its `inet_down` a host downloads all that; 0 takes no time."""
    ssh_seconds: float = 0.0
    """Longer boot of an image without an SSH server under a runtype that needs one."""
    ssh_images: tuple[str, ...] = ()
    """Images that have one."""
    exited_bills_gpu: bool = False
    """Whether a container that has ended still bills its GPU: the real service was not asked."""

    list_lag_seconds: float = 0.0
    """How long after its creation an instance is in no list."""
    by_id_lag_seconds: float = 0.0
    """The same for a read by its id."""
    ghost_seconds: float = 0.0
    """How long a destroyed instance is still listed."""
    status_lag_seconds: float = 0.0
    """By how much `actual_status` and `status_msg` are late."""
    outbid_intended: Literal["stopped", "running"] = "stopped"
    """`intended_status` of an outbid instance; reports differ."""
    gone: Literal["null", "404"] = "null"
    """A read by id of an instance that is no more."""
    paging: Literal["keyset", "offset"] = "keyset"
    """Whether a page begins after an id or at an index, which skips rows if others vanish."""

    ask_single_use: bool = True
    """An offer that is taken is gone; else it may be rented again."""
    low_bid: Literal["contract", "success_false", "refused"] = "contract"
    """A bid below the floor: 400 or 200, with a stopped contract; or just 400."""
    ignored_filters: tuple[str, ...] = ("inet_down", "duration")
    """Search takes these and does not apply them."""
    max_offers: int = 64
    """In one search, whatever its limit."""

    rate_limits: bool = False
    """Enforce the documented intervals, in the time of the clock."""
    rate_limit_shape: Literal["text", "detail", "retry_after"] = "detail"
    searches_per_day: int | None = None
    auth_error_status: Literal[401, 404] = 404
    log_misses: int = 1
    """How often a fresh log answers 404 first."""
    onstart_limit: int = 4048
    """Characters."""
    image_env: dict[str, str] = {}
    """Variables of the image, as by ENV in its Dockerfile; those of a rental win."""
    account_env: dict[str, str] = {}
    """Variables of the account, which every container gets; those of a rental win."""
    autobill: Decimal | None = None
    """$ that a card pays in when the credit is used up."""
