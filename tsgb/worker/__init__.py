"""Processes that train and evaluate, which `tsgb worker` runs.

A worker gets the URL of its run, and communicates with its flow only through the store: it reads
the configuration, and writes heartbeats, checkpoints, metrics, cells and exit records. Every
command may be killed at any moment and run again. No module here reads the environment: settings
and secrets are arguments.
"""
