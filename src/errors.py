"""The one exception that means: the user can mend this; and what running out of memory looks like."""


class UserError(Exception):
    """A wrong setting, file or folder. The message is one line: what was given, what is allowed, what to do.

    Scripts print it without a traceback and exit with code 2; library users catch it like any other exception.
    """


def out_of_memory(error: Exception) -> bool:
    """Whether this is what Python, numpy or torch raise when there is no memory left."""
    if isinstance(error, RuntimeError):  # torch's own type is one, but is not always used
        texts = ("can't allocate memory", "CUDA error: out of memory", "_STATUS_ALLOC_FAILED")  # cuBLAS, cuSOLVER
        return type(error).__name__ == "OutOfMemoryError" or any(text in str(error) for text in texts)
    return isinstance(error, MemoryError)


def first_line(error: Exception) -> str:
    """The first line of what an exception says, or its type where it says nothing: what fits into a UserError."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
