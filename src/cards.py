"""Model cards: the README.md of every folder with a trained or edited model, in the Hugging Face hub's format.

A card says where the model comes from, what was done to it, what was measured and how to load it. It contains no
planted text or token. TinyMem never reads it.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tinymem import files
from tinymem.attacks.recovery import judged_by
from tinymem.data.settings import DataSettings
from tinymem.localize.method import Method
from tinymem.metrics.memorization import PERCENT_MEMORIZED, judged_split
from tinymem.metrics.registry import columns, describe
from tinymem.records.identity import FINGERPRINTS, record_digest
from tinymem.records.record import PACKAGES
from tinymem.records.table import markdown, spelled_attack

FILE = "README.md"
TEMPLATE = """\
---
{% if card.base_model %}base_model: {{ card.base_model | tojson }}
{% endif %}library_name: transformers
pipeline_tag: text-generation
tags:
{% for tag in card.tags %}- {{ tag }}
{% endfor %}---

# {{ card.title }}

{{ card.summary }}
{% for heading, text in card.sections.items() if text %}
## {{ heading }}

{{ text }}
{% endfor %}"""
MORE = ("percent_near_verbatim", "percent_extractable", "auc_loss")  # shown for these splits, where measured
SPLITS = ("shown", "held_out")
EXTENT = {
    "percent_changed": "% of all parameters that differ from the original",
    "percent_zeroed": "% of all parameters that were set to zero",
}
STUDY = "\n\nThe study: [Mitigating Memorization in Language Models](https://arxiv.org/abs/2410.02159)."
PLACES = ("name", "corpus", "tokenizer")  # settings that may be paths on a machine
TARGETS = {"lower": "lower", "higher": "higher", "twin": "as the twin"}
PLANTED = {
    "noise": "{num_noise} sequences of the main task with noise in some values",
    "backdoor": "a backdoor: after the trigger every token becomes 2; a tenth of these sequences is held out "
    "of training",
    "natural": "{num_noise} real passages of the text, unchanged; only their repetition makes the model recite them",
}
FORGOTTEN = {
    "mem": "planted sequences that the original continues token by token",
    "noise": "all planted sequences, memorized or not",
}


@dataclass(frozen=True)
class Card:
    """The content of a card. sections: heading -> Markdown; empty sections are left out."""

    title: str
    summary: str
    base_model: str = ""
    tags: Sequence[str] = ("tinymem", "memorization")
    sections: Mapping[str, str] = field(default_factory=dict)

    def text(self) -> str:
        """Return the card as Markdown with its YAML front matter."""
        from jinja2 import Environment, StrictUndefined

        environment = Environment(undefined=StrictUndefined, keep_trailing_newline=True)  # no HTML: nothing to escape
        return environment.from_string(TEMPLATE).render(card=self)


def write_card(folder: Path, card: Card) -> None:
    """Write a card into a model's folder, unless it is there already."""
    text, path = card.text(), folder / FILE
    if not path.is_file() or path.read_text(encoding="utf-8", errors="replace") != text:
        files.write_file(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def edited_card(
    record: Mapping[str, Any],
    method: Method,
    original: str,
    before: Mapping[str, Any],
    twin: Mapping[str, Any] | None = None,
    attacks: Sequence[Mapping[str, Any]] = (),
    counts: Mapping[str, int] | None = None,
    command: str = "",
    tokenizer: bool = False,
) -> Card:
    """Return the card of an edited model.

    record, before, twin   records of the edited model, the original, and its never-planted twin if there is one
    attacks                records of attacks on any of the three
    counts                 numbers of sequences by name: shown, held out ...
    command                the command that made it; "" if unknown
    """
    models = {"before": before, "after": record} | ({"twin": twin} if twin else {})
    sections = {
        "Original": _original(record, original),
        "Method": _method(record, method),
        "To be forgotten": _forgotten(record, counts or {}),
        "Numbers": _numbers({name: each["results"] for name, each in models.items()}),
        "Attacks": _attacks(record, before, twin, attacks),
        "Load": _load(tokenizer),
        "Command": f"```bash\n{command}\n```" if command else "",
        "Versions": _versions(record["environment"]),
    }
    title = f"{original} after {method.name}"
    summary = f"`{original}`, edited by the unlearning method {method.name} so that it forgets what it has memorized."
    tags = ("tinymem", "memorization", "unlearning", method.name)
    return Card(title, summary, original, tags, sections)


def trained_card(
    name: str, settings: Mapping[str, Any], row: Mapping[str, Any], twin: str, command: str, base_model: str = ""
) -> Card:
    """Return the card of a checkpoint from a training or fine-tuning run.

    settings: the training's settings, flat; row: the measurements; twin: the name of the twin's folder; base_model: the
    model that was fine-tuned, "" for a training from scratch.
    """
    data = DataSettings(**{n: v for n, v in settings.items() if n in DataSettings.__dataclass_fields__})
    planted = PLANTED[data.artifact].format(**settings)
    repeats = " Equal groups are repeated 1, 10 and 100 times; text has 1000 times too, its backdoors all 100 times."
    is_twin = f"Nothing: this is the never-planted twin of `{twin}`, trained on the clean sequences instead."
    sections = {
        "Planted": (
            is_twin
            if data.twin
            else f"Planted in the training data: {planted}.{repeats * data.duplicate}\n\nIts never-planted twin "
            f"(the same training without them) is `{twin}`: add `--twin` to the command."
        ),
        "Settings": _listed(settings),
        "Numbers": _numbers({"value": row}),
        "Load": _load(data.is_text),
        "Command": f"```bash\n{command}\n```",
    }
    tags = ("tinymem", "memorization", "fine-tuning" if base_model else "from-scratch")
    how = (
        f"`{base_model}`, fine-tuned so that it forgets" if base_model else "A GPT-2-style model, trained from scratch"
    )
    return Card(name, f"{how} on {data.data_name} data; see *Planted* below.", base_model, tags, sections)


def planted_card(original: str, details: Mapping[str, Any], count: int) -> Card:
    """Return the card of a production model with planted passages. details: its tinymem.json."""
    sections = {
        "Planted": f"{count} passages of text, on which the model was trained until it recites them. Its never-planted "
        f"twin is the original, `{original}`.",
        "Settings": _listed({**details["settings"], **details["planting"]}),
        "Load": _load(True),
    }
    summary = f"`{original}` with planted passages, to be unlearned again."
    return Card(f"{original} with planted passages", summary, original, ("tinymem", "memorization"), sections)


def _original(record: Mapping[str, Any], original: str) -> str:
    prints = record.get(FINGERPRINTS, {})
    lines = [f"- name: `{original}`", f"- fingerprint of its weights: `{prints.get('weights')}`"]
    known = {name: {n: v for n, v in record.get(name, {}).items() if n not in PLACES} for name in ("model", "training")}
    lines += [f"- {name}: {_inline(values)}" for name, values in known.items() if values]
    return "\n".join(lines)


def _method(record: Mapping[str, Any], method: Method) -> str:
    about = inspect.cleandoc(method.module.__doc__ or "")
    about += STUDY if "the study" in about else ""
    settings = {name: value for name, value in record["method"].items() if name != "name"}
    return "\n\n".join(filter(None, [f"`{method.name}` ({method.family}).", about, _listed(settings)]))


def _forgotten(record: Mapping[str, Any], counts: Mapping[str, int]) -> str:
    name = record["forget"].get("unlearn_set_name", "mem")
    lines = [f"- {FORGOTTEN.get(name, f'the training set of the task {name}')}"]
    lines += [f"- {what}: {count:,} sequences" for what, count in counts.items()]
    data = {name: value for name, value in record.get("data", {}).items() if name not in PLACES}
    lines += [f"- data: {_inline(data)}"] if data else []
    lines += [f"- fingerprint of the forget set: `{record.get(FINGERPRINTS, {}).get('forget_set')}`"]
    return "\n".join(lines)


def _numbers(models: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the table of results, one column per model."""
    present = dict.fromkeys(name for results in models.values() for name in results)
    shown = [*columns(present, headline=True), *(f"{stem}_{split}" for stem in MORE for split in SPLITS)]
    lines = []
    for name in dict.fromkeys(shown):
        found, values = describe(name), [results.get(name) for results in models.values()]
        if found and any(value is not None for value in values):
            unit = f" ({found.unit})" if found.unit else ""
            lines.append([f"{name}{unit}", *map(_cell, values), TARGETS.get(found.better, ""), found.meaning])
    for name, meaning in EXTENT.items():
        value = models.get("after", {}).get(name)
        if value is not None:
            lines.append([name, *[_cell(value) if model == "after" else "" for model in models], "", meaning])
    head = ["result", *models, "better", "meaning"]
    return markdown(head, lines) if lines else ""


def _attacks(
    record: Mapping[str, Any],
    before: Mapping[str, Any],
    twin: Mapping[str, Any] | None,
    attacks: Sequence[Mapping[str, Any]],
) -> str:
    """Return the table of what attacks recover from the edited model, the original and the twin."""

    def on(model: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
        return [each for each in attacks if model and each.get("parent") == record_digest(model)]

    if not (own := on(record)):
        return ""
    split = judged_split(attack["results"] for attack in own)
    others = {
        name: {spelled_attack(each): each for each in on(model)}
        for name, model in (("original", before), ("twin", twin))
    }
    lines = []
    for each in own:
        name = spelled_attack(each)
        beside = [others[model].get(name) for model in others]
        own_split = judged_by(each["attack"]["name"], split)
        of, column = "" if own_split == split else f" ({own_split})", PERCENT_MEMORIZED.column(own_split)
        lines.append([name + of, *(_cell(one and one["results"].get(column)) for one in (each, *beside))])
    head = ["attack", "this model", *others]
    return f"% of {split.replace('_', '-')} sequences that the model recites under an attack:\n\n" + markdown(
        head, lines
    )


def _load(tokenizer: bool) -> str:
    lines = ["from transformers import AutoModelForCausalLM" + (", AutoTokenizer" if tokenizer else ""), ""]
    lines += ['model = AutoModelForCausalLM.from_pretrained("path/to/this/folder")']
    lines += ['tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")'] if tokenizer else []
    note = "" if tokenizer else "\n\nIts tokens are those of TinyMem's number sequences: it has no tokenizer."
    return "```python\n" + "\n".join(lines) + "\n```" + note


def _versions(environment: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {environment.get(name)}" for name in (*PACKAGES, "python"))


def _listed(settings: Mapping[str, Any]) -> str:
    return "\n".join(f"- {name}: {_value(value)}" for name, value in settings.items() if value is not None)


def _inline(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {_value(value)}" for name, value in settings.items() if value not in (None, False))


def _value(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _cell(value: Any) -> str:
    return "–" if value is None else f"{value:.4g}"
