"""A simulated Vast.ai: a real HTTP server on loopback whose instances are real processes.

    with VastSimulator(Options(hazard_per_hour=0.4), virtual=True) as vast:
        httpx.post(f"{vast.url}/api/v0/bundles/", headers=vast.headers, json={"type": "bid"})
        httpx.post(f"{vast.url}/_sim/clock", json={"advance_seconds": 3600})
        httpx.get(f"{vast.url}/_sim/ledger").json()["spent"]

Below `/api` it answers as the vendor's service does, errors and quirks included; below `/_sim` a
test turns the clock, plans faults and reads the ledger, which is what every test is judged by.
Nothing here was compared with the real service: the facts come from its documentation, its own
command line and what others report.
"""
