"""The exception for a user's mistake, a sentence that the command line prints before it exits with 2; and notes."""
import sys


class UserError(ValueError):
    """Bad input: the message is one sentence that names the value, what was expected and what to do.

    It is one line that any terminal can print: what else a name out of a file may hold stands there as \\n or \\udc80.
    """

    def __init__(self, message=""):
        super().__init__("".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(message)))


class WriteError(UserError, OSError):
    """A file that cannot be written. strerror: the system's reason, for a message that knows more of the file's purpose."""


def note(text):
    """Say something that is no mistake and should be known, in a line on stderr."""
    print(f"minires: {text}", file=sys.stderr)
