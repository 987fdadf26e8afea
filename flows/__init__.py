"""The Prefect flows: wiring only; every decision and every number lives in the library."""
