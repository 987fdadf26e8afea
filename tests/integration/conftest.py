"""The command line in this process, as in the unit tests."""

from tests.unit.conftest import tsgb

__all__ = ["tsgb"]
