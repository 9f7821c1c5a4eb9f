"""The exception for a user's mistake; the command line prints it as a sentence and exits with 2."""


class UserError(ValueError):
    """Bad input: the message is one sentence that names the value, what was expected and what to do."""


class WriteError(UserError, OSError):
    """A file that cannot be written. strerror: the system's reason, for a message that knows more of the file's purpose."""
