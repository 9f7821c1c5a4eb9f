"""The one exception for a user's mistake; the command line prints it as a sentence and exits with 2."""


class UserError(ValueError):
    """Bad input: the message is one sentence that names the value, what was expected and what to do."""
