"""How an exercise is described: the engine's class it is about, the code the student gets, and the known mistakes."""
import inspect
from collections.abc import Callable
from dataclasses import dataclass

from minires.errors import UserError

BLANK = 'raise NotImplementedError("backward is blank: write it here")'


class Case:
    """One input the student's class is tried on. shape: of x; options: keywords for the exercise's `make`.

    Choose sizes that differ from each other, so that a factor N cannot be taken for C, and a batch of one among them.
    """

    def __init__(self, shape, **options):
        self.shape, self.options = tuple(shape), options

    @property
    def name(self):
        """Such as "N = 2, stride 2, padding 1"."""
        return ", ".join([f"N = {self.shape[0]}", *(describe(key, value) for key, value in self.options.items())])


def describe(option, value):
    """An option of a case in words: "stride 2", and "training" or "evaluation" for the mode."""
    return ("training" if value else "evaluation") if option == "training" else f"{option} {value}"


@dataclass(frozen=True)
class Mistake:
    """A wrong answer that has a name.

    name: short and stable, an autograder may count it; sentence: what the student reads, with letters such as {N} for
    sizes; formula: a function of a `Situation` that returns the wrong dx, or a dict of wrong arrays by tensor name
    ("dx", "weight", "conv1.weight") when the mistake shows in parameters' gradients, or in several at once.
    """

    name: str
    sentence: str
    formula: Callable


@dataclass(frozen=True, eq=False)
class Exercise:
    """A backward pass to write.

    title: a few words; engine: the class that solves it, a Layer or a loss; the student's class has its name
    make(cls, rng, **options): an instance of the engine's or the student's class
    letters: of each tensor, as {"x": "N C", "y": "N K", "weight": "C K"}, from the legend in the README
    formula: the forward pass as maths; keeps: what forward keeps, in words; hint: optional, goes into the file
    code: imports and class as the student gets them, with the line BLANK as the body of backward
    cases: a tuple of Case; mistakes: a tuple of Mistake, tried in this order before the general ones
    target(rng, shape): for a loss, what its forward takes besides x
    explain(observations, wrong): a Diagnosis for gradients that no mistake explains, `wrong` their names, or None
    explain_error(situation, said): a Diagnosis for an exception of backward in one case, or None
    name: set by the catalogue, from the file's name
    """

    title: str
    engine: type
    make: Callable
    letters: dict
    formula: str
    keeps: str
    code: str
    cases: tuple
    mistakes: tuple = ()
    target: Callable | None = None
    explain: Callable | None = None
    explain_error: Callable | None = None
    hint: str = ""
    name: str = ""

    def __post_init__(self):
        if self.code.count(BLANK) != 1:
            raise UserError(f"the exercise's code has {self.code.count(BLANK)} lines {BLANK}, expected one: the body of "
                            "backward")
        if not self.cases:
            raise UserError("the exercise has no cases: give at least one Case")

    @property
    def parameters(self):
        """The names of the parameters whose gradients the student adds (those of parts are the parts' own)."""
        return [name for name in self.letters if name not in ("x", "y") and "." not in name]

    def axes(self, tensor):
        """The letters of a gradient's axes, as a list; those of "dx" are x's."""
        return self.letters["x" if tensor == "dx" else tensor].split()

    def shown(self, tensor):
        """A gradient's name for the student: dx (dy for a loss), dweight, d(conv1.weight)."""
        if tensor == "dx":
            return "dy" if self.target else "dx"
        return f"d({tensor})" if "." in tensor else f"d{tensor}"

    def required(self):
        """What backward must add and return, one line each."""
        lines = [f"add {self.shown(name)} to self.{name}.grad, {shape(self.letters[name])}, with +=, not ="
                 for name in self.parameters]
        if any("." in name for name in self.letters):
            lines.append("call the backward of every part, which adds the gradients of the part's own parameters")
        return [*lines, f"return {self.shown('dx')}, {shape(self.letters['x'])}"]

    def derivation(self):
        """The derivation of the backward pass that the engine's docstring gives, or all of the docstring where it has none
        apart: maths, no code."""
        told = inspect.cleandoc(self.engine.__doc__ or "No derivation is written.").split("Source:")[0].strip()
        return told[max(told.find("Backward"), told.find("backward: "), 0):]

    def text(self, file):
        """The student's file, which will be called `file`."""
        argument = "no argument" if self.target else f"dy = dL/dy, {shape(self.letters['y'])},"
        given = "; ".join(f"{name}: {shape(letters)}" for name, letters in self.letters.items())
        wrapped = given if len(given) < 100 else given.replace("; ", "\n    ")
        averaged = "" if self.target else "Add up over the batch, never average: the loss has divided by N already.\n"
        if self.target:
            wrapped = wrapped.replace("x:", "y:", 1).split("; y: ()")[0]
        hint = f"\n{self.hint.strip()}\n" if self.hint else ""
        required = "\n".join(f"    - {line}" for line in self.required())
        return (f'"""Exercise {self.name}: {self.title}.\n\n    {wrapped}\n\n{indent(self.formula)}\n\n'
                f"forward is given. It keeps {self.keeps}.\nWrite backward: it gets {argument} and must\n{required}\n"
                f"Leave {'what forward kept' if self.target else 'dy and what forward kept'} unchanged, and keep the dtype: "
                f"float32 stays float32.\n{averaged}{hint}\nThen: minires exercise check {file}\n\"\"\"\n"
                f'{imports_first(self.code, self.name)}')


def indent(text):
    """Every line four places to the right."""
    return "\n".join(f"    {line}".rstrip() for line in text.strip("\n").splitlines())


def imports_first(code, name):
    """The code with the line that names the exercise between its imports and what follows them."""
    imports, mark, rest = code.strip("\n").partition("\n\n\n")
    return f'{imports}\n\nEXERCISE = "{name}"{mark}{rest}\n'


def shape(letters):
    """The letters "N C" as "(N, C)", "C" as "(C,)"."""
    names = letters.split()
    return f"({names[0]},)" if len(names) == 1 else f"({', '.join(names)})"
