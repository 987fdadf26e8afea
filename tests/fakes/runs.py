"""A run in a store as training leaves it: config.json and one checkpoint, of real weights."""

from __future__ import annotations

from pathlib import Path

from tests.fakes.contexts import worker_context
from tests.fakes.miniature import TRUST, ScriptedTarget
from tsgb.checkpoint.run import open_run
from tsgb.checkpoint.store import CheckpointStore
from tsgb.config import RunConfig
from tsgb.setting_groups import HubSettings
from tsgb.trainer.loop import Trainer
from tsgb.types import CheckpointRef, Response
from tsgb.worker.build import make_registry, setup_torch


def save_run(
    run: Path,
    config: RunConfig,
    cache: Path,
    until_step: int | None = None,
    *,
    hub: HubSettings | None = None,
) -> CheckpointRef:
    """Train against a target that refuses, to the end or to a step, and save."""
    setup_torch()
    context = worker_context(cache, trust=TRUST, hub=hub)
    registry = make_registry(config, context, lambda _name, _done, _total: None)
    refusing = ScriptedTarget(lambda _prompt: Response(text="REFUSE"))
    trainer = Trainer(config, registry.env, registry.base(), refusing)
    while not trainer.done and trainer.state.step != until_step:
        trainer.step()
    opened = open_run(str(run))
    opened.write_text("config.json", config.canonical())
    store = CheckpointStore(opened)
    store.claim()
    state = trainer.state
    return store.publish(state.step, state.episode, trainer.files(), config.fingerprint)
