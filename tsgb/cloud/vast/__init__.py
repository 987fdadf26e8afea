"""A client for Vast.ai's REST API: one call in, one record or one error out; see client.py."""
