"""The error of a source that does not compile."""
from cupy._module import CompileException  # noqa: F401
