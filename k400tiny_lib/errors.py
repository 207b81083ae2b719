"""The one exception type for a user's mistake."""


class UserError(Exception):
    """Something the user can mend: a parameter, a path, a file.

    The message is one line: the parameter, what was found, what is needed. A step prints it
    without a traceback and exits with code 2.
    """
