"""UserError, the exception for mistakes the user can fix, and helpers for unreadable files and out-of-memory errors."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

Kinds = type[Exception] | tuple[type[Exception], ...]


class UserError(Exception):
    """A wrong setting, file or folder. The message is one line: what was given, what is allowed, what to do.

    Scripts print it without a traceback and exit with code 2 (OutOfMemory: 1, since a retry may succeed). Library users
    catch it like any other exception.
    """


class OutOfMemory(UserError):
    """Out of memory. Retrying later, or with the flags named in the message, may succeed."""


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
        raise UserError(f"{path}: cannot be read ({first_line(error)})") from None
    except kinds as error:
        if out_of_memory(error):
            raise
        raise UserError(f"{path}: {complaint.format(why=first_line(error))}") from None


def out_of_memory(error: Exception) -> bool:
    """Return whether Python, numpy or torch raised this for lack of memory."""
    if isinstance(error, RuntimeError):  # torch's own type is one, but is not always used
        texts = ("can't allocate memory", "CUDA error: out of memory", "_STATUS_ALLOC_FAILED")  # cuBLAS, cuSOLVER
        return type(error).__name__ == "OutOfMemoryError" or any(text in str(error) for text in texts)
    return isinstance(error, MemoryError)


def first_line(error: Exception) -> str:
    """Return the first line of an exception's message, or its type if the message is empty."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
