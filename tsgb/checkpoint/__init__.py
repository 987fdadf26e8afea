"""Checkpoints and documents of a run: atomic publish, verified read, fencing; see store.py."""
