"""The glyph world: a symbolic world with an exact oracle, small enough for one CPU.

Nothing in it means anything outside its grammar. What each file knows:

    chance.py      draws, and the world's seed
    grammar.py     words, the form of a prompt, the maker and the exact parser
    policy.py      the hidden policy and the splits
    techniques.py  which forms a stream draws, and how often
    rules.py       the hidden weaknesses of the targets
    corpora.py     training texts of the built-in models
    models.py      names and sizes of the built-in models
    world.py       `GlyphEnvironment`, which puts them together
"""

from tsgb.envs.glyph.world import GlyphEnvironment

__all__ = ["GlyphEnvironment"]
