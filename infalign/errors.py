"""The one exception that a user's mistake raises."""


class InputError(ValueError):
    """Bad input: one sentence that names the file, field, value and remedy.

    The command line prints the sentence without a traceback and exits with 2.
    """
