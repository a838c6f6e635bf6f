"""Opens a model folder: config.json and its weights. Every way in goes through here, so that all check the same."""

from __future__ import annotations

from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from tinymem.errors import UserError, first_line, out_of_memory
from tinymem.models.channel_gate import restore_gate

# Buffers (causal masks, rotary frequencies) that earlier versions of transformers kept with the weights.
OLD_BUFFERS = ("attn.bias", "attn.masked_bias", "attention.bias", "attention.masked_bias", "inv_freq")


def read_config(folder: Path):
    """The config of a model folder. UserError when it is missing or damaged."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    if not (folder / "config.json").is_file():
        raise UserError(
            f"{folder}: not a model folder (no config.json in it); give a folder such as runs/NAME/epoch_50"
        )
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError, StrictDataclassError) as error:
        raise _cannot_open(folder, error) from None
    if getattr(config, "quantization_config", None):
        raise UserError(f"{folder}: its weights are quantised and cannot be edited; give the model in full precision")
    return config


def empty_model(folder: str | Path, config, **settings: Any):
    """The causal LM of this config without its weights: on the meta device, where it takes no memory.

    folder: for messages. settings: further arguments of from_config. UserError where there is no such causal LM.
    """
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, **settings)
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        raise _cannot_open(folder, error) from None


def read_model(folder: Path, config, dtype: torch.dtype, safetensors: bool = True, **settings: Any):
    """The model of a folder with the weights found there.

    settings: further arguments of from_pretrained. Raises UserError when the files are damaged or do not hold exactly
    the weights that the config asks for. Nothing is fetched, no code in the folder is run, and files that are not
    safetensors are read as tensors only. Models trained with example-tied dropout get their evaluation gate.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    try:
        model, found = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            local_files_only=True,
            use_safetensors=safetensors,
            weights_only=True,
            output_loading_info=True,
            **settings,
        )
    except UnpicklingError:
        raise UserError(f"{folder}: its weights are a pickle of more than tensors, which could run code") from None
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        if out_of_memory(error):  # which says nothing against the folder
            raise
        raise _cannot_open(folder, error) from None
    names = [str(name) for key in ("missing_keys", "unexpected_keys", "mismatched_keys") for name in found[key]]
    wrong = sorted(name for name in names if not name.endswith(OLD_BUFFERS))
    if wrong:  # transformers would go on with random weights
        raise UserError(
            f"{folder}: config.json and the weights do not belong together ({wrong[0]} and {len(wrong) - 1} more)"
        )
    restore_gate(model)
    return model


def _cannot_open(folder: Path, error: Exception) -> UserError:
    return UserError(
        f"{folder}: cannot open this model ({first_line(error)}); the folder is damaged or not a causal LM"
    )
