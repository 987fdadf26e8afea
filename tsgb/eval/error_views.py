"""The ledger of errors: rows and cells of a summary's items without an outcome."""

from __future__ import annotations

from tsgb.eval.records import FailedClass, Summary
from tsgb.eval.views import ABSENT, Sheet, TableCell, TableRow
from tsgb.eval.wording import percent

COLUMNS = (
    ("Without an outcome", "items, and their share"),
    ("Of", "items of the class"),
    ("Calls in vain", ""),
    ("Reasons", "the most common, with their items"),
)


def error_sheet(summary: Summary) -> Sheet:
    """Return a row for each class of items, such as the harmful prompts to one target."""
    rows = [TableRow(found.what, found.what, _error_cells(found)) for found in summary.missing]
    return Sheet("Items without an outcome", COLUMNS, rows)


def _error_cells(found: FailedClass) -> list[TableCell]:
    reasons = [f"{reason} ({num})" for reason, num in found.common.items()]
    others = found.errors - sum(found.common.values())
    if reasons and others > 0:
        reasons.append(f"others ({others})")
    return [
        TableCell(f"{found.errors}", percent(found.errors / found.total)),
        TableCell(f"{found.total}"),
        TableCell(f"{found.attempts}") if found.attempts else ABSENT,
        TableCell("; ".join(reasons)) if reasons else ABSENT,
    ]
