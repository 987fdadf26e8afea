"""Evaluation: cells of items, statistics over them, and the report."""
