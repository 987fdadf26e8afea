"""Every error that TSGB raises on purpose.

It knows exit codes and nothing else. Extension code raises plain Python errors; they are
classified where they enter (store, black box, worker, provider), in one place each.

    TSGBError                      exit 1
    +-- UsageError (ValueError)    exit 2   the user's input: value, rule, way out
    |   +-- ConfigError            exit 2   a config that cannot be run, or of another version
    |   |   +-- TrainingFailed       exit 2   a run that cannot go on as configured: NaN, no signal
    |   +-- HubUnreachable         exit 7   the hub of models did not answer; may heal
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
    +-- ProviderError                       a service that rents machines did not do it
        +-- ProviderAuthError      exit 2   key refused, or it lacks a permission
        +-- ProviderNoCredit       exit 8   no credit, or the account's limit on spending
        +-- ProviderGone                    this instance or offer is not there (any more)
        +-- ProviderRefused                 the same call will be refused again
        +-- ProviderUnreachable             no usable answer in time: unknown, never empty or gone
        |   +-- ProviderRateLimited         too often; `wait_seconds` says how long to wait
        |       +-- ProviderSearchQuota     no more searches for now
        +-- ProviderAmbiguous               a rental may exist: look before the next try
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
    GATE_FAILED = 100
    INTERRUPTED = 130


class TSGBError(Exception):
    """Root of the tree; `exit_code` is what the command line exits with."""

    exit_code: ExitCode = ExitCode.FAILURE


class UsageError(TSGBError, ValueError):
    """The user's input is wrong; the message names the value, the rule and the way out."""

    exit_code = ExitCode.USAGE


class ConfigError(UsageError):
    """A configuration that cannot be run here."""


class TrainingFailed(ConfigError):
    """Training cannot go on with this configuration; what was saved before is kept."""


class HubUnreachable(UsageError):
    """The hub of pretrained models gave no usable answer; a later try may work."""

    exit_code = ExitCode.STORE_UNREACHABLE


class CheckpointError(UsageError):
    """The store holds no checkpoint there, or none that verifies."""


class StoreError(UsageError):
    """The store cannot be read or written."""


class StoreFull(StoreError):
    """The store has no space left; what was committed before is untouched."""

    exit_code = ExitCode.STORE_FULL


class StoreUnreachable(StoreError):
    """The store did not answer within the time for retries; a later try may work."""

    exit_code = ExitCode.STORE_UNREACHABLE


class LeaseLost(TSGBError):
    """Another process has claimed this run with a higher attempt number."""

    exit_code = ExitCode.LEASE_LOST


class BudgetReached(TSGBError):
    """The money for machines is used up: raise the budget and go on from the last checkpoint."""

    exit_code = ExitCode.BUDGET


class NoOffer(TSGBError):
    """The market has no machine on these terms; what was trained is kept."""

    exit_code = ExitCode.NO_OFFER


class InvalidResult(TSGBError):
    """Too many items ended in an error for the rate to mean anything."""

    exit_code = ExitCode.INVALID


class Interrupted(TSGBError):
    """Stopped by a signal after the state was saved."""

    exit_code = ExitCode.INTERRUPTED


class RunCancelled(TSGBError):
    """A person has cancelled the work through its control plane, or deleted it there."""

    exit_code = ExitCode.INTERRUPTED


class Preempted(TSGBError, RuntimeError):
    """The machine is gone without an exit record: resume from the last checkpoint."""


class WorkerFailed(TSGBError, RuntimeError):
    """The worker ended with a reason that a retry does not cure."""


class ProviderError(TSGBError):
    """A service that rents machines did not do what was asked; the message names the service."""

    def __init__(
        self,
        message: str,
        *,
        code: str = "",
        status: int | None = None,
        instance_id: int | None = None,
    ) -> None:
        """Describe the failure.

        Args:
            message: One line for people.
            code: The service's own code, such as `no_such_ask`.
            status: HTTP status; None if there was no answer.
            instance_id: An instance that exists although the call failed: it costs money.
        """
        super().__init__(message)
        self.code = code
        self.status = status
        self.instance_id = instance_id


class ProviderAuthError(ProviderError):
    """The key is wrong or lacks a permission, so nothing is known of what was asked about."""

    exit_code = ExitCode.USAGE


class ProviderNoCredit(ProviderError):
    """The account has no credit, or the service limits its spending."""

    exit_code = ExitCode.BUDGET


class ProviderGone(ProviderError):
    """The service says definitely that this instance or offer is not there (any more)."""


class ProviderRefused(ProviderError):
    """The service understood the call and will refuse it again."""


class ProviderUnreachable(ProviderError):
    """The service gave no usable answer in time: the state of what was asked about is unknown."""


class ProviderRateLimited(ProviderUnreachable):
    """All who share the key asked too often; nothing was done, and nothing is known."""

    wait_seconds: float = 0.0
    """Seconds before the next try."""


class ProviderSearchQuota(ProviderRateLimited):
    """The service allows no more searches for `wait_seconds`; other calls go on."""


class ProviderAmbiguous(ProviderError):
    """A rental was asked for and may exist: look for its label before the next try."""
