"""Errors for people: the exception type for a user's mistake, and any error as one line."""


class UserError(Exception):
    """Something the user can repair: a parameter, a path, a file.

    The message is one line: the parameter, what was found, what is needed. A step prints it
    without a traceback and exits with code 2.
    """


def one_line(error: BaseException, limit: int = 200) -> str:
    """The first line of an error's message, at most `limit` characters; its type where it is empty.

    Libraries raise messages of many lines, or none; a line of ours quotes the first.
    """
    lines = str(error).strip().splitlines()
    text = " ".join(lines[0].split()) if lines else type(error).__name__
    return text if len(text) <= limit else f"{text[:limit]}..."
