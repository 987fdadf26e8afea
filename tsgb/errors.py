"""Every error that TSGB raises on purpose.

It knows exit codes and nothing else. Extension code raises plain Python errors; they are
classified where they enter (store, black box, worker, Vast.ai), in one place each.

    TSGBError                      exit 1
    +-- UsageError (ValueError)    exit 2   the user's input: value, rule, way out
    |   +-- ConfigError            exit 2   a config that cannot be run, or of another version
    |   +-- CheckpointError        exit 2   nothing there to load, or nothing valid
    |   +-- StoreError             exit 2   the store cannot be read or written
    |       +-- StoreFull          exit 6   no space (ENOSPC, HTTP 507); saved work is safe
    |       +-- StoreUnreachable   exit 7   no answer for as long as it was retried; may heal
    +-- LeaseLost                  exit 5   a newer process works on this run
    +-- BudgetReached              exit 8   the money is used up; what was trained is kept
    +-- NoOffer                    exit 9   no machine to rent on these terms; a later try may work
    +-- InvalidResult              exit 3   too many errors to trust the number
    +-- Interrupted                exit 130 SIGINT/SIGTERM: saved, resume with the same command
    +-- Preempted                           the machine is gone; the flow retries on this one only
    +-- WorkerFailed                        the worker said why; retrying would not help
    +-- VastError                           Vast.ai; `contract_id`: what it left behind
        +-- VastAuthError          exit 2   key refused, or it may not do that
        +-- VastNoCredit           exit 8   no credit, or the account's limit on spending
        +-- VastGone                        this instance or offer is not there (any more)
        +-- VastRefused                     it understood, and will not; the same call never works
        +-- VastRateLimited                 too often; `wait_seconds` says how long to wait
        |   +-- VastSearchQuota             no more searches today
        +-- VastUnreachable                 no usable answer in time: unknown, never empty or gone
        +-- VastAmbiguous                   a rental may exist: look before you try again
"""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """Exit codes of every `tsgb` process."""

    OK = 0
    FAILURE = 1
    USAGE = 2
    INVALID = 3
    LEASE_LOST = 5
    STORE_FULL = 6
    STORE_UNREACHABLE = 7
    BUDGET = 8
    NO_OFFER = 9
    INTERRUPTED = 130


class TSGBError(Exception):
    """Root of the tree; `exit_code` is what the command line exits with."""

    exit_code: ExitCode = ExitCode.FAILURE


class UsageError(TSGBError, ValueError):
    """The user's input is wrong; the message names the value, the rule and the way out."""

    exit_code = ExitCode.USAGE


class ConfigError(UsageError):
    """A configuration that cannot be run here."""


class CheckpointError(UsageError):
    """No checkpoint, or none that verifies."""


class StoreError(UsageError):
    """The store cannot be read or written."""


class StoreFull(StoreError):
    """No space left; what was committed before is untouched."""

    exit_code = ExitCode.STORE_FULL


class StoreUnreachable(StoreError):
    """No answer within the time for retries: what was committed is safe, a later try may work."""

    exit_code = ExitCode.STORE_UNREACHABLE


class LeaseLost(TSGBError):
    """Another process has claimed this run with a higher attempt number."""

    exit_code = ExitCode.LEASE_LOST


class BudgetReached(TSGBError):
    """No money for another machine: raise the budget and go on from the last checkpoint."""

    exit_code = ExitCode.BUDGET


class NoOffer(TSGBError):
    """No machine can be rented on these terms; what was trained is kept."""

    exit_code = ExitCode.NO_OFFER


class InvalidResult(TSGBError):
    """Too many items ended in an error for the rate to mean anything."""

    exit_code = ExitCode.INVALID


class Interrupted(TSGBError):
    """Stopped by a signal after the state was saved."""

    exit_code = ExitCode.INTERRUPTED


class Preempted(TSGBError, RuntimeError):
    """The machine is gone without an exit record: resume from the last checkpoint."""


class WorkerFailed(TSGBError, RuntimeError):
    """The worker ended with a reason that a retry does not cure."""


class VastError(TSGBError):
    """Vast.ai did not do what was asked."""

    def __init__(
        self,
        message: str,
        *,
        code: str = "",
        status: int | None = None,
        contract_id: int | None = None,
    ) -> None:
        """Describe it.

        Args:
            message: For people.
            code: The service's own word for it, such as `no_such_ask`.
            status: Of HTTP; None if there was no answer.
            contract_id: An instance that exists although this failed: it costs money.
        """
        super().__init__(message)
        self.code = code
        self.status = status
        self.contract_id = contract_id


class VastAuthError(VastError):
    """The key is wrong, or lacks a permission: no verdict on anything that was asked about."""

    exit_code = ExitCode.USAGE


class VastNoCredit(VastError):
    """`insufficient_credit`, or `spend_rate_limit` for new accounts."""

    exit_code = ExitCode.BUDGET


class VastGone(VastError):
    """A definite answer that this instance, or this offer, is not there (any more)."""


class VastRefused(VastError):
    """The same call will be refused again."""


class VastRateLimited(VastError):
    """Asked too often, by all who share the key; nothing was done."""

    wait_seconds: float = 0.0
    """Before the next try."""


class VastSearchQuota(VastRateLimited):
    """No more searches until `wait_seconds` are over; all else goes on."""


class VastUnreachable(VastError):
    """No answer in time, or none that says what was asked: what is there is unknown."""


class VastAmbiguous(VastError):
    """A rental was asked for and may exist. Look for its label before you try again."""
