"""The one kind of error a user's input may cause.

Everything a person can get wrong (a parameter, a file, a folder) is raised as `InputError`. Entry points print its
message as a single sentence and exit with 2; every other exception is a bug and keeps its traceback.
"""


class InputError(ValueError):
    """Bad input. The message is one sentence: the file or key, its value, and what to do about it."""
