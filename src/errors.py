"""UserError, the exception for mistakes the user can fix, and helpers for unreadable files and out-of-memory errors."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

Kinds = type[Exception] | tuple[type[Exception], ...]


class UserError(Exception):
    """A wrong setting, file or folder. The message is one line: what was given, what is allowed, what to do.

    Scripts print it without a traceback and exit with code 2 (OutOfMemory: 1, since a retry may succeed). Library users
    catch it like any other exception.
    """


class OutOfMemory(UserError):
    """Out of memory. Retrying later, or with the flags named in the message, may succeed."""


class DiskFull(UserError):
    """A full disk or quota. The message contains one of FULL, which tells a sweep to stop."""


class NotFinite(UserError):
    """Logits, losses or scores are not finite numbers, so no result can be computed."""


@contextmanager
def finite(what: str) -> Iterator[None]:
    """Prefix the message of a NotFinite raised within the block with `what`: the model or method, and the step."""
    try:
        yield
    except NotFinite as error:
        raise NotFinite(f"{what}: {error}") from None


@contextmanager
def renamed(usual: str, flag: str) -> Iterator[None]:
    """Re-raise a UserError about the flag `usual` so that it names `flag` instead; "" drops the name."""
    try:
        yield
    except UserError as error:
        about, _, rest = str(error).partition(" ")
        if about != usual:
            raise
        raise type(error)(f"{flag} {rest}".lstrip()) from None


class Failures(list[NotFinite]):
    """NotFinite errors that are deferred until all other work is done."""

    @contextmanager
    def kept(self, what: str | None = None) -> Iterator[None]:
        """Store a NotFinite raised within the block, with the prefix `what` as in `finite`."""
        try:
            with finite(what) if what else nullcontext():
                yield
        except NotFinite as failure:
            self.append(failure)

    def end(self) -> None:
        """Raise the stored errors as one error with a one-line message."""
        if self:
            raise NotFinite(_joined(list(dict.fromkeys(map(str, self)))))


def _joined(messages: list[str]) -> str:
    """Join messages such as "A: B: why" into one line that gives every `why` once, after all "A: B" that share it."""
    reasons: dict[str, dict[str, list[str]]] = {}
    for message in messages:
        head, _, why = message.rpartition(": ")
        first, _, rest = head.partition(": ")
        reasons.setdefault(why, {}).setdefault(first, []).extend([rest] if rest else [])
    heads = {
        why: "; ".join(": ".join([a, *[", ".join(b)] * bool(b)]) for a, b in by.items()) for why, by in reasons.items()
    }
    return "; ".join(f"{head}: {why}" if head else why for why, head in heads.items())


FULL = tuple(os.strerror(number) for number in (errno.ENOSPC, errno.EDQUOT))
_NO_MEMORY = (
    "can't allocate memory",
    "Cannot allocate memory",
    "cannot allocate memory",
    "failed to map segment",  # the dynamic loader, of a library
    "can't start new thread",
    "CUDA error: out of memory",
    "_STATUS_ALLOC_FAILED",  # cuBLAS, cuSOLVER
)


@contextmanager
def reading(path: str | Path, complaint: str, kinds: Kinds = Exception) -> Iterator[None]:
    """Turn an exception within the block into a UserError about the file.

    An OSError becomes "cannot be read". Any other exception in `kinds` (default: all, since safetensors and pickle have
    too many to name) is blamed on the file's content, except running out of memory, which is re-raised.

    complaint: the message about a damaged file, with {why} for the first line of the exception.
    """
    try:
        yield
    except OSError as error:
        if out_of_memory(error):
            raise
        raise UserError(f"{path}: cannot be read ({error.strerror or first_line(error)})") from None
    except kinds as error:
        if out_of_memory(error) or isinstance(error, UserError):  # a UserError names its file already
            raise
        raise UserError(f"{path}: {complaint.format(why=first_line(error))}") from None


def out_of_memory(error: BaseException) -> bool:
    """Return whether this is an out-of-memory error of Python, numpy, torch or the dynamic loader."""
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return True
    if isinstance(error, (RuntimeError, ImportError, OSError)):  # torch's own type, a RuntimeError, is not always used
        return type(error).__name__ == "OutOfMemoryError" or any(text in str(error) for text in _NO_MEMORY)
    return isinstance(error, MemoryError)


def full_disk(error: BaseException) -> str:
    """Return the system's message for a full disk or quota if that is the cause, else "".

    Libraries wrap it: safetensors and tokenizers (a plain Exception) quote its text; numpy only reports a count.
    """
    code = getattr(error, "errno", None)
    if code in (errno.ENOSPC, errno.EDQUOT):
        return os.strerror(code)
    text = str(error)
    if isinstance(error, OSError) and error.errno is None and "requested and" in text and "written" in text:
        return FULL[0]
    for number, words in zip((errno.ENOSPC, errno.EDQUOT), FULL):
        if words in text or f"(os error {number})" in text:
            return words
    return ""


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's message, or its type if the message is empty."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def one_line(text: object) -> str:
    """Return a message as one printable line, with line breaks and control characters escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))
