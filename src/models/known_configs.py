"""The configs of well-known models, for plans without a network."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

KNOWN = Path(__file__).parent / "known_shapes.json"
VARIANT = re.compile(r"(-deduped)?(-v0)?(-instruct|-sft|-dpo)?$")  # suffixes that do not change the shape


def known_shapes() -> dict[str, dict[str, Any]]:
    """Return the public config numbers of well-known models, by name."""
    return json.loads(KNOWN.read_text())


def known_config(name: str):
    """Return the config of a well-known model, such as pythia-2.8b, Llama-3-8B or OWNER/NAME of these; None for others.

    Variants have the same shape: Llama-3.1-8B-Instruct is planned as Llama-3.1-8B.
    """
    from transformers import AutoConfig

    plain = VARIANT.sub("", name.rstrip("/").rsplit("/", 1)[-1].lower()).removeprefix("meta-")
    for known, numbers in known_shapes().items():
        if plain == known.lower().removeprefix("meta-"):
            return AutoConfig.for_model(**numbers)
    return None
