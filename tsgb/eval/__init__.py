"""Evaluation: targets, metrics with their intervals, and the report."""
