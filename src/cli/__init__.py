"""Parts that all scripts share: flags built from settings dataclasses, one-line errors, devices, tables.

Import this before the rest of the library: it makes torch load on first use, so that `--help` is instant.
"""

from __future__ import annotations

from tinymem import interrupts

interrupts.watch_start()

import argparse
import contextlib
import dataclasses
import errno
import math
import os
import shlex
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import tinymem.lazy  # noqa: F401  (before what imports torch and numpy: they load on first use from here on)
from tinymem import scripts
from tinymem.cli.display import Display
from tinymem.cli.log import add_log_options, open_log
from tinymem.cli.tables import brief, fitted_table, table
from tinymem.data.settings import DataSettings
from tinymem.errors import DiskFull, OutOfMemory, UserError, first_line, full_disk, one_line, out_of_memory
from tinymem.interrupts import interruptible
from tinymem.options import LARGEST, allowed_text, field_types

__all__ = ["Display", "add_log_options", "brief", "fitted_table", "interruptible", "open_log", "table"]
DEVICES = ("cpu", "cuda", "mps")  # the devices that messages suggest
FIRST_SPEAKS = 10.0  # seconds that the first of several processes has to report an error
WITH_PARENT = Path(__file__).parents[1] / "sweeps" / "with_parent.py"
CONSOLE = "tinymem "  # how the program's name begins when the console command runs a script

Settings = TypeVar("Settings")


class Parser(argparse.ArgumentParser):
    """An argument parser with one-line errors and exit code 2, whose help keeps the layout of the docstring.

    When the console command `tinymem` runs it, its help names commands in place of scripts.
    """

    def __init__(self, description: str, **kwargs):
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        kwargs.setdefault("usage", "%(prog)s [options]")
        kwargs["prog"] = program(kwargs.get("prog", ""))
        description = scripts.as_commands(description) if program().startswith(CONSOLE) else description
        super().__init__(description=description, allow_abbrev=False, **kwargs)

    def parse_known_args(self, args=None, namespace=None):
        flag = ""
        for word in sys.argv[1:] if args is None else args:
            if word.startswith("--"):
                flag, equals, value = word.partition("=")
                word = value if equals else word
            if any("\ud800" <= letter <= "\udfff" for letter in word):  # writing it would fail after hours of work
                self.error(f"{word!r}: a name that is not UTF-8; rename it")
            if not word:  # "$FOLDER" with an unset variable: nobody means the default by that
                self.error(f"{flag or 'an argument'}: is empty")
        return super().parse_known_args(args, namespace)

    def error(self, message: str):
        if follows():
            self.exit(2)
        self.exit(2, f"{self.prog}: error: {one_line(message)} (see --help)\n")


def program(usual: str = "") -> str:
    """Return the program's name for messages: the console command, else `usual`, by default the script's file name."""
    started = sys.argv[0] if sys.argv[0].startswith(CONSOLE) else usual or sys.argv[0]
    return started.rsplit("/", 1)[-1]


def run(main: Callable[[], None], usual: str = "") -> None:
    """Run a script's main function. Print errors that the user can fix as one line on stderr and exit with code 2.

    Running out of memory or disk space also prints one line, but exits with code 1 because a retry may succeed.
    usual: as in `program`.
    """
    name = program(usual)
    # transformers' advice and progress bars are meant for its direct users.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    _prepare_streams()
    try:
        main()
        sys.stdout.flush()
    except KeyboardInterrupt:
        _end(name, interrupts.AGAIN, interrupts.INTERRUPTED)
    except BrokenPipeError:  # the reader of the output has ended (`| head`)
        _end(name, "", 1)
    except Exception as error:
        message, code = _explained(error)
        if not message:
            raise
        if code == 2 and follows():
            message = ""
            time.sleep(FIRST_SPEAKS)  # a launcher ends all processes as soon as one has ended
        _end(name, f"error: {message}" if message else "", code)


def follows() -> bool:
    """Return whether a launcher (accelerate, torchrun) started this process and it is not the first, which prints."""
    return "WORLD_SIZE" in os.environ and os.environ.get("RANK", "0") != "0"


def _explained(error: Exception) -> tuple[str, int]:
    """Return the message about an error and the exit code. The message is empty for a bug in the program."""
    if isinstance(error, UserError):
        return str(error), 1 if isinstance(error, (OutOfMemory, DiskFull)) else 2
    if out_of_memory(error):
        remedy = "try fewer sequences at a time (see --help), or a smaller model if its weights alone do not fit"
        return f"out of memory ({first_line(error)}); {remedy}", 1
    if full := full_disk(error):
        return f"{getattr(error, 'filename', None) or 'output'}: cannot be written ({full}); make room", 1
    if isinstance(error, OSError) and error.filename is not None:  # overlong names, circular links ...
        return f"{error.filename}: {error.strerror}", 2
    if isinstance(error, OSError) and error.errno == errno.ENOENT:  # from getcwd: any other missing file has a name
        return "the folder that this was started in is gone; start it in one that is there", 2
    if isinstance(error, OSError) and error.errno == errno.EIO:  # the terminal is gone
        return "output: cannot be written (Input/output error)", 1
    if isinstance(error, UnicodeEncodeError) and error.reason == "surrogates not allowed":
        around = error.object[max(0, error.start - 30) : error.end + 10]  # the whole object may be a page long
        return f"{around!r}: holds a name that is not UTF-8; rename it", 2
    return "", 0


def _end(program: str, message: str, code: int) -> None:
    """Exit with one line on stderr. Leave nothing for Python to flush at exit, since that could fail again."""
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
    if message:
        with contextlib.suppress(OSError, ValueError):
            print(f"{program}: {one_line(message)}", file=sys.stderr, flush=True)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:  # no reader or no disk space: discard the rest
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    sys.exit(code)


def _prepare_streams() -> None:
    """Open closed standard streams on the null device, and escape characters that a terminal cannot show.

    A file opened while a standard stream is closed would get the stream's number and receive everything that is
    printed.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)
            if null != number:
                os.dup2(null, number)
                os.close(null)
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))
    if follows():
        sys.stdout = open(os.devnull, "w", encoding="utf-8")
    if getattr(sys.stdout, "errors", "") in ("strict", "surrogateescape") and hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")


def parse_bool(text: str) -> bool:
    """Return a boolean given as text: 0 or 1, as in the study, or true or false."""
    values = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
    if text.lower() not in values:
        raise argparse.ArgumentTypeError(f"{text!r} is not one of 0, 1, true, false")
    return values[text.lower()]


def positive(text: str) -> int:
    """Return a whole number >= 1: the type of flags that give a count."""
    return _at_least(1, text)


def not_negative(text: str) -> int:
    """Return a whole number >= 0: the type of flags that give a count."""
    return _at_least(0, text)


def seconds(text: str) -> float:
    """Return a finite number >= 0: the type of flags that give a duration."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a number of seconds >= 0")
    return value


def _at_least(lowest: int, text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 20 and lowest <= int(text) <= LARGEST):
        shown = text if len(text) <= 40 else text[:40] + " ..."
        raise argparse.ArgumentTypeError(f"{shown!r} is not a whole number >= {lowest} and <= {LARGEST}")
    return int(text)


def whole(text: str) -> int:
    """Return a whole number: the type of integer flags, whose bounds are checked by their options."""
    try:
        return int(text[:100])
    except ValueError:
        shown = text if len(text) <= 40 else text[:40] + " ..."
        raise argparse.ArgumentTypeError(f"{shown!r} is not a whole number") from None


def add_options(parser: argparse.ArgumentParser, cls: type, title: str = "", **defaults: Any) -> None:
    """Add one flag per field of a settings dataclass. `defaults` only changes what the help text shows.

    A flag that was not given stores nothing, so `collect` can tell given values from defaults.
    """
    group = parser.add_argument_group(title or (cls.__doc__ or cls.__name__).splitlines()[0])
    types = field_types(cls)
    for field in dataclasses.fields(cls):
        add_flag(group, field, types[field.name], defaults.get(field.name, field.default))


def add_flag(
    group: Any, field: dataclasses.Field, kind: Any, default: Any, hide: bool = False, prefix: str = ""
) -> None:
    """Add the flag of one dataclass field to an argparse group.

    hide: leave it out of the help. prefix: put before the flag's name and the value's name in the namespace.
    """
    rules = field.metadata
    names = [f"--{prefix}{field.name}", *(() if prefix else rules.get("alias", ()))]
    settings: dict[str, Any] = dict(dest=prefix + field.name, default=argparse.SUPPRESS)
    settings["help"] = argparse.SUPPRESS if hide else _meaning(rules, default).replace("%", "%%")
    if kind is bool:
        settings.update(nargs="?", const=True, type=parse_bool, metavar="0|1")
    elif getattr(kind, "__origin__", None) is tuple:
        settings.update(nargs="+", type=kind.__args__[0], metavar=field.name.upper()[:1])
    else:
        parse = whole if kind is int else kind
        settings.update(type=parse, metavar=kind.__name__ if not rules.get("choices") else None)
    if rules.get("choices") is not None:
        settings["choices"] = rules["choices"]
    try:
        group.add_argument(*names, **settings)
    except argparse.ArgumentError:  # a setting in a user's file
        raise UserError(f"{names[0]}: a setting of your file has the name of another flag; rename it") from None


def _meaning(rules: Mapping[str, Any], default: Any) -> str:
    """Return a flag's meaning, allowed values and default."""
    allowed = allowed_text(rules) if any(rules.get(r) is not None for r in ("low", "high", "above", "below")) else ""
    shown = " ".join(map(str, default)) if isinstance(default, tuple) else default
    return f"{rules.get('help', '')} ({'; '.join(text for text in (allowed, f'default: {shown}') if text)})".strip()


def flag_help(field: dataclasses.Field, kind: Any, default: Any) -> str:
    """Return the help of a dataclass field's flag, laid out as argparse does it."""
    many = getattr(kind, "__origin__", None) is tuple
    choices = "{" + ",".join(map(str, field.metadata["choices"])) + "}" if field.metadata.get("choices") else ""
    value = f"{field.name.upper()[:1]} ..." if many else "[0|1]" if kind is bool else choices or kind.__name__
    head, lines = f"--{field.name} {value}", textwrap.wrap(_meaning(field.metadata, default), 70)
    start = [head.ljust(24) + lines.pop(0)] if len(head) < 23 else [head]
    return "\n".join(start + [" " * 24 + line for line in lines])


def add_data_options(parser: argparse.ArgumentParser) -> None:
    """Add the flags of DataSettings, and the study's `--backdoor 1` for `--artifact backdoor`."""
    add_options(parser, DataSettings)
    parser.add_argument(
        "--backdoor", dest="artifact", nargs="?", const="1", type=_backdoor, default=argparse.SUPPRESS,
        metavar="0|1", help="the study's flag for --artifact backdoor (0: noise)",
    )  # fmt: skip


def _backdoor(text: str) -> str:
    return "backdoor" if parse_bool(text) else "noise"


def add_common_options(parser: argparse.ArgumentParser, output_dir: str) -> None:
    """Add the flags that all scripts share. output_dir: describes its default in the help."""
    group = parser.add_argument_group("Common")
    group.add_argument("--output_dir", help=f"folder for all output (default: {output_dir})")
    group.add_argument("--data_dir", default="data", help="cache of built datasets (default: data)")
    group.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 ... (default: auto)")
    group.add_argument("--force", action="store_true", help="repeat finished work")
    group.add_argument("--plot", action="store_true", help="draw figures (PNG and PDF)")


def given(cls: type, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the fields of a settings dataclass that are set on the command line."""
    values = {f.name: getattr(arguments, f.name) for f in dataclasses.fields(cls) if hasattr(arguments, f.name)}
    # A repeated ratio counts once.
    return {name: tuple(dict.fromkeys(value)) if isinstance(value, list) else value for name, value in values.items()}


def collect(cls: type[Settings], arguments: argparse.Namespace, **defaults: Any) -> Settings:
    """Return a settings dataclass filled from the command line. Raise UserError for a value that is not allowed."""
    return cls(**{**defaults, **given(cls, arguments)})


class _List(argparse.Action):
    """--list: print every name that flags accept and exit, whatever else is given."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from tinymem.cli.listing import listing

        print(listing())
        parser.exit()


def add_list_option(parser: argparse.ArgumentParser) -> None:
    """Add --list."""
    parser.add_argument("--list", action=_List, nargs=0, default=argparse.SUPPRESS,
                        help="print every mitigation, metric and attack with its flag, and exit")  # fmt: skip


def resolve_device(name: str):
    """Return a device; `auto` means the GPU, if there is one. Raise UserError for a device that is not available."""
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        probe = torch.ones(1, device=name)
        probe.item()  # the meta device fails here
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        if name.partition(":")[0] not in DEVICES:  # torch's message lists all twenty device types it knows
            raise UserError(f"--device {name}: not available here; give auto, cpu, cuda, cuda:1 ... or mps") from None
        raise UserError(f"--device {name}: not available here ({first_line(error)}); try auto or cpu") from None
    return probe.device  # with its index: cuda becomes cuda:0


def command_line() -> str:
    """Return the command that runs this process, with the script's path relative to the repository's root."""
    path = Path(sys.argv[0]).resolve()
    inside = scripts.ROOT in path.parents
    return shlex.join(["python", str(path.relative_to(scripts.ROOT)) if inside else path.name, *sys.argv[1:]])


def run_script(words: Iterable[object]) -> None:
    """Print the command of a script and run it with this Python. Exit with the script's code if it fails.

    On an interrupt (Ctrl-C, SIGTERM, a closed terminal), stop the script, wait until it has saved, and raise
    KeyboardInterrupt. On a second interrupt, kill the script. If this process is killed, the script is stopped too.
    """
    script = list(map(str, words))
    print("\n$ " + shlex.join(["python", *script]), flush=True)
    # In its own session the script gets only this process's signal: a second signal would end it while it saves.
    command = [sys.executable, str(WITH_PARENT), str(os.getpid()), sys.executable, *script]
    process, told = subprocess.Popen(command, start_new_session=True), False
    interrupts.children.add(process)
    with interruptible() as asked_to_stop:
        try:
            while process.poll() is None:
                if asked_to_stop() and not told:
                    process.send_signal(signal.SIGINT)
                    told = True
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=0.2)
        except BaseException:
            process.kill()
            process.wait()
            raise
        finally:
            interrupts.children.discard(process)
    if asked_to_stop():
        raise KeyboardInterrupt
    if process.returncode:
        sys.exit(max(1, process.returncode))
