"""How an exercise is described: the engine's class it is about, the code the student gets, and the known mistakes."""
import inspect
from collections.abc import Callable
from dataclasses import dataclass

from minires.errors import UserError
from minires.study.exercises.checker.observe import observe
from minires.study.exercises.checker.situation import Situation
from minires.study.exercises.checker.words import BLANK as BLANK
from minires.study.exercises.checker.words import blank, describe, imports_first, indent, shape


class Case:
    """One input the student's class is tried on. shape: of x; options: keywords for the exercise's `make`; scale: what x is
    multiplied by.

    Choose sizes that differ from each other, so that a factor N cannot be taken for C, and a batch of one among them.
    """

    def __init__(self, shape, *, scale=1, **options):
        self.shape, self.scale, self.options = tuple(shape), scale, options

    @property
    def name(self):
        """Such as "N = 2, stride 2, padding 1"."""
        scaled = [f"x times {self.scale:,}"] * (self.scale != 1)
        return ", ".join([f"N = {self.shape[0]}", *scaled, *(describe(key, value) for key, value in self.options.items())])


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


@dataclass(frozen=True, eq=False, kw_only=True)
class Exercise:
    """A backward pass to write. (`forward.ForwardExercise` and `update.UpdateExercise` ask for something else.)

    title: a few words; engine: the class that solves it, a Layer or a loss; the student's class has its name
    make(cls, rng, **options): an instance of the engine's or the student's class
    letters: of each tensor, as {"x": "N C", "y": "N K", "weight": "C K"}, from the legend in the README
    formula: the forward pass as maths; keeps: what forward keeps, in words; hint: optional, goes into the file
    code: imports and class as the student gets them, with the line blank(method) as the body to write
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
    keeps: str = ""
    code: str
    cases: tuple
    mistakes: tuple = ()
    target: Callable | None = None
    explain: Callable | None = None
    explain_error: Callable | None = None
    hint: str = ""
    name: str = ""

    method = "backward"  # what is to be written
    value = "gradient"  # what is compared
    given = ("forward",)  # the other methods that the class must have
    situation = Situation
    observe = staticmethod(observe)

    def __post_init__(self):
        line = blank(self.method)
        if self.code.count(line) != 1:
            raise UserError(f"the exercise's code has {self.code.count(line)} lines {line}, expected one: the body of "
                            f"{self.method}")
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

    def task(self):
        """What is given and what is to be written, as paragraphs for the file."""
        argument = "no argument" if self.target else f"dy = dL/dy, {shape(self.letters['y'])},"
        averaged = "" if self.target else "\nAdd up over the batch, never average: the loss has divided by N already."
        return (f"forward is given. It keeps {self.keeps}.\nWrite backward: it gets {argument} and must\n{self.listed()}\n"
                f"Leave {'what forward kept' if self.target else 'dy and what forward kept'} unchanged, and keep the dtype: "
                f"float32 stays float32.{averaged}")

    def listed(self):
        """`required` as lines of the file."""
        return "\n".join(f"    - {line}" for line in self.required())

    def about(self):
        """The shapes of all that has letters."""
        given = "; ".join(f"{name}: {shape(letters)}" for name, letters in self.letters.items())
        if self.target:
            given = given.replace("x:", "y:", 1).split("; y: ()")[0].split("; loss: ")[0]
        return given if len(given) < 100 else given.replace("; ", "\n    ")

    def text(self, file):
        """The student's file, which will be called `file`."""
        hint = f"\n{self.hint.strip()}\n" if self.hint else ""
        return (f'"""Exercise {self.name}: {self.title}.\n\n    {self.about()}\n\n{indent(self.formula)}\n\n'
                f'{self.task()}\n{hint}\nThen: minires exercise check {file}\n"""\n{imports_first(self.code, self.name)}')
