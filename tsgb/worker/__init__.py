"""Processes that train and evaluate: what `tsgb worker` runs.

A worker is told its run by URL and meets its flow only in the store: configuration in; heartbeats,
checkpoints, metrics, cells and exit records out. Every command may be killed at any moment and
given again. No module here reads the environment: settings and secrets are arguments.
"""
