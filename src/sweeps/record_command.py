"""Rebuild the command that repeats a run, from its record alone.

The user's files are looked up at the paths in the record (`tinymem.records.sources`). What the record identifies only
by a fingerprint (a checkpoint, and in older records also a file of memorized sequences) is looked up where the scripts
put it: next to the record, in runs/, in results/models and in pythia_mem_data/.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from tinymem.attacks.registry import ATTACKS
from tinymem.data.corpus import BUILTIN, HUB_SOURCES, find_corpus
from tinymem.data.passages import PassageSettings
from tinymem.data.production import ProductionSettings
from tinymem.data.settings import HUB, DataSettings
from tinymem.data.token_sets import read_token_set
from tinymem.errors import UserError
from tinymem.localize.method import Method, find
from tinymem.localize.registry import METHODS
from tinymem.localize.task import TaskSettings
from tinymem.metrics.registry import metrics_of, missing, plugin_metrics
from tinymem.models.production import LoadSettings
from tinymem.options import as_flags, unnamed
from tinymem.records.identity import (
    FINETUNE,
    NEVER_PLANTED,
    PLANTED_MODEL,
    TRAIN,
    TWIN_MODEL,
    UNEDITED,
    UNLEARN,
    Record,
)
from tinymem.records.record import read_record
from tinymem.records.sources import METRIC_FLAGS, found_again, sources
from tinymem.scripts import ROOT
from tinymem.sweeps.jobs import FINETUNING, LOCALIZE, MEASURE, PRODUCTION, TRAINING
from tinymem.training.checkpoint import SETTINGS, load_trained
from tinymem.training.plant import PlantSettings
from tinymem.training.settings import RunSettings


def words_of(record: Record, path: Path) -> list[str]:
    """Return the script and flags of the command that makes a record, without --output_dir, --data_dir and --device.

    path: the record's file. Raise UserError if the run cannot be repeated.
    """
    if record["kind"] == TRAIN:
        values = {name: value for part in ("data", "model", "training") for name, value in record[part].items()}
        settings = RunSettings.from_flat(values, path)
        check_text(settings.data, path)
        return [TRAINING, *as_flags(*settings.parts)]
    if record["kind"] == FINETUNE:
        method = record["method"]
        model = ["--model_path", str(find_checkpoint(record, path)), *_text(record, path)]
        return [FINETUNING, *model, "--ft_data", method["name"], "--ft_epochs", str(method["ft_epochs"])]
    edit = _parent(record, path) if record.get("attack") else record
    if edit["kind"] in (UNEDITED, NEVER_PLANTED, UNLEARN):
        return _unlearning(record, edit, path)
    raise UserError(f"{path}: a record of kind {edit['kind']} does not say where its model lies; measure that again")


def _unlearning(record: Record, edit: Record, path: Path) -> list[str]:
    """Return the words of a localize script's command: for a method, an attack, or only measuring.

    edit: the record of the attacked model; without an attack, the same record.
    """
    attack: list[str] = []
    if record.get("attack"):
        method, name = _known(ATTACKS, "--attack", record, path)
        attack = ["--attack", name, *_settings(method, record["attack"], path, f"{method.name}.")]
    metrics = [*metrics_of(record["results"]), *_own_metrics(record, path)]
    measuring = [*(["--metrics", *metrics] if metrics else []), *attack]
    task = as_flags(TaskSettings(**_of(TaskSettings, record["forget"])))
    if "name" not in record["model"]:
        model = str(find_checkpoint(record, path))
        flag, script, data = "--model_path", LOCALIZE, _text(record, path)
    elif "data_name" in record["data"]:  # a model from elsewhere on TinyMem's data
        settings = DataSettings(**_of(DataSettings, record["data"]))
        check_text(settings, path)
        model, flag, script = record["model"]["name"], "--model_path", LOCALIZE
        data = ["--data_name", settings.data_name, *as_flags(settings, leave_out=("data_name",))]
    else:
        model, flag, script = record["model"]["name"], "--model_name", PRODUCTION
        data = _production(record, path)
    data += ["--twin_model", twin] if (twin := record["model"].get(TWIN_MODEL)) else []
    if edit["kind"] != UNLEARN:
        return [MEASURE, model, *task, *data, *measuring]
    method, name = _known(METHODS, "--localization_method", edit, path)
    left_out = ("dtype",) if script == PRODUCTION else ()
    section = _with_places(method, edit, path)
    chosen = ["--localization_method", name, *_settings(method, section, path, left_out=left_out)]
    return [script, flag, model, *chosen, *task, *data, *measuring, "--no_save_model"]


def _production(record: Record, path: Path) -> list[str]:
    """Return the flags of a production model and its data."""
    data, model = record["data"], record["model"]
    words = as_flags(
        LoadSettings(**_of(LoadSettings, model)), ProductionSettings(**_of(ProductionSettings, _sizes(data)))
    )
    words += ["--bos", "yes" if data.get("bos") else "no"]
    if PLANTED_MODEL in record.get("training", {}):
        planted = {name: value for name, value in _of(PassageSettings, data).items() if name != "plant"}
        words += as_flags(PassageSettings(**planted), PlantSettings(**_of(PlantSettings, record["training"])))
        return [*words, *(_given(record, "--plant", path) or ["--plant", _corpus(data["plant"], path)])]
    memorized = _given(record, "--memorized", path)
    words += memorized or ["--memorized", str(_token_file(data["memorized_data"], path))]
    if other := _given(record, "--random", path) or _given(record, "--corpus", path):
        return [*words, *other]
    try:
        return [*words, "--random", str(_token_file(data["random_data"], path))]
    except UserError:
        return [*words, "--corpus", _corpus(data["random_data"], path)]


def _given(record: Record, flag: str, path: Path) -> list[str]:
    """Return the words of a flag that named a user's file, and of its column; empty if the flag was not given."""
    words: list[str] = []
    for source in sources(record, flag):
        words = [flag, str(found_again(source, path))]
        words += ["--text_column", source["column"]] if "column" in source else []
    return words


def _text(record: Record, path: Path) -> list[str]:
    """Return the words that give the new path of a checkpoint's text, if the record has it."""
    return _given(record, "--corpus", path)[:2]  # the checkpoint has the column


def _own_metrics(record: Record, path: Path) -> list[str]:
    """Return the user's files that define metrics in a record's results."""
    files = []
    for source in (entry for flag in METRIC_FLAGS for entry in sources(record, flag)):
        file = str(found_again(source, path))
        own = plugin_metrics(file)
        if len(missing(record["results"], own)) < len(own):
            files.append(file)
    return list(dict.fromkeys(files))


def _sizes(data: Mapping[str, Any]) -> dict[str, Any]:
    return {name: data[name] for name in ProductionSettings().sizes if name in data}


def _corpus(label: str, path: Path) -> str:
    """Return the name of a corpus (builtin or hub) from its label."""
    known = {HUB: [source["path"].split("/")[1] for source in HUB_SOURCES.values()], BUILTIN: [BUILTIN]}
    for name, starts in known.items():
        if label.startswith(tuple(starts)):
            return name
    raise UserError(f"{path}: its text, {label}, is named by its content alone; run the command by hand")


def _token_file(fingerprint: str, path: Path) -> Path:
    """Return the file of token ids with this fingerprint, from the usual places."""
    places = (*path.absolute().parents[1:3], Path("pythia_mem_data"), ROOT / "pythia_mem_data", Path())
    for file in (file for place in places for kind in ("*.safetensors", "*.pt") for file in sorted(place.glob(kind))):
        try:
            if read_token_set(str(file)).fingerprint == fingerprint:
                return file
        except UserError:  # not a token set
            continue
    raise UserError(
        f"{path}: no token ids with the fingerprint {fingerprint} in pythia_mem_data/ or here; fetch them again"
    )


def _known(methods: Mapping[str, Method], flag: str, record: Record, path: Path) -> tuple[Method, str]:
    """Return the method or attack of a record, and its name on the command line (for a user's own, its file).

    Raise UserError for a method or attack that TinyMem lacks, and for a file that is missing or has changed.
    """
    section = record["attack" if flag == "--attack" else "method"]
    if "code" not in section and section["name"] in methods:
        return methods[section["name"]], section["name"]
    for source in sources(record, flag):
        if source["sha256"].startswith(str(section.get("code"))):
            file = str(found_again(source, path))
            return find([file], methods, flag)[0], file
    raise UserError(f"{path}: {section['name']} is no method or attack of TinyMem; run its command by hand")


def _with_places(method: Method, record: Record, path: Path) -> dict[str, Any]:
    """Return a record's section of its method, with paths of files in place of what identifies their content."""
    section = dict(record["method"])
    for field in fields(method.hyper_parameters):
        content, held = field.metadata.get("content"), section.get(field.name)
        if content and held is not None:
            given = [str(found_again(source, path)) for source in sources(record, f"--{field.name}")]
            section[field.name] = next((place for place in (*given, HUB, BUILTIN) if content(place) == held), None)
            if section[field.name] is None:
                raise UserError(f"{path}: its --{field.name} is named by its content alone; run the command by hand")
    return section


def _settings(
    method: Method, section: Mapping[str, Any], path: Path, prefix: str = "", left_out: Sequence[str] = ()
) -> list[str]:
    """Return the flags of all settings in a section, and of those it leaves out that then differ from the default.

    Raise UserError for a setting that the method no longer has.
    """
    names = [field.name for field in fields(method.hyper_parameters)]
    unknown = [name for name in section if name not in (*names, "name", "code")]
    if unknown:
        raise UserError(f"{path}: {method.name} has no setting {unknown[0]} in this version")
    default, words = method.hyper_parameters(), []
    before = {name: value for name, value in unnamed(type(default)).items() if value != getattr(default, name)}
    for name in names:
        value = section.get(name, before.get(name))
        if value is not None and name not in left_out:
            words += [f"--{prefix}{name}", *map(str, value if isinstance(value, (list, tuple)) else [value])]
    return words


def _parent(record: Record, path: Path) -> dict[str, Any]:
    """Return the record of the attacked model, from the folder of the attack's record."""
    parent = path.with_name(f"{record['parent']}.json")
    if not parent.exists():
        raise UserError(f"{path}: the record of the model that was attacked, {parent.name}, is not beside it")
    return read_record(parent)


def _of(cls: type, section: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a section that are settings of a class."""
    return {field.name: section[field.name] for field in fields(cls) if field.name in section}


def check_text(data: DataSettings, path: Path) -> None:
    """Raise UserError if the text or the tokenizer of a training is no longer where its settings say."""
    if data.is_text and data.corpus_path is not None:
        find_corpus(data)
    if data.tokenizer_path is not None and not data.tokenizer_path.exists():
        raise UserError(f"{path}: its tokenizer, {data.tokenizer_path}, is gone; put it there again")


def find_checkpoint(record: Record, path: Path) -> Path:
    """Return the folder of the checkpoint that a record is about. Raise UserError if there is none."""
    wanted = {name: record.get(name, {}) for name in ("data", "model", "training")}
    epoch = wanted["training"].get("epoch")
    for folder in _candidates(path, epoch):
        try:
            details = load_trained(folder)
            settings = RunSettings.from_flat(details["settings"], folder)
        except UserError:  # not a checkpoint of a training run
            continue
        if settings.checkpoint_sections(details["epoch"]) == wanted:
            if not sources(record, "--corpus"):
                check_text(settings.data, path)
            return folder
    raise UserError(
        f"{path}: its model is not beside it, in runs/ or in results/models (epoch {epoch} of the training that the "
        "record names); train it again first"
    )


def _candidates(path: Path, epoch: Any) -> Iterator[Path]:
    """Yield folders that may hold a record's model: above the record, in runs/ and in results/models."""
    above = path.absolute().parents
    for place in above[1:5]:
        yield from sorted(place.glob(f"epoch_{epoch}"))
    for place in (Path("runs"), Path("results/models"), ROOT / "results" / "models", *above[1:5]):
        yield from sorted(
            file.parent for file in (*place.glob(f"*/{SETTINGS}"), *place.glob(f"*/epoch_{epoch}/{SETTINGS}"))
        )
