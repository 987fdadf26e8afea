"""The models of a run: recipes that are trained at first use and cached, and pretrained ones.

A recipe makes a small model of its own, or an adapter on a pretrained one. This is the only module
that chooses an engine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from random import Random

import torch
from torch import Tensor, nn

from tsgb.config import ModelConfig, RunConfig
from tsgb.envs.base import Environment
from tsgb.errors import ConfigError, HubUnreachable
from tsgb.models.cache import Unfinished, cache_key, cached_tensors
from tsgb.models.chat_tokenizer import ChatTokenizer
from tsgb.models.device import memory_of, pick_device, pick_dtype, release_memory
from tsgb.models.engine import Engine, Readout, Role, Tick, no_tick
from tsgb.models.fast.fast_engine import FastEngine
from tsgb.models.fast.pretrained import can_load, load_pretrained
from tsgb.models.fast.recipes import make_module, readout, train
from tsgb.models.fetch import fetch
from tsgb.models.files import CONFIG, read_json
from tsgb.models.planner import (
    MICRO_BATCH_TOKENS,
    ModelPart,
    ModelsInMemory,
    ModelSizes,
    TrainingWork,
)
from tsgb.models.post_training import (
    answer_questions,
    digest,
    freeze_lower_layers,
    post_train,
)
from tsgb.models.quantization import check_quantization
from tsgb.models.requirements import check_fits, models_of_run
from tsgb.models.tokenizer import Tokenizer, WordTokenizer
from tsgb.models.weights import load_parameters, snapshot
from tsgb.setting_groups import HubSettings
from tsgb.types import ModelRecipe

Progress = Callable[[str, int, int], None]
"""Called with (model, updates done, updates in all) while a model is being trained."""


class ModelRegistry:
    """The models of one environment under one profile."""

    def __init__(
        self,
        env: Environment,
        config: RunConfig,
        cache: Path,
        progress: Progress,
        hub: HubSettings | None = None,
        *,
        evaluates: bool = False,
        memory_shares: int = 1,
    ) -> None:
        """List the models; none is built yet.

        Args:
            env: gives recipes, corpora and target specs.
            config: gives profile, world seed and pretrained base.
            cache: directory for trained models.
            progress: told about training.
            hub: settings of the hub that pretrained models come from.
            evaluates: whether black boxes are asked, so that memory is left for the largest one.
            memory_shares: number of processes that share the memory of this machine.
        """
        self.env = env
        self._config = config
        self._cache = cache
        self._progress = progress
        self._hub = HubSettings() if hub is None else hub
        self._evaluates = evaluates
        self._memory_shares = memory_shares
        self._in_memory: tuple[ModelsInMemory | None] | None = None
        self._recipes: Mapping[str, ModelRecipe] = env.recipes(config.profile.value)
        spec = env.tokenizer()
        self._tokenizer = None if spec.pretrained else WordTokenizer(spec)
        self._base: Engine | None = None
        self._target: Engine | None = None
        self._black_box: tuple[str, Engine] | None = None
        self._adapters: dict[str, tuple[Role, str]] = {}
        self.hashes: dict[str, str] = {}
        """Hash of each pretrained model that was loaded, by what it is and its short name."""
        self.tick: Tick = no_tick
        """What all engines of this registry call, loaded or not yet; see `Engine.tick`."""

    @property
    def dtype(self) -> str:
        """Dtype of frozen weights on this machine, by its name in torch; nothing is loaded."""
        if not self._recipes["base"].pretrained:
            return "float32"
        model = self._config.model
        return str(pick_dtype(model, pick_device(model.device))).removeprefix("torch.")

    def names(self) -> list[str]:
        """Return the names of all recipes; a recipe follows the one that it starts from."""
        return sorted(self._recipes, key=lambda name: len(self._ancestors(name)))

    def parts(self, num: int) -> list[list[str]]:
        """Split the models over `num` processes; a model that starts from another stays with it.

        They are those that training and the configuration's evaluation need. A target that a user
        names besides is trained when it is first asked.

        A pretrained model is loaded by each process that needs it. The longest chain goes first
        onto the least loaded process. The cache has no say: processes that start at different times
        would see different ones, and leave a model to nobody.
        """
        chains: dict[str, list[str]] = {}
        for name in self._needed():
            trained = [n for n in self._ancestors(name) if not self._recipes[n].pretrained]
            chains.setdefault(trained[-1] if trained else name, []).append(name)
        made = self._recipes
        costs = {
            root: sum(made[name].steps * made[name].batch for name in chain)
            for root, chain in chains.items()
        }
        loads = [0] * num
        parts: list[list[str]] = [[] for _ in range(num)]
        for root in sorted(chains, key=lambda root: -costs[root]):
            least = loads.index(min(loads))
            parts[least] += chains[root]
            loads[least] += costs[root]
        return parts

    def build(self, name: str) -> None:
        """Make sure that a model is in the cache."""
        if self._recipes[name].pretrained:
            self.target()
        elif self._recipes[name].rank:
            self.role(name)
        else:
            self._weights(name)

    def base(self) -> Engine:
        """Return the engine on the frozen base of both players.

        Raises:
            ConfigError: The configuration names a base that does not exist or cannot be run.
        """
        if self._base is None:
            recipe, own = self._recipes["base"], self._config.model.pretrained
            if recipe.pretrained:
                self._base = self._load_pretrained(ModelPart.BASE, own or recipe.pretrained)
            elif own:
                raise ConfigError(
                    f"model.pretrained = {own!r}: {self.env.name} trains its own models, leave it"
                )
            else:
                module, sha256 = self._module("base")
                self._base = FastEngine(module, self.tokenizer(), name="base", sha256=sha256)
                self._base.tick = self._tick
        return self._base

    def target(self) -> Engine:
        """Return the engine of targets that generate: the base, or a model of their own.

        Raises:
            ConfigError: See `base`.
        """
        name, base = self._config.model.target, self.base()
        if not name:
            return base
        if self._target is None:
            quantization = self._config.model.target_quantization
            self._target = self._load_pretrained(ModelPart.TARGET, name, quantization)
        return self._target

    def own_target(self) -> Engine | None:
        """Return the engine of `target` if that is a model of its own."""
        return self.target() if self._config.model.target else None

    def black_box(self, model: str) -> Engine:
        """Return the engine of a black box; one at a time is in memory.

        Args:
            model: name of a pretrained model, as the configuration stores it.

        Raises:
            ConfigError: There is no such model, it cannot be run, or its files have changed since
                it was loaded before.
            UsageError: It does not fit beside the models that are in memory.
        """
        if self._black_box is None or self._black_box[0] != model:
            self.free_black_box()
            self._black_box = (model, self._load_pretrained(ModelPart.BLACK_BOX, model))
        return self._black_box[1]

    def free_black_box(self) -> None:
        """Free the memory of the black box that was asked last, if there is one."""
        if self._black_box is not None:
            self._black_box = None
            release_memory()

    def role(self, name: str) -> Role:
        """Return the role on the engine of `target` that a recipe makes, trained now if need be.

        Args:
            name: a recipe of an adapter; any other name is the bare model.
        """
        recipe = self._recipes.get(name)
        return self._adapter(name)[0] if recipe and recipe.rank else self.target().base

    def readout(self, name: str) -> Readout:
        """Return a read-out model, trained now if it is not cached."""
        return readout(self._module(name)[0].eval(), self.tokenizer().pad_id)

    def tokenizer(self) -> Tokenizer:
        """Return the tokenizer that all models of the environment share."""
        return self.base().tokenizer if self._tokenizer is None else self._tokenizer

    # -- inside ----------------------------------------------------------------------------

    def _needed(self) -> list[str]:
        """Return the recipes of the base, of the surrogate and of the targets to evaluate on."""
        chosen = self._config.evaluation.targets
        if not chosen:
            return self.names()
        surrogates = [t.name for t in self.env.targets().values() if t.role == "surrogate"]
        roots = {"base", *surrogates, *chosen} & self._recipes.keys()
        needed = roots.union(*map(self._ancestors, roots))
        return [name for name in self.names() if name in needed]

    def _ancestors(self, name: str) -> list[str]:
        """Return the recipes that a recipe starts from, the next one first."""
        start = self._recipes[name].init_from
        return [start, *self._ancestors(start)] if start else []

    def _root(self, name: str) -> ModelRecipe:
        return self._recipes[[name, *self._ancestors(name)][-1]]

    def _key(self, name: str) -> str:
        recipe = self._recipes[name]
        return self._keyed(name, start=self._key(recipe.init_from) if recipe.init_from else "")

    def _keyed(self, name: str, **facts: object) -> str:
        return cache_key(
            {
                "env": self.env.name,
                "world_seed": self._config.world_seed,
                **self._config.world.model_dump(exclude_defaults=True, exclude={"coverage"}),
                "name": name,
                "recipe": asdict(self._recipes[name]),
                "torch": torch.__version__.split("+")[0],
                **facts,
            }
        )

    def _seed(self, name: str) -> int:
        return int(cache_key({"seed": self._config.world_seed, "name": name})[:12], 16)

    def _adapter(self, name: str) -> tuple[Role, str]:
        """Return the role of an adapter's recipe, and the hash of its weights."""
        if name not in self._adapters:
            self._adapters[name] = self._post_trained(name, self._recipes[name])
        return self._adapters[name]

    def _post_trained(self, name: str, recipe: ModelRecipe) -> tuple[Role, str]:
        engine, seed = self.target(), self._seed(name)
        role = engine.add_role(
            ModelConfig(adapter="lora", rank=recipe.rank), torch.Generator().manual_seed(seed)
        )
        parameters, start = engine.parameters(role), engine.sha256
        if self._recipes[recipe.init_from].rank:
            earlier, start = self._adapter(recipe.init_from)
            load_parameters(parameters, snapshot(engine.parameters(earlier)))
        texts = self.env.corpus(recipe.corpus, Random(seed), recipe.steps * recipe.batch)
        device = pick_device(self._config.model.device)
        key = self._keyed(
            name,
            start=start,
            texts=digest(texts),
            device=device.type,
            dtype=str(pick_dtype(self._config.model, device)),
        )
        unfinished = Unfinished(self._cache, key)

        def report(done: int) -> None:
            self._progress(name, done, recipe.steps)

        def build() -> Mapping[str, Tensor]:
            answered = answer_questions(engine, texts, self._cache, first=seed, report=report)
            freeze_lower_layers(parameters, recipe.frozen_share)
            return post_train(engine, role, answered, recipe, unfinished=unfinished, report=report)

        tensors, sha256 = cached_tensors(self._cache, key, build)
        unfinished.drop()
        load_parameters(parameters, tensors)
        return role, sha256

    def _weights(self, name: str) -> tuple[dict[str, Tensor], str]:
        recipe = self._recipes[name]

        def build() -> Mapping[str, Tensor]:
            module = make_module(self._root(name), self.tokenizer(), self._seed(name))
            if recipe.init_from:
                module.load_state_dict(self._weights(recipe.init_from)[0])
            train(
                module,
                recipe,
                self.env,
                self.tokenizer(),
                seed=self._seed(name),
                report=lambda step, _loss: self._progress(name, step, recipe.steps),
            )
            return module.state_dict()

        return cached_tensors(self._cache, self._key(name), build)

    def _module(self, name: str) -> tuple[nn.Module, str]:
        tensors, sha256 = self._weights(name)
        module = make_module(self._root(name), self.tokenizer(), 0)
        module.load_state_dict(tensors)
        return module, sha256

    def _load_pretrained(self, part: ModelPart, name: str, quantization: str = "none") -> Engine:
        directory, label, identity = fetch(name, self._hub, self._cache)
        sha256, earlier = identity.sha256, identity.earlier_sha256
        if quantization != "none":  # other weights: what is cached for these is not for those
            label, sha256 = f"{label}, {quantization}", cache_key({sha256: quantization})
            earlier = cache_key({earlier: quantization}) if earlier else ""
        if self.hashes.setdefault(f"{part} {label}", identity.sha256) != identity.sha256:
            raise ConfigError(
                f"the files of model {label} changed while it was in use: evaluate again"
            )
        engine = make_engine(
            directory,
            self._config.model,
            name=label,
            sha256=sha256,
            weights_sha256=identity.weights_sha256,
            quantization=quantization,
            models=self._models(),
            part=part,
            memory_shares=self._memory_shares,
        )
        engine.earlier_sha256 = earlier
        engine.tick = self._tick
        return engine

    def _tick(self) -> None:
        self.tick()

    def _models(self) -> ModelsInMemory | None:
        """Return the sizes of the run's pretrained models; None if that of the base is unknown."""
        if self._in_memory is None:
            try:
                found = models_of_run(
                    self._config, self.env, self._hub, self._cache, evaluates=self._evaluates
                )
            except HubUnreachable:
                found = None  # an export needs the base only, and that is there
            self._in_memory = (found,)
        return self._in_memory[0]


def make_engine(
    directory: Path,
    config: ModelConfig,
    *,
    name: str,
    sha256: str,
    weights_sha256: str | None = None,
    quantization: str = "none",
    models: ModelsInMemory | None = None,
    part: ModelPart = ModelPart.BASE,
    memory_shares: int = 1,
) -> Engine:
    """Return the engine for a pretrained model: the fast one where it computes just this model.

    Args:
        directory: the model and its tokenizer, as `save_pretrained` writes them.
        config: gives device and dtype.
        name: name of the base in records.
        sha256: hex digest of its files.
        weights_sha256: hex digest of the file with the weights, where it differs.
        quantization: how its weights are held, as `ModelConfig.target_quantization` names it.
        models: all that is in memory at the same time; without it this model alone.
        part: what the model is of `models`.
        memory_shares: number of processes that share the device's memory.

    Raises:
        ConfigError: The directory holds no such model, or the device is not there, or it cannot
            compute with weights in four bits.
        UsageError: The device has too little memory, which is found before anything is loaded.
    """
    device = pick_device(config.device)
    check_quantization(quantization, str(device))
    dtype, memory = pick_dtype(config, device), memory_of(device).shared_by(memory_shares)
    dtype_name = str(dtype).removeprefix("torch.")
    sizes = ModelSizes.read(read_json(directory / CONFIG))
    if models is None and sizes is not None:
        models = ModelsInMemory(base=sizes, work=TrainingWork(rank=config.rank))
    plan = models and models.plan(part, memory, dtype_name)
    if models is not None and plan is not None:
        check_fits(name, plan, None if part is ModelPart.BLACK_BOX else models.card())
    tokenizer = ChatTokenizer(directory)
    if device.type == "cpu" and can_load(directory):
        return FastEngine(
            load_pretrained(directory, dtype),
            tokenizer,
            name=name,
            sha256=sha256,
            weights_sha256=weights_sha256,
            memory=memory.share if models is None else models.fast_memory(part, memory, dtype_name),
        )
    # Importing the models of transformers takes seconds and 200 MB.
    from tsgb.models.general.general_engine import GeneralEngine
    from tsgb.models.general.loading import load_module

    module = load_module(directory, device, dtype, quantization)
    return GeneralEngine(
        module,
        tokenizer,
        name=name,
        sha256=sha256,
        weights_sha256=weights_sha256,
        directory=directory,
        micro_batch_tokens=MICRO_BATCH_TOKENS if plan is None else plan.micro_batch_tokens,
        gradient_checkpointing=plan is not None and plan.gradient_checkpointing,
    )
