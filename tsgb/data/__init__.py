"""Prompts that a user brings in files: formats, mapping, groups, splits and a check. No torch."""
