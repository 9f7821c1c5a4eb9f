"""Adam with decoupled weight decay."""
import numpy as np

from minires.optim import AdamW
from minires.study.exercises.checker.exercise import Mistake
from minires.study.exercises.checker.update import Settings, UpdateExercise
from minires.study.exercises.checker.words import blank

CODE = f"""
import numpy as np


class AdamW:
    def __init__(self, parameters, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-2):
        self.parameters, self.lr, self.betas, self.eps = list(parameters), lr, betas, eps
        self.weight_decay, self.steps = weight_decay, 0
        self.firsts = [np.zeros_like(parameter.data) for parameter in self.parameters]
        self.seconds = [np.zeros_like(parameter.data) for parameter in self.parameters]

    def step(self):
        self.steps += 1
        b1, b2 = self.betas
        for parameter, first, second in zip(self.parameters, self.firsts, self.seconds, strict=True):
            {blank("step")}
"""


def rule(*, corrects=(True, True), at=lambda t: t, decay=1, coupled=False, inside=False, root=np.sqrt, swapped=False,
         squared=np.square, remembers=True):
    """The right rule with one thing changed. corrects: whether the first and the second moment are corrected, for a number
    of steps `at`(t); decay: its factor; coupled: it is added to the gradient; inside: eps stands under the root; swapped:
    b1 and b2 are exchanged; remembers: whether the moments stay from step to step."""
    def step(p, g, memory, lr, t, options):
        b1, b2 = options["betas"][::-1] if swapped else options["betas"]
        decays, t = decay * options["weight_decay"], at(t)
        if coupled:
            g = g + decays * p
        first = b1 * memory.get("first", 0 * g) + (1 - b1) * g
        second = b2 * memory.get("second", 0 * g) + (1 - b2) * squared(g)
        if remembers:
            memory.update(first=first, second=second)
        first = first / (1 - b1**t) if corrects[0] else first
        second = second / (1 - b2**t) if corrects[1] else second
        divisor = np.sqrt(second + options["eps"]) if inside else root(second) + options["eps"]
        return (p if coupled else p * (1 - lr * decays)) - lr * first / divisor
    return lambda s: s.follow(step)


EXERCISE = UpdateExercise(
    title="optimiser: Adam with decoupled weight decay",
    engine=AdamW,
    make=lambda AdamW, parameters, lr, **options: AdamW(parameters, lr, **options),
    formula="first = b1 * first + (1 - b1) * grad        second = b2 * second + (1 - b2) * grad^2\n"
            "data = data - lr * weight_decay * data\n"
            "data = data - lr * first / (1 - b1^t) / (sqrt(second / (1 - b2^t)) + eps), t the steps so far, this one too",
    code=CODE,
    cases=(Settings(betas=(0.9, 0.99), eps=1e-3, weight_decay=0.0), Settings(betas=(0.8, 0.95), eps=1e-2, weight_decay=0.3)),
    mistakes=(
        Mistake("not corrected", "the moments are not corrected: they begin at zero, and after t steps hold only 1 - b^t of "
                "what they should", rule(corrects=(False, False))),
        Mistake("first not corrected", "the first moment is not corrected: divide it by 1 - b1^t",
                rule(corrects=(False, True))),
        Mistake("second not corrected", "the second moment is not corrected: divide it by 1 - b2^t",
                rule(corrects=(True, False))),
        Mistake("corrected as in the first step", "every step is corrected as the first: the exponent is self.steps",
                rule(at=lambda t: 1)),
        Mistake("corrected one step late", "the correction counts one step too many: self.steps counts this step already",
                rule(at=lambda t: t + 1)),
        Mistake("moments forgotten", "each step begins with moments of zero: first = ... names a new array, and nobody "
                "keeps it; change the old one, first *= b1, first += ...", rule(remembers=False)),
        Mistake("decay in the gradient", "weight decay is added to the gradient, as in Adam: there the division by the root "
                "takes most of it away; here it moves the parameter itself", rule(coupled=True)),
        Mistake("decay forgotten", "weight decay is missing: data = data - lr * weight_decay * data", rule(decay=0)),
        Mistake("eps inside the root", "eps stands under the root: it is added to the root", rule(inside=True)),
        Mistake("root missing", "the step divides by the second moment itself: by its square root", rule(root=lambda v: v)),
        Mistake("not squared", "the second moment is of the gradient's size, not of its square", rule(squared=np.abs)),
        Mistake("betas exchanged", "b1 and b2 are exchanged: b1 belongs to the first moment", rule(swapped=True)),
    ),
    hint="Correct copies: the moments themselves stay uncorrected, or the next step would correct them again.",
)
