"""Files of token ids (memorized sequences or random text): one integer tensor (rows, length).

They are written as safetensors, with their provenance. They are read from safetensors or from a `.pt` file such as
MemPi's (Chang et al. 2024), from which only tensors are loaded.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tinymem import files
from tinymem.errors import UserError, reading
from tinymem.inputs import check_file, check_value, parse_json

KEY, KINDS = "tokens", (".safetensors", ".pt")


@dataclass(frozen=True)
class TokenSet:
    """tokens: int32 (rows, length). provenance: their origin, JSON values by name; empty if unknown."""

    tokens: torch.Tensor
    provenance: dict[str, Any]

    @property
    def fingerprint(self) -> str:
        """The 16 hexadecimal digits that identify the tokens, the same for every kind of file."""
        digest = hashlib.sha256(str(tuple(self.tokens.shape)).encode())
        digest.update(self.tokens.contiguous().numpy().data)
        return digest.hexdigest()[:16]


def read_token_set(path: str | Path, vocabulary_size: int | None = None, length: int = 1) -> TokenSet:
    """Return the sequences in a .safetensors or .pt file.

    vocabulary_size   ids must be below it; None: any non-negative id is allowed
    length            minimum number of tokens in a sequence

    Raise UserError for a file that is missing or damaged, and unless it holds one two-dimensional integer tensor with
    at least one row, ids inside the vocabulary, and long enough sequences.
    """
    path = Path(path)
    readers = dict(zip(KINDS, (_read_safetensors, _read_pickle)))
    if path.suffix not in readers:
        raise UserError(f"{path}: unknown kind of file; sequences of token ids are kept in {' or '.join(readers)}")
    check_file(path)
    tensor, provenance = readers[path.suffix](path)
    check_tokens(tensor, path, vocabulary_size, length)
    return TokenSet(tensor.to(torch.int32), provenance)


def write_token_set(path: str | Path, token_set: TokenSet) -> Path:
    """Write safetensors atomically. Raise UserError if the path is not writable."""
    from safetensors.torch import save_file

    tensors, metadata = {KEY: token_set.tokens.contiguous()}, {"provenance": json.dumps(token_set.provenance)}
    return files.write_file(path, lambda temporary: save_file(tensors, temporary, metadata=metadata))


def check_tokens(tensor: Any, where: str | Path, vocabulary_size: int | None = None, length: int = 1) -> None:
    """Raise UserError, naming `where`, unless this is an integer tensor (rows, >= length) of valid ids."""
    if not isinstance(tensor, torch.Tensor):
        raise UserError(f"{where}: holds a {type(tensor).__name__}, not one tensor of token ids")
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_nested or tensor.is_meta:
        raise UserError(f"{where}: holds a tensor of a special kind ({tensor.layout}), not plain token ids")
    if tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool:
        raise UserError(f"{where}: holds {str(tensor.dtype).removeprefix('torch.')} values, not integer token ids")
    if tensor.dim() != 2 or not len(tensor):
        raise UserError(f"{where}: has shape {tuple(tensor.shape)}, not (sequences, tokens)")
    if tensor.shape[1] < length:
        raise UserError(
            f"{where}: its sequences have {tensor.shape[1]} tokens, prompt and continuation need {length}; lower "
            "--prompt_tokens or --continuation_tokens"
        )
    values = tensor.long()  # torch cannot take the min of uint16 and uint32
    lowest, highest = int(values.min()), int(values.max())
    if lowest < 0 or highest >= (2**31 if vocabulary_size is None else vocabulary_size):
        wrong, size = lowest if lowest < 0 else highest, "" if vocabulary_size is None else f" of {vocabulary_size}"
        raise UserError(
            f"{where}: token id {wrong} is outside the model's vocabulary{size}; these sequences are "
            "another tokenizer's"
        )


def _read_safetensors(path: Path) -> tuple[torch.Tensor, dict[str, Any]]:
    from safetensors import safe_open

    with reading(path, "damaged or not safetensors ({why})"):
        with safe_open(path, framework="pt") as file:
            names, provenance = list(file.keys()), (file.metadata() or {}).get("provenance", "{}")
            tensors = [file.get_tensor(name) for name in names]
    if len(tensors) != 1:
        raise UserError(f"{path}: holds {len(tensors)} tensors, not one of token ids")
    return tensors[0], check_value(parse_json(provenance, path), dict[str, Any], "provenance", path)


def _read_pickle(path: Path) -> tuple[Any, dict[str, Any]]:
    # Do not show torch's own message, which recommends unsafe loading.
    with (
        reading(path, "damaged, or holds more than tensors (which is not loaded: it could run code)"),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        return torch.load(path, map_location="cpu", weights_only=True), {"file": path.name}
