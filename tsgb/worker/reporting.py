"""`tsgb worker report`: torch-free, since everything was measured when the cells were filled."""

from __future__ import annotations

from collections.abc import Sequence

from tsgb.envs import make_environment
from tsgb.eval.merge import Part, merge
from tsgb.worker.places import Places, find_run, read_config


def report(places: Places, resume_paths: Sequence[str], eval_id: str, command: str = "") -> str:
    """`tsgb worker report`: merge the cells of one or several runs; returns the verdict."""
    runs = [find_run(places, path) for path in resume_paths]
    parts = [Part(run, read_config(run)) for run in runs]
    first = parts[0].config
    env = make_environment(first.env, world_seed=first.world_seed)
    done = command or (
        f"tsgb experiment --profile {first.profile.value} --env {first.env} --seed {first.seed}"
    )
    return merge(parts, env, eval_id, done).verdict.sentence
