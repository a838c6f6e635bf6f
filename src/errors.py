"""The one exception that means: the user can mend this."""


class UserError(Exception):
    """A wrong setting, file or folder. The message is one line: what was given, what is allowed, what to do.

    Scripts print it without a traceback and exit with code 2; library users catch it like any other exception.
    """
