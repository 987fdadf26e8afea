"""Judges: whether a response violates the policy."""
