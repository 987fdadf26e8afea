"""The house rules, measured on the source itself: `LIMITS` holds the most that each may find.

A limit is a ratchet: it is lowered when the figure falls, and never raised. Every rule is also
shown to find what it is for, in a sample of a few lines. `tsgb/README.md` gives the reasons.
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

ROOT = Path(__file__).parents[2]


class Module(NamedTuple):
    """A module of the source, parsed."""

    name: str
    """Dotted; a package has the name of its folder."""
    path: str
    text: str
    tree: ast.Module

    @property
    def package(self) -> str:
        """The package that relative imports start from."""
        return self.name if self.path.endswith("__init__.py") else self.name.rpartition(".")[0]


def parsed(path: str, text: str) -> Module:
    name = path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    return Module(name, path, text, ast.parse(text))


def read(root: Path) -> list[Module]:
    paths = sorted(path for top in ("flows", "tsgb") for path in (root / top).rglob("*.py"))
    return [parsed(path.relative_to(root).as_posix(), path.read_text()) for path in paths]


def classes(module: Module) -> Iterator[ast.ClassDef]:
    return (node for node in ast.walk(module.tree) if isinstance(node, ast.ClassDef))


# --- names -------------------------------------------------------------------------------------


def shared(named: Iterable[tuple[str, str]]) -> list[str]:
    """`name: place, place` for each name that occurs more than once."""
    places: dict[str, list[str]] = defaultdict(list)
    for name, place in named:
        places[name].append(place)
    return [f"{name}: {', '.join(at)}" for name, at in sorted(places.items()) if len(at) > 1]


def classes_named_twice(modules: list[Module]) -> list[str]:
    return shared(
        (node.name, f"{module.path}:{node.lineno}")
        for module in modules
        for node in classes(module)
    )


PARALLEL = {"tsgb.envs"}
"""Packages whose subfolders implement one seam: these share names of modules on purpose."""


def modules_named_twice(modules: list[Module]) -> list[str]:
    """Names used twice within a package `tsgb.x` and all that is below it."""

    def scope(module: Module) -> str:
        *above, name = module.name.split(".")
        package = ".".join(above[:2])
        return f"{'.'.join(above[:3]) if package in PARALLEL else package}.*.{name}"

    return shared((scope(module), module.path) for module in modules)


METAPHORS = {
    "desk",
    "papers",
    "words",
    "held",
    "abandon",
    "farewell",
    "patience",
    "given",
    "places",
}
"""Words for people and rooms, which name neither a module nor a class."""


def metaphors(modules: list[Module]) -> list[str]:
    def words(name: str) -> set[str]:
        return set(re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower().split("_"))

    named = [(module.name.rpartition(".")[2], module.path) for module in modules]
    named += [
        (node.name, f"{module.path}:{node.lineno}")
        for module in modules
        for node in classes(module)
    ]
    return [f"{name}: {at}" for name, at in named if name[0] != "_" and words(name) & METAPHORS]


# --- who imports whom --------------------------------------------------------------------------


def imported(module: Module, known: set[str]) -> set[str]:
    """Modules of ours that this one imports, also for type checking or within a function."""
    found: set[str] = set()
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = module.package.split(".")
            base = base[: len(base) + 1 - node.level] if node.level else []
            source = ".".join([*base, *filter(None, [node.module])])
            for alias in node.names:
                whole = f"{source}.{alias.name}"
                found.add(whole if whole in known else source)
    return found & known - {module.name}


def circles(modules: list[Module]) -> list[str]:
    """Sets of modules each of which imports, through some path, all others."""
    index = {module.name: i for i, module in enumerate(modules)}
    edges = [
        (i, index[name])
        for i, module in enumerate(modules)
        for name in imported(module, set(index))
    ]
    start, end = np.array(edges, dtype=np.int32).reshape(-1, 2).T
    graph = coo_array((np.ones(len(edges)), (start, end)), shape=(len(index), len(index)))
    _, label = connected_components(graph, directed=True, connection="strong")
    members: dict[int, list[str]] = defaultdict(list)
    for module, circle in zip(modules, label, strict=True):
        members[int(circle)].append(module.name)
    return [" <-> ".join(names) for names in members.values() if len(names) > 1]


CLOUD = "tsgb/cloud/vast/"
SETTINGS = re.compile(
    r"\b(TSGB_VAST_URL|VAST_API_KEY)\b|--vast-url|\bvast_(api_key|url)\b|\bVastUrlOption\b"
)
"""Names that a user types, with the fields that hold them."""


def mentions_of_vast(modules: list[Module]) -> list[str]:
    """Lines that name the provider, outside its package and the one factory that picks it."""
    outside = [module for module in modules if not module.path.startswith(CLOUD)]
    known = {module.name for module in modules}
    lines = [
        f"{module.path}:{number}: {line.strip()}"
        for module in outside
        for number, line in enumerate(module.text.splitlines(), 1)
        if "vast" in SETTINGS.sub("", line).lower()
    ]
    importers = {
        module.path
        for module in outside
        if any(name.startswith("tsgb.cloud.vast") for name in imported(module, known))
    }
    if len(importers) > 1:
        return lines
    return [line for line in lines if line.partition(":")[0] not in importers]


# --- texts -------------------------------------------------------------------------------------


class Text(NamedTuple):
    """A docstring, or the text of a field."""

    place: str
    text: str


def records(modules: list[Module]) -> set[str]:
    """Names of dataclasses, named tuples, pydantic models, and heirs of these."""
    found = {"NamedTuple", "TypedDict", "BaseModel", "BaseSettings"}
    bases: dict[str, set[str]] = defaultdict(set)
    for node in (node for module in modules for node in classes(module)):
        bases[node.name] |= {ast.unparse(base).split("[")[0].split(".")[-1] for base in node.bases}
        if any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list):
            found.add(node.name)
    while more := {name for name in bases if bases[name] & found} - found:
        found |= more
    return found


def described(field: ast.AnnAssign, after: ast.stmt | None) -> str | None:
    """The text of a field: the string below it, or the `description` within its value."""
    match after:
        case ast.Expr(value=ast.Constant(value=str(text))):
            return text
        case _:
            pass
    for node in ast.walk(field.value) if field.value else ():
        match node:
            case ast.keyword(arg="description", value=ast.Constant(value=str(text))):
                return text
            case ast.keyword(arg="description"):
                return ast.unparse(node.value)
            case _:
                pass
    return None


def fields(modules: list[Module]) -> Iterator[tuple[str, str | None]]:
    """Public fields of records, as `path:line: Class.field`, each with its text."""
    known = records(modules)
    for module in modules:
        for owner in classes(module):
            if owner.name not in known:
                continue
            for statement, after in pairwise([*owner.body, None]):
                match statement:
                    case ast.AnnAssign(target=ast.Name(id=name), annotation=annotation):
                        kind = ast.unparse(annotation)
                        if name[0] == "_" or name == "model_config" or "ClassVar" in kind:
                            continue
                        place = f"{module.path}:{statement.lineno}: {owner.name}.{name}"
                        yield place, described(statement, after)
                    case _:
                        pass


def fields_without_text(modules: list[Module]) -> list[str]:
    return [place for place, text in fields(modules) if not text]


def texts(modules: list[Module]) -> list[Text]:
    """Docstrings of modules, classes and functions, and texts of fields."""
    found = [Text(place, text) for place, text in fields(modules) if text]
    for module in modules:
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                text = ast.get_docstring(node)
                if text:
                    found.append(Text(f"{module.path}:{getattr(node, 'lineno', 1)}", text))
    return found


NEVER = {
    *("Of", "What", "Why", "Who", "Whose", "Which", "That", "Nobody", "Nothing", "Neither", "Not"),
    *("And", "But", "Or", "Nor", "So", "Else", "Than", "Never"),
}
"""A text that begins with one of these is a fragment."""
OPENING = {
    *("As", "By", "To", "From", "For", "In", "Into", "On", "At", "With", "Without", "Within"),
    *("Where", "When", "If", "Unless", "After", "Before", "Until", "Since", "Because", "While"),
    *("Between", "Under", "Over", "About", "Against", "Through", "Above", "Below", "Beside"),
}
"""A sentence may begin with one of these if a main clause follows its comma."""
SUBORDINATE = re.compile(
    r"\(|(which|who|where|when|while|if|since|as|and|or|but|so|then|also|apart|how|what)\b"
)
"""Begins what is no main clause."""
VERB = re.compile(
    r"\b(is|are|was|were|has|have|had|does|do|did|can|cannot|could|may|might|must|shall|should"
    r"|will|would|\w{2,}(?<!s)(?<!thi)s)\b"
)
"""An auxiliary, or a word that may be the third person of a verb."""
PARTICIPLE = re.compile(
    r"(?!(Seed|Need|Speed|Feed|Token)\b)(\w+ed|\w{2,}en|Read|Set|Put|Sent|Left|Made|Built|Kept|Paid)"
    r" (by|from|in|to|as|at|on|with|for|of|after|before|when|if|where|once|until)\b"
)
"""A participle without its noun: "Billed as training is"."""


def is_fragment(text: str) -> bool:
    """Tell whether a text's first sentence is neither a sentence nor a noun phrase."""
    paragraph = " ".join(text.strip().partition("\n\n")[0].split())
    sentence = re.split(r"[.;:](?:\s|$)", paragraph, maxsplit=1)[0]
    first, _, rest = sentence.partition(" ")
    first = first.rstrip(",")
    if first in {"Only", "Also", "Still"}:
        return is_fragment(rest.capitalize())
    if first in NEVER or PARTICIPLE.match(sentence):
        return True
    if first in OPENING:
        clauses = sentence.split(", ")[1:]
        return not any(VERB.search(c) for c in clauses if not SUBORDINATE.match(c))
    return first == "None" and not re.match(r"(of|is|are|was|has|means)\b", rest)


def fragments(modules: list[Module]) -> list[str]:
    return [
        f"{place}: {text.splitlines()[0]}" for place, text in texts(modules) if is_fragment(text)
    ]


PRAGMA = re.compile(r"  # (noqa|pyright: ignore).*$")
"""What a checker reads, and what has to stand on the line that it is about."""


def long_lines(modules: list[Module]) -> list[str]:
    return [
        f"{module.path}:{number}"
        for module in modules
        for number, line in enumerate(module.text.splitlines(), 1)
        if len(PRAGMA.sub("", line)) > 100
    ]


# --- the unit tests ----------------------------------------------------------------------------

NO_MODULE = {"contracts", "readme", "sentinels", "structure"}
"""Subjects in `tests/unit` itself that are the repository and its suite, and no module."""


def without_a_module(tests: Iterable[str], sources: Iterable[str]) -> list[str]:
    """Paths below `tests/unit` that are not `test_X.py` or `test_X_aspect.py` of a module X.

    Args:
        tests: paths of test files, relative to `tests/unit`.
        sources: paths of modules, relative to `tsgb`, or `flows/...`; a package counts as one.
    """
    modules = {Path(path).with_suffix("") for path in sources}
    modules |= {path.parent for path in modules}
    known = {*modules, *(Path(name) for name in NO_MODULE)}

    def has_module(test: Path) -> bool:
        words = test.stem.removeprefix("test_").split("_")
        return any(
            test.with_name("_".join(words[:end])) in known for end in range(1, len(words) + 1)
        )

    return sorted(test for test in tests if not has_module(Path(test)))


# --- the rules, and the most that each may find ------------------------------------------------

Rule = Callable[[list[Module]], list[str]]
FACTORIES = frozenset(
    [
        "arange",
        "as_tensor",
        "empty",
        "empty_strided",
        "eye",
        "full",
        "linspace",
        "logspace",
        "normal",
        "ones",
        "rand",
        "randint",
        "randn",
        "randperm",
        "scalar_tensor",
        "tensor",
        "tril_indices",
        "triu_indices",
        "zeros",
    ]
)
"""Functions of torch that make a tensor on the CPU unless they are told where."""


def tensors_without_a_device(modules: Iterable[Module]) -> list[str]:
    """Tensors of models and training that would be made on the CPU whatever device computes.

    The kernels in `models/fast` compute on CPUs only.
    """
    return [
        f"{module.path}:{node.lineno}: {ast.unparse(node)}"
        for module in modules
        if module.name.startswith(("tsgb.models", "tsgb.trainer"))
        and not module.name.startswith("tsgb.models.fast")
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and ast.unparse(node.func.value) == "torch"
        and node.func.attr in FACTORIES
        and "device" not in {keyword.arg for keyword in node.keywords}
    ]


LIMITS: dict[Rule, int] = {
    classes_named_twice: 0,
    modules_named_twice: 0,
    metaphors: 0,
    circles: 0,
    mentions_of_vast: 2,  # the service's default address, and its docstring
    fields_without_text: 0,
    long_lines: 0,
    tensors_without_a_device: 0,
}
"""Findings of each rule that are left; the goal is 0 for all."""
FRAGMENTS = 0.01
"""Share of all texts that may be fragments."""


@pytest.fixture(scope="module")
def modules() -> list[Module]:
    return read(ROOT)


def name_of(rule: Rule) -> str:
    return rule.__name__


@pytest.mark.parametrize("rule", LIMITS, ids=name_of)
def test_no_rule_is_broken_more_than_before(rule: Rule, modules: list[Module]) -> None:
    found = rule(modules)
    assert len(found) <= LIMITS[rule], "\n".join(found)


def test_texts_are_sentences_or_noun_phrases(modules: list[Module]) -> None:
    found = fragments(modules)
    assert len(found) / len(texts(modules)) <= FRAGMENTS, "\n".join(found)


def test_unit_tests_have_the_names_of_modules() -> None:
    unit = ROOT / "tests" / "unit"
    tests = [path.relative_to(unit).as_posix() for path in unit.rglob("test_*.py")]
    sources = [
        path.relative_to(root).as_posix()
        for root, folder in ((ROOT / "tsgb", "."), (ROOT, "flows"))
        for path in (root / folder).rglob("*.py")
    ]
    found = without_a_module(tests, sources)
    assert found == [], "name each test_X.py or test_X_aspect.py after a module X of its package"


@pytest.mark.parametrize(
    ("test", "is_found"),
    [
        ("eval/test_table.py", False),
        ("eval/test_table_rows.py", False),
        ("eval/test_two_words.py", False),
        ("test_eval.py", False),
        ("test_readme.py", False),
        ("eval/test_tables.py", True),
        ("eval/test_two.py", True),
        ("eval/test_readme.py", True),
        ("test_table.py", True),
    ],
)
def test_a_unit_test_of_no_module(test: str, is_found: bool) -> None:
    sources = ["eval/__init__.py", "eval/table.py", "eval/two_words.py"]
    assert without_a_module([test], sources) == [test] * is_found


def sample(**texts: str) -> list[Module]:
    """Modules with these texts; `__` in a name stands for a dot."""
    return [parsed(f"{name.replace('__', '/')}.py", text) for name, text in texts.items()]


RECORD = """
@dataclass
class {name}:
    seconds: float
    {text}
"""


@pytest.mark.parametrize(
    ("rule", "broken", "kept"),
    [
        pytest.param(
            classes_named_twice,
            sample(tsgb__a="class Row: ...", flows__b="def f():\n    class Row: ..."),
            sample(tsgb__a="class Row: ...", flows__b="class Line: ..."),
            id="classes_named_twice",
        ),
        pytest.param(
            modules_named_twice,
            sample(tsgb__eval__plan="", tsgb__eval__old__plan=""),
            sample(tsgb__eval__plan="", tsgb__cli__plan="", tsgb__envs__a__world="")
            + sample(tsgb__envs__b__world=""),
            id="modules_named_twice",
        ),
        pytest.param(
            metaphors,
            sample(tsgb__cloud__session="class DeskRecord: ..."),
            sample(tsgb__cloud__session="class Desktop: ..."),
            id="metaphors_in_a_class",
        ),
        pytest.param(metaphors, sample(tsgb__places=""), sample(tsgb__paths=""), id="metaphors"),
        pytest.param(
            circles,
            sample(
                tsgb__a="from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import tsgb.b",
                tsgb__b="def f():\n    from .c import d",
                tsgb__c="from tsgb import a",
            ),
            sample(tsgb__a="import tsgb.b", tsgb__b="from . import c", tsgb__c="import os"),
            id="circles",
        ),
        pytest.param(
            mentions_of_vast,
            sample(flows__reaper="# Asks Vast."),
            sample(flows__reaper="key = settings.vast_api_key  # VAST_API_KEY"),
            id="mentions_of_vast",
        ),
        pytest.param(
            mentions_of_vast,
            sample(
                tsgb__cloud__vast__client="",
                tsgb__cloud__pick="from tsgb.cloud.vast import client",
                flows__reaper="from tsgb.cloud.vast import client",
            ),
            sample(
                tsgb__cloud__vast__client="", tsgb__cloud__pick="from tsgb.cloud.vast import client"
            ),
            id="a_second_factory",
        ),
        pytest.param(
            fields_without_text,
            sample(tsgb__a="class Base(BaseModel): ...", tsgb__b="class C(Base):\n    x: int"),
            sample(
                tsgb__a=RECORD.format(name="A", text='"""Seconds between two looks."""'),
                tsgb__b="class B(BaseModel):\n    x: int = Field(1, description='Steps.')",
                tsgb__c="class C:\n    x: int",
                tsgb__d="class D(NamedTuple):\n    _x: int\n    y: ClassVar[int] = 1",
            ),
            id="fields_without_text",
        ),
        pytest.param(
            tensors_without_a_device,
            sample(tsgb__models__a="x = [torch.zeros(3), torch.ones(3, device=d)]"),
            sample(
                tsgb__trainer__a="torch.zeros(3, device='cpu') + x.new_zeros(3) + torch.stack([x])",
                tsgb__models__fast__a="torch.zeros(3)",
                tsgb__eval__a="torch.zeros(3)",
            ),
            id="tensors_without_a_device",
        ),
        pytest.param(
            long_lines,
            sample(tsgb__a="#" * 101),
            sample(tsgb__a="é" * 100 + "  # noqa: S608"),
            id="long_lines",
        ),
    ],
)
def test_each_rule_finds_what_it_is_for(
    rule: Rule, broken: list[Module], kept: list[Module]
) -> None:
    assert rule(broken)
    assert rule(kept) == []


@pytest.mark.parametrize(
    "text",
    [
        "Of the newest checkpoint then.",
        "What a process says about itself, on stderr.",
        "Nobody watches.",
        "As the flow wrote it, since the ledger writes it again.",
        "Not reserved, heavy in ciphers.",
        "By attempt.",
        "Between two saves, as it is now.",
        "From the checkout, or from the wheel, which carries it.",
        "When it last said something; the flow reads it.",
        "None until its end.",
        "None: not measured.",
        "Only of one that is ok.",
        "Billed as training is.",
        "Read by the monitor.",
    ],
)
def test_a_fragment(text: str) -> None:
    assert is_fragment(text)
    assert fragments(sample(tsgb__a=f'"""{text}"""'))
    assert fragments(sample(tsgb__a=RECORD.format(name="A", text=f'"""{text}"""')))


@pytest.mark.parametrize(
    "text",
    [
        "Return the newest checkpoint, or None if there is none.",
        "Reads where each arm stands.",
        "Seconds between two looks at a worker.",
        "Whether the judge is asked.",
        "No answer within the time for retries.",
        "None of the rows is empty.",
        "If a worker dies, the flow starts another.",
        "In the canary world, the judge is exact.",
        "Only machines that the service has verified.",
        "Seed of the best response.",
        "Packed rows of tokens.",
    ],
)
def test_no_fragment(text: str) -> None:
    assert not is_fragment(text)
