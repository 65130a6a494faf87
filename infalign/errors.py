"""Exceptions that the command line prints as a sentence, without a traceback."""


class InputError(ValueError):
    """Bad input: one sentence that names the file, field, value and remedy.

    The command line prints the sentence without a traceback and exits with 2.
    """


class CheckFailed(RuntimeError):
    """What a run asserts of itself does not hold: one sentence, exit code 1.

    Nothing that the user wrote is wrong, but what would be computed is: going on would hide it.
    """
