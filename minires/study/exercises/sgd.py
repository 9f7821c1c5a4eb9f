"""Stochastic gradient descent with momentum."""
from minires.optim import SGD
from minires.study.exercises.checker.exercise import Mistake
from minires.study.exercises.checker.update import Settings, UpdateExercise
from minires.study.exercises.checker.words import blank

CODE = f"""
import numpy as np


class SGD:
    def __init__(self, parameters, lr, momentum=0.0, weight_decay=0.0, nesterov=False):
        self.parameters, self.lr, self.momentum = list(parameters), lr, momentum
        self.weight_decay, self.nesterov = weight_decay, nesterov
        self.velocities = [np.zeros_like(parameter.data) for parameter in self.parameters]

    def step(self):
        for parameter, velocity in zip(self.parameters, self.velocities, strict=True):
            {blank("step")}
"""


def rule(keep=lambda m: m, take=lambda m: 1, *, decay=1, decoupled=False, scaled=False, ahead=True, sign=1):
    """The right rule with one thing changed. keep, take: the shares of the old velocity and of the gradient, from the
    momentum; decay: its factor; decoupled: it moves the parameter itself; scaled: the velocity holds lr * g; ahead:
    False forgets Nesterov's step, "whole" takes the velocity without the factor momentum; sign: -1 moves uphill."""
    def step(p, g, memory, lr, t, options):
        m, decays = options["momentum"], decay * options["weight_decay"]
        if not decoupled:
            g = g + decays * p
        velocity = memory["velocity"] = keep(m) * memory.get("velocity", 0 * g) + take(m) * (lr * g if scaled else g)
        if options["nesterov"] and ahead:
            velocity = (lr * g if scaled else g) + (1 if ahead == "whole" else m) * velocity
        p = p * (1 - lr * decays) if decoupled else p
        return p - sign * (velocity if scaled else lr * velocity)
    return lambda s: s.follow(step)


EXERCISE = UpdateExercise(
    title="optimiser: gradient descent with momentum, weight decay and Nesterov's step",
    engine=SGD,
    make=lambda SGD, parameters, lr, **options: SGD(parameters, lr, **options),
    formula="g = grad + weight_decay * data\n"
            "velocity = momentum * velocity + g\n"
            "data = data - lr * (g + momentum * velocity if nesterov else velocity)",
    code=CODE,
    cases=(Settings(momentum=0.0, weight_decay=0.0, nesterov=False),
           Settings(momentum=0.9, weight_decay=0.0, nesterov=False),
           Settings(momentum=0.8, weight_decay=0.3, nesterov=False),
           Settings(momentum=0.7, weight_decay=0.2, nesterov=True)),
    mistakes=(
        Mistake("uphill", "the parameters move along the gradient, and must move against it", rule(sign=-1)),
        Mistake("velocity forgotten", "each step begins with a velocity of zero: velocity = ... names a new array, and "
                "nobody keeps it; change the old one, velocity *= momentum, velocity += g", rule(keep=lambda m: 0)),
        Mistake("velocity never fades", "the velocity is never multiplied by momentum: it adds up all gradients",
                rule(keep=lambda m: 1)),
        Mistake("dampened", "the gradient enters the velocity with the factor 1 - momentum: here, as in PyTorch, it enters "
                "whole", rule(take=lambda m: 1 - m)),
        Mistake("rate inside the velocity", "the velocity holds lr * g: then steps of an old learning rate live on when it "
                "changes; multiply by lr when the parameter moves", rule(scaled=True)),
        Mistake("decay forgotten", "weight decay is missing: g = grad + weight_decay * data", rule(decay=0)),
        Mistake("decay uphill", "weight decay has its sign flipped: it pulls the parameters to zero", rule(decay=-1)),
        Mistake("decay doubled", "weight decay counts twice: weight_decay / 2 * data^2 has the gradient weight_decay * data",
                rule(decay=2)),
        Mistake("decay decoupled", "weight decay moves the parameter itself, as in AdamW: here it is a part of g, which the "
                "velocity remembers", rule(decoupled=True)),
        Mistake("Nesterov forgotten", "nesterov changes nothing: it moves by g + momentum * velocity", rule(ahead=False)),
        Mistake("Nesterov along the whole velocity", "Nesterov's step adds the whole velocity to g: momentum times it",
                rule(ahead="whole")),
    ),
    hint="Three lines and a condition. The velocity is an array of its own for each parameter: change it in place.",
)
