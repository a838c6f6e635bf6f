"""The exception that means: the user can mend this; files that cannot be read; what running out of memory looks like."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

Kinds = type[Exception] | tuple[type[Exception], ...]


class UserError(Exception):
    """A wrong setting, file or folder. The message is one line: what was given, what is allowed, what to do.

    Scripts print it without a traceback and exit with code 2 (OutOfMemory: 1, since at another time there may be enough);
    library users catch it like any other exception.
    """


class OutOfMemory(UserError):
    """There is not enough memory, or was not: with the flags that the message names, or at another time, there may be."""


class NotFinite(UserError):
    """Logits, losses or scores that are not finite numbers: no figure may be made from them."""


@contextmanager
def finite(what: str) -> Iterator[None]:
    """Put `what` (the model or method, and the step) in front of the message of a NotFinite raised within the block."""
    try:
        yield
    except NotFinite as error:
        raise NotFinite(f"{what}: {error}") from None


class Failures(list[NotFinite]):
    """NotFinite errors that are kept until what can still be done is done."""

    @contextmanager
    def kept(self, what: str | None = None) -> Iterator[None]:
        """Keep a NotFinite that is raised within the block, with `what` in front as of `finite`."""
        try:
            with finite(what) if what else nullcontext():
                yield
        except NotFinite as failure:
            self.append(failure)

    def end(self) -> None:
        """Raise what was kept, as one error of one line."""
        if self:
            raise NotFinite("; ".join(dict.fromkeys(map(str, self))))


@contextmanager
def reading(path: str | Path, complaint: str, kinds: Kinds = Exception) -> Iterator[None]:
    """Turns what goes wrong within the block into a UserError about the file.

    A file that cannot be read at all is said to be that. Of `kinds`, all exceptions by default, since safetensors and
    pickle have too many for damage to name, all others are put down to what the file holds; but running out of memory
    says nothing against it.

    complaint: what the message says of such a file, with {why} for the first line of what went wrong.
    """
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({first_line(error)})") from None
    except kinds as error:
        if out_of_memory(error):
            raise
        raise UserError(f"{path}: {complaint.format(why=first_line(error))}") from None


def out_of_memory(error: Exception) -> bool:
    """Whether this is what Python, numpy or torch raise when there is no memory left."""
    if isinstance(error, RuntimeError):  # torch's own type is one, but is not always used
        texts = ("can't allocate memory", "CUDA error: out of memory", "_STATUS_ALLOC_FAILED")  # cuBLAS, cuSOLVER
        return type(error).__name__ == "OutOfMemoryError" or any(text in str(error) for text in texts)
    return isinstance(error, MemoryError)


def first_line(error: Exception) -> str:
    """The first line of what an exception says, or its type where it says nothing: what fits into a UserError."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
