"""One attempt: resume, train to a target, heartbeat, save, obey signals, leave an exit record.

The only process that trains or evaluates. All that passes between it and whoever started it is the
store: config in; heartbeats, checkpoints, metrics, cells and the exit record out. Every command may
be killed at any moment and given again. It reads no environment: places and secrets are arguments.
"""
