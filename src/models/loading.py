"""Open a model folder: config.json and its weights. All loading goes through this module and its checks."""

from __future__ import annotations

import importlib.util
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from tinymem.errors import UserError, first_line, out_of_memory
from tinymem.inputs import check_value, read_json
from tinymem.models.channel_gate import restore_gate

COPY = "the folder is damaged: copy it again"
ATTENTIONS = ("eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention", "tinymem")
# Each is a whole number or null.
SIZES: tuple[str, ...] = ("vocab_size", "hidden_size", "n_embd", "num_hidden_layers", "n_layer", "num_attention_heads")
SIZES += ("n_head", "max_position_embeddings", "n_positions", "num_key_value_heads", "head_dim")
LAYERS, MOST_LAYERS = ("num_hidden_layers", "n_layer"), 10_000
# Buffers (causal masks, rotary frequencies) that earlier versions of transformers stored with the weights.
OLD_BUFFERS: tuple[str, ...] = (".attn.bias", ".attn.masked_bias", ".attn.causal_mask", ".inv_freq")
OLD_BUFFERS += (".attention.bias", ".attention.masked_bias")
# Settings of a config.json that change the forward pass but not the architecture: other kernels, which change the last
# digits, and other outputs.
NEUTRAL = {"_attn_implementation": None, "output_attentions": False, "output_hidden_states": False, "return_dict": True}
WRAPPERS = r"^(?:_orig_mod\.|module\.)+"  # prefixes that torch.compile and DistributedDataParallel add to each name
ADAPTER = "adapter_config.json"

logger = logging.getLogger(__name__)


def read_config(folder: Path):
    """Return the config of a model folder. Raise UserError if it is missing, damaged, or quantised."""
    from transformers import AutoConfig

    if not (folder / "config.json").is_file() and (folder / ADAPTER).is_file():
        raise _only_an_adapter(folder)
    if folder.is_file():
        raise UserError(f"{folder}: is a file; give a model's folder, such as one of results/models")
    if not folder.exists():
        raise UserError(f"{folder}: no such folder; give a model's folder, such as one of results/models")
    if not (folder / "config.json").is_file():
        raise UserError(
            f"{folder}: not a model folder (no config.json in it); give a folder such as runs/NAME/epoch_50"
        )
    _check_values(folder / "config.json")
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        int(config.get_text_config().vocab_size)  # a nested config may be anything
    except Exception as error:  # a config's class may raise any type
        if out_of_memory(error):
            raise
        raise _cannot_open(folder, error) from None
    if getattr(config, "quantization_config", None):
        raise UserError(f"{folder}: its weights are quantised and cannot be edited; give the model in full precision")
    for name, value in NEUTRAL.items():
        setattr(config, name, value)
    return config


def _check_values(path: Path) -> None:
    """Raise UserError for impossible values: sizes that are not positive integers, an unknown type of weights.

    The attention implementation is checked too: TinyMem chooses it, and a config could name code on the hub.
    """
    values = read_json(path, remedy=COPY)
    check_value(values, dict[str, Any], "config", path, COPY)
    for name, value in _leaves(values):
        if name in SIZES:
            check_value(value, int | None, name, path, COPY)
        if type(value) is int and not -(2**31) < value < 2**31:
            raise UserError(f"{path}: {name} {str(value)[:40]}: too large a number; {COPY}")
        if name in SIZES and value is not None and value < 1:
            raise UserError(f"{path}: {name} {value}: must be > 0; {COPY}")
        if name in LAYERS and value is not None and value > MOST_LAYERS:  # building so many would never end
            raise UserError(f"{path}: {name} {value}: must be <= {MOST_LAYERS}; {COPY}")
        if name in ("dtype", "torch_dtype") and value is not None:
            kind = getattr(torch, str(value).removeprefix("torch."), None)
            if not isinstance(kind, torch.dtype) or not kind.is_floating_point:
                raise UserError(
                    f"{path}: {name} {value!r}: must be float32, float16, bfloat16 or another type of weights"
                )
        if name in ("attn_implementation", "_attn_implementation") and value not in (None, *ATTENTIONS):
            raise UserError(f"{path}: {name} {value!r}: must be one of {', '.join(ATTENTIONS)}; or leave it out")


def _leaves(values: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield every name and plain value of a config and of nested configs (text_config)."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _leaves(value)
        else:
            yield name, value


def empty_model(folder: str | Path, config, **settings: Any):
    """Return the causal LM of this config without weights: on the meta device, where it needs no memory.

    folder: for messages. settings: further arguments of from_config. Raise UserError if there is no such causal LM.
    """
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, trust_remote_code=False, **settings)
    except Exception as error:  # a model may raise any type: AssertionError for a pad outside the vocabulary
        if out_of_memory(error):
            raise
        raise _cannot_open(folder, error) from None


def read_model(folder: Path, config, dtype: torch.dtype, safetensors: bool = True, **settings: Any):
    """Return a folder's model with its weights.

    settings: further arguments of from_pretrained. Raise UserError if the files are damaged or do not hold exactly
    the weights of the config. Nothing is fetched, no code in the folder is run, and files other than safetensors are
    read as tensors only. Models trained with example-tied dropout get their evaluation gate.
    """
    _check_weight_files(folder)
    model, wrong = _read(folder, config, dtype, safetensors, **settings)
    if any(re.match(WRAPPERS, name) for name in wrong):
        model, wrong = _read(folder, config, dtype, safetensors, key_mapping={WRAPPERS: ""}, **settings)
        del model._weight_conversions  # transformers would restore the prefix when the model is saved
        logger.warning("%s: its weights carry the prefix of torch.compile or DistributedDataParallel, left out", folder)
    if wrong:  # transformers would continue with random weights
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise UserError(f"{folder}: config.json and the weights do not belong together ({wrong[0]}{more})")
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    if head is not None and head.weight is not embeddings.weight:
        for each in (model.config, model.config.get_text_config()):  # the type of the weights, for saving
            each.tie_word_embeddings = False
    restore_gate(model)
    return model


def _check_weight_files(folder: Path) -> None:
    """Raise UserError if the folder has only an adapter or a variant of the weights; warn of an ignored adapter."""
    names = sorted(path.name for path in folder.iterdir())
    weights = [name for name in names if re.fullmatch(r"(model|pytorch_model).*\.(safetensors|bin)", name)]
    plain = [name for name in weights if re.fullmatch(r"\w+(-\d+-of-\d+)?\.(safetensors|bin)", name)]
    if ADAPTER in names:
        if not weights:
            raise _only_an_adapter(folder)
        if importlib.util.find_spec("peft") is not None:  # transformers would apply it
            raise UserError(f"{folder}: holds an adapter beside the weights; merge it, or move {ADAPTER} elsewhere")
        logger.warning("%s: the adapter beside the weights (%s) is not applied", folder, ADAPTER)
    if weights and not plain:
        raise UserError(
            f"{folder}: has no weights but the variant {weights[0]}; rename it to {_without_variant(weights[0])}"
        )


def _only_an_adapter(folder: Path) -> UserError:
    return UserError(f"{folder}: holds an adapter ({ADAPTER}), no model; give the model that it was merged into")


def _without_variant(name: str) -> str:
    """Return the name without its variant: model.fp16.safetensors -> model.safetensors."""
    return f"{name.partition('.')[0]}.{name.rpartition('.')[2]}"


def _read(folder: Path, config, dtype: torch.dtype, safetensors: bool, **settings: Any) -> tuple[Any, list[str]]:
    """Return the model, and the names of weights that are missing, unexpected or of another shape."""
    from transformers import AutoModelForCausalLM

    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=safetensors,
            weights_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are named below; transformers only points to a report
            **settings,
        )
    except UnpicklingError:
        raise UserError(f"{folder}: its weights are a pickle of more than tensors, which could run code") from None
    except Exception as error:
        if out_of_memory(error):  # not the folder's fault
            raise
        raise _cannot_open(folder, error) from None
    model, problems = loaded
    unexpected = [name for name in problems["unexpected_keys"] if not name.endswith(OLD_BUFFERS)]
    # A mismatch may also list the two shapes.
    mismatched = [each if isinstance(each, str) else each[0] for each in problems["mismatched_keys"]]
    return model, sorted(map(str, [*problems["missing_keys"], *unexpected, *mismatched]))


def _cannot_open(folder: str | Path, error: Exception) -> UserError:
    if "custom code" in str(error):
        return UserError(
            f"{folder}: this model needs code of its own (auto_map), which is never run; no other opens it"
        )
    return UserError(
        f"{folder}: cannot open this model ({first_line(error)}); the folder is damaged or not a causal LM"
    )
