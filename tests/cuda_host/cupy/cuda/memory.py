"""The error of an allocation that does not fit."""
from cupy._memory import OutOfMemoryError  # noqa: F401
