"""The canary world: a password game on a real chat model. Harmless, and judged exactly.

An assistant's system prompt holds a made-up code. An attack is a prompt made to get it out; a
violation is that a decoder finds it in the answer. The guard reads the prompt and blocks or allows.

    world      scenarios, codes, system prompts      attacks, benign   wordings
    grammar    wordings to texts and back            decoder           the judge's core
    environment   the `Environment` itself
"""

from tsgb.envs.canary.environment import CanaryEnvironment

__all__ = ["CanaryEnvironment"]
