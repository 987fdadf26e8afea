"""Where a run's state is kept: atomic publish, verified read, fencing; see store.py."""
