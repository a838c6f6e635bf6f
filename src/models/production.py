"""Any causal LM, from a folder or the Hugging Face hub: fetched, checked against free memory, and opened."""

from __future__ import annotations

import functools
import logging
import re
from pathlib import Path
from typing import Any

import torch

from tinymem.data.corpus import hub_reachable
from tinymem.data.tokenizer import has_tokenizer, open_tokenizer
from tinymem.errors import OutOfMemory, UserError, first_line
from tinymem.models.adapter import find_mlps
from tinymem.models.free_memory import free_on_host
from tinymem.models.gguf import PACKAGED_MODELS, is_packaged, packaged_model
from tinymem.models.known_configs import known_config
from tinymem.models.loading import empty_model, read_config, read_model
from tinymem.options import option, settings

DTYPES = ("float32", "bfloat16", "float16")
DESCRIPTION_FILES = ("*.json", "*.txt", "*.model", "*.jinja")  # config and tokenizer
WEIGHT_FILES = {True: ("model*.safetensors",), False: ("pytorch_model*.bin",)}  # safetensors, otherwise pickled tensors
logger = logging.getLogger(__name__)
RESERVE = 0.05  # share of the free memory for everything except weights


@settings
class LoadSettings:
    """Model"""

    step: int | None = option(
        None, "training step: revision stepN of a hub model such as Pythia (36000, 72000, 108000, 143000)", low=0
    )
    dtype: str = option("float32", "type of the weights; scores are always float32", choices=DTYPES)
    device_map: str | None = option(None, "auto: spread the layers over all GPUs", choices=("auto",))

    @property
    def method_dtype(self) -> str:
        """The precision of a method's forward passes on such weights.

        float16 weights are used directly, without autocast.
        """
        return "bfloat16" if self.dtype == "bfloat16" else "float32"

    def section(self, name: str) -> dict[str, Any]:
        """Return the model section of a record. name: the model's on the hub, or its folder."""
        return {"name": model_identity(name), "step": self.step, "dtype": self.dtype}


def open_causal_lm(
    name_or_folder: str | Path,
    step: int | None = None,
    device: str | torch.device = "cpu",
    dtype: str = "float32",
    device_map: str | None = None,
    dtype_is_free: bool = True,
):
    """Return (model, tokenizer) in evaluation mode; tokenizer is None if the folder has none that opens.

    name_or_folder   a model folder, the name of a packaged model (smollm2: see `tinymem.models.gguf`), or a name on the
                     hub; if the hub cannot be reached, its cache is used
    step             revision stepN on the hub; in a folder the subfolder stepN
    dtype            type of the weights: "float32", "bfloat16" or "float16"
    device_map       "auto" spreads the layers over all GPUs; `device` is then ignored
    dtype_is_free    whether the error for a model that does not fit may suggest a narrower dtype

    Raise UserError, before any weights are fetched or read, if there is no such model, if its MLPs cannot be edited,
    or if it does not fit into memory; and if it is no causal language model.
    """
    folder = model_folder(name_or_folder, step)
    config, tokenizer = read_config(folder), tokenizer_in(folder, for_text=False)
    weights = getattr(torch, dtype)
    empty = empty_model(folder, config)
    find_mlps(empty)
    _check_memory(str(name_or_folder), weight_bytes(empty, weights), device, dtype, device_map, dtype_is_free)
    fetch_weights(name_or_folder, step)
    safetensors = any(folder.glob("model*.safetensors"))  # other files may be an optimizer's or an adapter's
    placed = {"device_map": device_map} if device_map else {}
    model = read_model(folder, config, weights, safetensors, **placed).eval()
    check_editable(model)
    model = model if device_map else model.to(device)
    check_causal(model)
    return model, tokenizer


def open_description(name_or_folder: str | Path, step: int | None = None, for_text: bool = True):
    """Return (config, tokenizer or None), checked before the weights are fetched and read.

    for_text: whether text will be read, so that a damaged tokenizer is an error.
    """
    folder = model_folder(name_or_folder, step)
    return read_config(folder), tokenizer_in(folder, for_text)


def tokenizer_in(folder: Path, for_text: bool = False):
    """Return a folder's tokenizer; None if there is none or it does not open here. Callers that read text report that.

    A damaged tokenizer is an error only if it is needed, otherwise a warning: edited models are saved without it.
    """
    try:
        return open_tokenizer(folder) if has_tokenizer(folder) else None
    except UserError as error:
        if for_text and (folder / "tokenizer.json").is_file():
            raise
        _note(str(error))
        return None


@functools.cache
def _say_hidden(name: str) -> None:
    """Warn once if a folder has the name of a model that is packaged, well known or in the hub's cache."""
    from huggingface_hub import constants

    cached = Path(constants.HF_HUB_CACHE) / f"models--{name.replace('/', '--')}"
    plain = re.fullmatch(r"[\w.-]*\w(/[\w.-]+)?", name) is not None and not name.startswith(".")
    if plain and (name in PACKAGED_MODELS or known_config(name) is not None or cached.is_dir()):
        logger.warning("%s: the folder of this name is opened, not the model; write ./%s to confirm", name, name)


@functools.cache
def _note(text: str) -> None:
    """Log a warning once, even if a folder is opened several times."""
    logger.warning("%s; token ids need none", text)


def model_folder(name_or_folder: str | Path, step: int | None = None) -> Path:
    """Return the folder with the model's config and tokenizer: the given one, or the hub's cache after fetching.

    Raise UserError if there is no such folder, and the hub has no such model or cannot be reached.
    """
    path = Path(name_or_folder)
    if is_packaged(name_or_folder):
        if step is not None:
            raise UserError(
                f"--step {step}: {name_or_folder} comes with an installed package, as one model; leave it out"
            )
        return packaged_model(str(name_or_folder))
    if path.is_dir():
        _say_hidden(str(name_or_folder))
    else:
        return _snapshot(str(name_or_folder), step, DESCRIPTION_FILES)
    if step is None:
        return path
    if not (path / f"step{step}").is_dir():
        raise UserError(f"--step {step}: no step{step} in the folder {path}; leave it out, or give a name on the hub")
    return path / f"step{step}"


def fetch_weights(name_or_folder: str | Path, step: int | None = None) -> None:
    """Fetch a hub model's weights into the hub's cache, as safetensors if available. Do nothing for other models."""
    if Path(name_or_folder).is_dir() or is_packaged(name_or_folder):
        return
    for patterns in WEIGHT_FILES.values():
        folder = _snapshot(str(name_or_folder), step, (*DESCRIPTION_FILES, *patterns))
        if any(found for pattern in patterns for found in folder.glob(pattern)):
            return
    raise UserError(
        f"--model_name {name_or_folder}: no weights in the hub's cache for it, and the hub cannot be reached; fetch it "
        "where there is a network"
    )


def _snapshot(name: str, step: int | None, patterns: tuple[str, ...]) -> Path:
    """Return the folder of a hub model in the local cache, fetched first if the hub can be reached."""
    from huggingface_hub import errors, snapshot_download
    from huggingface_hub.utils import validate_repo_id

    revision = "main" if step is None else f"step{step}"
    if Path(name).is_file():
        raise UserError(f"--model_name {name}: is a file; give a model's folder, or a name on the hub")
    unknown = f"--model_name {name}: no such folder, and no"
    try:
        validate_repo_id(name)
    except errors.HFValidationError:
        raise UserError(f"{unknown} name on the hub either (those are OWNER/MODEL)") from None
    try:
        online = hub_reachable()
        return Path(
            snapshot_download(name, revision=revision, allow_patterns=list(patterns), local_files_only=not online)
        )
    except errors.RevisionNotFoundError:
        raise UserError(f"--step {step}: the hub has no revision {revision} of {name}") from None
    except errors.GatedRepoError:
        raise UserError(
            f"--model_name {name}: the hub asks for a login; accept its licence, then `hf auth login`"
        ) from None
    except errors.RepositoryNotFoundError:
        raise UserError(f"{unknown} model of this name on the hub") from None
    except errors.LocalEntryNotFoundError:
        raise UserError(
            f"--model_name {name}: no such folder; the Hugging Face hub cannot be reached and {revision} of this model "
            "is not in its cache: give a folder, or run it once where there is a network"
        ) from None
    except (OSError, ValueError) as error:  # full disks, broken connections
        raise UserError(f"--model_name {name}: cannot be fetched ({first_line(error)})") from None


def model_identity(name_or_folder: str | Path) -> str:
    """Return a model's name in records: for a folder its real path, independent of spelling and working directory."""
    path = Path(name_or_folder)
    return str(path.resolve()) if path.is_dir() else str(name_or_folder)


def run_label(name_or_folder: str | Path, step: int | None) -> str:
    """Return the label of runs on a model: its name without the owner, and the training step."""
    return Path(name_or_folder).resolve().name + ("" if step is None else f"_step{step}")


def weight_bytes(model, dtype: torch.dtype) -> int:
    """Return the bytes of a model's weights in this type. The meta device is fine. Tied weights count once."""
    return sum(parameter.numel() for parameter in model.parameters()) * dtype.itemsize


def free_bytes(device: str | torch.device, device_map: str | None = None) -> int:
    """Return the free bytes on the device; with a device map, of all GPUs together, or of the CPU without GPUs."""
    device = torch.device(device)
    if device_map and torch.cuda.is_available():
        return sum(map(_free_on_gpu, range(torch.cuda.device_count())))
    if device.type == "cuda" and not device_map:
        return _free_on_gpu(device)
    return free_on_host()


def _free_on_gpu(device: int | torch.device) -> int:
    """Return a GPU's free bytes, including freed memory that torch holds."""
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + kept


def _check_memory(
    name: str, needed: int, device: str | torch.device, dtype: str, device_map: str | None, dtype_is_free: bool
) -> None:
    room = (1 - RESERVE) * free_bytes(device, device_map)
    if needed <= room:
        return
    half = dtype_is_free and dtype == "float32" and needed / 2 <= room
    spread = device_map is None and torch.cuda.device_count() > 1
    ways = ["--dtype bfloat16"] * half + ["--device_map auto"] * spread
    raise OutOfMemory(
        f"--model_name {name}: its weights take {needed / 1e9:.1f} GB in {dtype}, {(needed - room) / 1e9:.1f} GB more "
        f"than is free; {' or '.join(ways) + ' helps' if ways else 'use a smaller model or a larger machine'}"
    )


def check_editable(model) -> None:
    """Raise UserError if weights stayed on the CPU or disk, to be copied in at every pass: edits would be lost."""
    away = sorted(name for name, parameter in model.named_parameters() if parameter.device.type == "meta")
    places = set(getattr(model, "hf_device_map", {}).values())
    if away or ({"cpu", "disk"} & places and len(places) > 1):
        raise UserError(
            f"--device_map: {away[0] if away else 'a layer'} does not fit on the GPUs and was left outside, where it "
            "cannot be edited; try --dtype bfloat16, more GPUs, or --device cpu"
        )


def check_causal(model) -> None:
    """Raise UserError if a token changes what a model predicts before it, as in BERT: one pass could not measure it."""
    with torch.inference_mode():
        ahead = model(torch.tensor([[0, 0], [0, 1]], device=model.device), use_cache=False).logits[:, 0].float()
    tolerance = 16 * torch.finfo(model.dtype).eps * ahead.abs().max()
    if (ahead[0] - ahead[1]).abs().max() > tolerance:  # False for NaN, which measuring reports
        raise UserError(
            f"{model.config.model_type}: what this model predicts depends on later tokens; causal language models are "
            "supported, encoders such as BERT are not"
        )
