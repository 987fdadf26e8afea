"""Benchmark files by their exact columns, and how each tells a prompt, its label and its group.

The table in README.md says the same in words. A format is chosen by its columns alone; where these
do not say the label (JailbreakBench, OR-Bench) the name of the file does.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

from tsgb.data.cells import (
    NULLS,
    RowDroppedError,
    flag,
    group_of,
    group_of_text,
    json_of,
    number_or_text,
    optional_flag,
    optional_text,
    response_of,
    text_of,
)
from tsgb.data.records import DataPrompt

INDEX_COLUMNS = frozenset({"", "Unnamed: 0", "__index_level_0__"})
"""Names that pandas gives the numbers of rows; any format may have them."""


class Row(NamedTuple):
    """A row, and the file that it is in."""

    cells: Mapping[str, Any]
    """Value by column."""
    number: int
    """Number of the row."""
    source: str
    """Name of the format."""
    label: bool | None
    """Label of the whole file; None where rows have their own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DataFormat:
    """Columns of a benchmark's files, and the rule of its labels."""

    name: str
    """Name in tables and in `DataPrompt.source`."""
    columns: frozenset[str]
    """Columns that a file has."""
    read: Callable[[Row], DataPrompt]
    """Returns the prompt of a row, or raises `RowDroppedError`."""
    optional: frozenset[str] = frozenset()
    """Columns that it may have."""
    also: str = r"(?!)"
    """Pattern of further columns that it may have."""
    stems: Mapping[str, bool] | None = None
    """Label of a whole file by patterns of its name, where the columns do not tell it."""
    labels: str
    """How the label is told, in a few words."""

    def fits(self, columns: Sequence[str]) -> bool:
        """Tell whether these are its columns, in any order."""
        found = set(columns) - (INDEX_COLUMNS - self.columns)
        rest = found - self.columns - self.optional
        return self.columns <= found and all(re.fullmatch(self.also, name) for name in rest)

    def label_of(self, stem: str) -> bool | None:
        """Return the label of a whole file by its name; None where that says none, or both."""
        found = {label for part, label in (self.stems or {}).items() if re.search(part, stem)}
        return found.pop() if len(found) == 1 else None


def _harmbench(row: Row) -> DataPrompt:
    cells = row.cells
    if optional_text(cells, "FunctionalCategory") == "copyright":
        raise RowDroppedError("a copyright behaviour: no guard of prompts is measured on it")
    behaviour, context = text_of(cells, "Behavior"), _context(cells, "ContextString")
    return DataPrompt(
        text=f"{behaviour}\n\n{context}" if context else behaviour,
        harmful=True,
        group=group_of("harmbench", number_or_text(cells, "BehaviorID")),
        slice=optional_text(cells, "SemanticCategory"),
        technique="contextual" if context else "",
        source=row.source,
        row=row.number,
    )


def _jailbreakbench(row: Row) -> DataPrompt:
    return DataPrompt(
        text=text_of(row.cells, "Goal"),
        harmful=row.label,
        group=group_of("jailbreakbench", number_or_text(row.cells, "Index")),
        slice=optional_text(row.cells, "Category"),
        source=row.source,
        row=row.number,
    )


def _context(cells: Mapping[str, Any], column: str) -> str:
    """Return a text that belongs to the prompt; empty without one."""
    value = cells.get(column)
    return text_of(cells, column) if isinstance(value, str) and value.strip() else ""


def _plain(prompt: str, category: str | None = None) -> Callable[[Row], DataPrompt]:
    """Return the rule of a file whose rows all have one label."""

    def read(row: Row) -> DataPrompt:
        text = text_of(row.cells, prompt)
        return DataPrompt(
            text=text,
            harmful=row.label is not False,
            group=group_of_text(text),
            slice=optional_text(row.cells, category),
            source=row.source,
            row=row.number,
        )

    return read


def _xstest(row: Row) -> DataPrompt:
    kind = optional_text(row.cells, "type")
    contrast = kind.startswith("contrast_")
    harmful = flag(row.cells, "label") if "label" in row.cells else contrast
    text, focus = text_of(row.cells, "prompt"), optional_text(row.cells, "focus")
    return DataPrompt(
        text=text,
        harmful=harmful,
        # A safe prompt and its contrast share their type and their focus.
        group=group_of("xstest", f"{kind.removeprefix('contrast_')}\0{focus}")
        if focus
        else group_of_text(text),
        slice=kind,
        source=row.source,
        row=row.number,
    )


def _wildguard(row: Row) -> DataPrompt:
    text = text_of(row.cells, "prompt")
    return DataPrompt(
        text=text,
        harmful=flag(row.cells, "prompt_harm_label"),
        group=group_of_text(text),
        slice=optional_text(row.cells, "subcategory"),
        technique=_adversarial(row),
        source=row.source,
        row=row.number,
        response=response_of(row.cells),
        response_harmful=optional_flag(row.cells, "response_harm_label"),
    )


def _adversarial(row: Row) -> str:
    return "adversarial" if optional_flag(row.cells, "adversarial") else ""


def _wildjailbreak(row: Row) -> DataPrompt:
    technique, harmful = _data_type(row)
    vanilla = text_of(row.cells, "vanilla")
    adversarial = _context(row.cells, "adversarial")
    return DataPrompt(
        text=adversarial or vanilla,
        harmful=harmful,
        group=group_of_text(vanilla),
        slice=optional_text(row.cells, "data_type"),
        technique=technique,
        source=row.source,
        row=row.number,
        response=response_of(row.cells, "completion"),
    )


def _wildjailbreak_eval(row: Row) -> DataPrompt:
    technique, harmful = _data_type(row)
    if flag(row.cells, "label") != harmful:
        raise RowDroppedError("label and data_type contradict each other")
    text = text_of(row.cells, "adversarial")
    return DataPrompt(
        text=text,
        harmful=harmful,
        group=group_of_text(text),
        slice=optional_text(row.cells, "data_type"),
        technique=technique,
        source=row.source,
        row=row.number,
    )


def _data_type(row: Row) -> tuple[str, bool]:
    """Return the technique and the label that WildJailbreak's `data_type` names."""
    form, _, label = optional_text(row.cells, "data_type").partition("_")
    if form not in {"vanilla", "adversarial"} or label not in {"harmful", "benign"}:
        raise RowDroppedError("data_type is none of {vanilla,adversarial}_{harmful,benign}")
    return ("adversarial" if form == "adversarial" else ""), label == "harmful"


def _toxic_chat(row: Row) -> DataPrompt:
    return DataPrompt(
        text=text_of(row.cells, "user_input"),
        harmful=flag(row.cells, "toxicity"),
        group=group_of("toxic-chat", number_or_text(row.cells, "conv_id")),
        technique="jailbreaking" if optional_flag(row.cells, "jailbreaking") else "",
        source=row.source,
        row=row.number,
        response=response_of(row.cells, "model_output"),
    )


_MODERATION = ("S", "H", "V", "HR", "SH", "S3", "H2", "V2")


def _moderation(row: Row) -> DataPrompt:
    text = text_of(row.cells, "prompt")
    labels = {name: optional_flag(row.cells, name) for name in _MODERATION}
    known = [name for name, value in labels.items() if value is not None]
    if not known:
        raise RowDroppedError("no label (null)")
    return DataPrompt(
        text=text,
        harmful=any(labels.values()),
        group=group_of_text(text),
        slice=next((name for name in known if labels[name]), "none"),
        source=row.source,
        row=row.number,
    )


def _aegis1(row: Row) -> DataPrompt:
    if optional_text(row.cells, "text_type") != "user_message":
        raise RowDroppedError("text_type is not user_message: the label is not of a prompt")
    text = text_of(row.cells, "text")
    columns = [name for name in row.cells if re.fullmatch(r"labels_\d+", name)]
    votes = [optional_text(row.cells, name) for name in columns]
    votes = [vote for vote in votes if vote.lower() not in NULLS]
    safe = sum(vote == "Safe" for vote in votes)
    if not votes:
        raise RowDroppedError("no label (null)")
    if 2 * safe == len(votes):
        raise RowDroppedError("as many annotators say Safe as not")
    unsafe = [vote.partition(",")[0].strip() for vote in votes if vote != "Safe"]
    harmful = 2 * safe < len(votes)
    return DataPrompt(
        text=text,
        harmful=harmful,
        group=group_of_text(text),
        slice=max(sorted(set(unsafe)), key=unsafe.count) if harmful else "Safe",
        source=row.source,
        row=row.number,
    )


def _aegis2(row: Row) -> DataPrompt:
    text = text_of(row.cells, "prompt")
    if text.strip() == "REDACTED":
        raise RowDroppedError("REDACTED: its text is in another data set")
    return DataPrompt(
        text=text,
        harmful=flag(row.cells, "prompt_label"),
        group=group_of_text(text),
        slice=optional_text(row.cells, "violated_categories").partition(",")[0].strip(),
        source=row.source,
        row=row.number,
        response=response_of(row.cells),
        response_harmful=optional_flag(row.cells, "response_label"),
    )


def _beavertails(row: Row) -> DataPrompt:
    text = text_of(row.cells, "prompt")
    safe = optional_flag(row.cells, "is_safe")  # its yes means harmless
    if safe is None:
        raise RowDroppedError("no label (null)")
    return DataPrompt(
        text=text,
        harmful=None,
        group=group_of_text(text),
        slice=_first_true(json_of(row.cells, "category")),
        source=row.source,
        row=row.number,
        response=text_of(row.cells, "response"),
        response_harmful=not safe,
    )


def _first_true(value: object) -> str:
    """Return the first category of an object of flags that is set; empty without one."""
    if not isinstance(value, dict):
        return ""
    flags = cast("dict[str, Any]", value)
    return next((optional_text({"": name}, "") for name, on in flags.items() if on is True), "")


def _polyguard(row: Row) -> DataPrompt:
    column = "prompt_harm_label" if "prompt_harm_label" in row.cells else "prompt_label"
    answer = "response_harm_label" if "response_harm_label" in row.cells else "response_label"
    language = optional_text(row.cells, "language")
    return DataPrompt(
        text=text_of(row.cells, "prompt"),
        harmful=flag(row.cells, column),
        group=group_of("polyguard", number_or_text(row.cells, "id")),  # one in all languages
        slice=language,
        technique=_adversarial(row),
        language=language,
        source=row.source,
        row=row.number,
        response=response_of(row.cells),
        response_harmful=optional_flag(row.cells, answer),
    )


def _guardrails(row: Row) -> DataPrompt:
    text = text_of(row.cells, "data")
    triggers = json_of(row.cells, "expected_triggers")
    if not isinstance(triggers, dict) or not triggers:
        raise RowDroppedError("expected_triggers is no object of guards")
    flags = cast("dict[str, Any]", triggers)
    if not all(isinstance(value, bool) for value in flags.values()):
        raise RowDroppedError("expected_triggers holds something else than true and false")
    return DataPrompt(
        text=text,
        harmful=any(flags.values()),
        group=group_of_text(text),
        slice=_first_true(flags) or "none",
        source=row.source,
        row=row.number,
    )


def _dan(row: Row) -> DataPrompt:
    jailbreak = flag(row.cells, "jailbreak")
    vanilla = _context(row.cells, "vanilla")
    text = _context(row.cells, "adversarial") or text_of(row.cells, "prompt")
    return DataPrompt(
        text=text,
        # Without a request in it, a jailbreak is a technique and has no label.
        harmful=True if vanilla and jailbreak else None,
        group=group_of_text(vanilla or text),
        slice=optional_text(row.cells, "platform"),
        technique="jailbreak" if jailbreak else "",
        source=row.source,
        row=row.number,
    )


def _columns(names: str) -> frozenset[str]:
    return frozenset(names.split(","))


_WILDGUARD = (
    "prompt,adversarial,response,prompt_harm_label,response_refusal_label,response_harm_label,"
    "subcategory"
)

FORMATS: tuple[DataFormat, ...] = (
    DataFormat(
        name="HarmBench",
        columns=_columns(
            "Behavior,FunctionalCategory,SemanticCategory,Tags,ContextString,BehaviorID"
        ),
        read=_harmbench,
        labels="all harmful",
    ),
    DataFormat(
        name="JailbreakBench",
        columns=_columns("Index,Goal,Target,Behavior,Category,Source"),
        read=_jailbreakbench,
        stems={"harmful": True, "benign": False},
        labels="by the file's name: harmful or benign",
    ),
    DataFormat(
        name="AdvBench",
        columns=_columns("goal,target"),
        read=_plain("goal"),
        labels="all harmful",
    ),
    DataFormat(
        name="XSTest",
        columns=_columns("prompt,type,label,focus,note"),
        optional=_columns("id"),
        read=_xstest,
        labels="label: safe or unsafe",
    ),
    DataFormat(
        name="XSTest v2",
        columns=_columns("id_v1,id_v2,type,prompt,focus,note"),
        read=_xstest,
        labels="type begins with contrast_: unsafe",
    ),
    DataFormat(
        name="WildGuardMix",
        columns=_columns(_WILDGUARD),
        optional=_columns(
            "prompt_harm_agreement,response_refusal_agreement,response_harm_agreement"
        ),
        read=_wildguard,
        labels="prompt_harm_label: harmful or unharmful",
    ),
    DataFormat(
        name="WildJailbreak",
        columns=_columns("vanilla,adversarial,completion,data_type"),
        read=_wildjailbreak,
        labels="data_type ends in harmful or benign",
    ),
    DataFormat(
        name="WildJailbreak eval",
        columns=_columns("adversarial,label,data_type"),
        read=_wildjailbreak_eval,
        labels="data_type ends in harmful or benign, as label says too",
    ),
    DataFormat(
        name="OR-Bench",
        columns=_columns("prompt,category"),
        read=_plain("prompt", "category"),
        stems={
            r"or[-_]?bench.*80k": False,
            r"or[-_]?bench.*hard": False,
            r"or[-_]?bench.*toxic": True,
        },
        labels="by the file's name: 80k and hard benign, toxic harmful",
    ),
    DataFormat(
        name="StrongREJECT",
        columns=_columns("category,source,forbidden_prompt"),
        read=_plain("forbidden_prompt", "category"),
        labels="all harmful",
    ),
    DataFormat(
        name="ToxicChat",
        columns=_columns(
            "conv_id,user_input,model_output,human_annotation,toxicity,jailbreaking,"
            "openai_moderation"
        ),
        read=_toxic_chat,
        labels="toxicity: 1 harmful",
    ),
    DataFormat(
        name="OpenAI moderation",
        columns=_columns("prompt"),
        optional=frozenset(_MODERATION),
        read=_moderation,
        labels="harmful if any category is 1",
    ),
    DataFormat(
        name="Aegis 1.0",
        columns=_columns("text,text_type,labels_0"),
        optional=_columns("id,num_annotations"),
        also=r"labels_\d+",
        read=_aegis1,
        labels="majority of annotators: Safe or anything else",
    ),
    DataFormat(
        name="Aegis 2.0",
        columns=_columns(
            "id,reconstruction_id_if_redacted,prompt,response,prompt_label,response_label,"
            "violated_categories,prompt_label_source,response_label_source"
        ),
        read=_aegis2,
        labels="prompt_label: safe or unsafe",
    ),
    DataFormat(
        name="BeaverTails",
        columns=_columns("prompt,response,category,is_safe"),
        read=_beavertails,
        labels="is_safe, of the response; the prompt has none",
    ),
    *(
        DataFormat(
            name="PolyGuardPrompts",
            columns=_columns(f"id,language,prompt,{label}"),
            also=r"adversarial|subcategory|response|(prompt|response)_\w+",
            read=_polyguard,
            labels=label,
        )
        for label in ("prompt_label", "prompt_harm_label")
    ),
    DataFormat(
        name="openai-guardrails",
        columns=_columns("id,data,expected_triggers"),
        read=_guardrails,
        labels="harmful if any guard is expected to trigger",
    ),
    DataFormat(
        name="jailbreak_llms",
        columns=_columns("platform,source,prompt,jailbreak"),
        also=r"[a-z_]+",
        read=_dan,
        labels="none for a jailbreak alone; harmful where vanilla is a request",
    ),
)
"""Every format that is recognised."""


def recognise(columns: Sequence[str]) -> list[DataFormat]:
    """Return the formats that have exactly these columns, one for each rule of reading."""
    found = {form.read: form for form in FORMATS if form.fits(columns)}
    if not set(_MODERATION) & set(columns):
        found.pop(_moderation, None)  # a prompt alone has no label
    return list(found.values())
