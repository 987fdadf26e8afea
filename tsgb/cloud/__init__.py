"""Rented machines: one paid machine at most for a run, within its budget, and none forgotten.

It joins decisions without input or output, a client of the service, and the documents of a run in
the store. It knows no Prefect: flows/tasks.py makes each step a task.
"""
