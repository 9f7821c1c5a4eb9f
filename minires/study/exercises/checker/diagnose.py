"""Which mistake explains all that was seen to rounding; and where none does, where the difference sits."""
import re
from dataclasses import replace
from itertools import chain

import numpy as np

from minires.study.exercises.checker.exercise import describe
from minires.study.exercises.checker.general import general_mistakes, value
from minires.study.exercises.checker.observe import close
from minires.study.exercises.checker.report import Diagnosis
from minires.study.exercises.checker.where import where


def diagnose(exercise, observations):
    """A list of Diagnosis for the gradients whose values are wrong; empty when all are right.

    A mistake must predict every case that was run, the right ones too (an average over N is no mistake at N = 1). If
    none does, one that predicts the wrong cases alone is named together with what sets those cases apart.
    """
    tensors = dict.fromkeys(tensor for seen in observations for tensor in seen.got)
    wrong = [tensor for tensor in tensors if not all(seen.right(tensor) for seen in observations)]
    found = []
    for everywhere in (True, False):
        while wrong:
            fitting = _first_fit(exercise, observations, wrong, everywhere)
            if fitting is None:
                break
            mistake, explained, cases = fitting
            condition = None if everywhere else _condition(observations, cases)
            if everywhere or condition:
                sentence = _filled(mistake.sentence, cases)
                found.append(Diagnosis(mistake.name, explained, condition,
                                       f"{condition}: {sentence}" if condition else sentence))
                wrong = [tensor for tensor in wrong if tensor not in explained]
            else:
                break
    explained = exercise.explain(observations, wrong) if wrong and exercise.explain else None
    if explained:
        condition = _condition(observations, [seen for seen in observations if not all(map(seen.right, explained.tensors))])
        sentence = f"{condition}: {explained.sentence}" if condition else explained.sentence
        found.append(replace(explained, where=condition, sentence=sentence))
        wrong = [tensor for tensor in wrong if tensor not in explained.tensors]
    for tensor in wrong:
        cases = [seen for seen in observations if not seen.right(tensor)]
        condition = _condition(observations, cases)
        name, sentence = where(exercise, tensor, cases[-1])
        found.append(Diagnosis(name, [tensor], condition, f"{condition}: {sentence}" if condition else sentence))
    return found


def _first_fit(exercise, observations, wrong, everywhere):
    """(mistake, the wrong tensors it explains, the cases they are wrong in): the exercise's own mistakes come first."""
    situations = [seen.situation for seen in observations]
    # Never added to means exactly zero: a sum that cancels is rounding, and another mistake.
    zero = {tensor for tensor in wrong if not any(seen.got[tensor].any() for seen in observations if tensor in seen.got)}
    general = (mistake for tensor in wrong for mistake in general_mistakes(exercise, tensor, situations)
               if mistake.name != "zero" or tensor in zero)
    for mistake in chain(exercise.mistakes, general):
        explained, cases = _explains(mistake, observations, wrong, everywhere)
        if explained:
            return mistake, explained, cases
    return None


def _explains(mistake, observations, wrong, everywhere):
    """The wrong tensors that the mistake predicts exactly, if nothing that it predicts is seen otherwise."""
    explained, cases = [], []
    for seen in observations:
        if not everywhere and all(seen.right(tensor) for tensor in wrong):
            continue
        predicted = mistake.formula(seen.situation)
        predicted = predicted if isinstance(predicted, dict) else {"dx": predicted}
        for tensor, array in predicted.items():
            right = seen.situation.right[tensor]
            if close(seen.got[tensor], right):
                # What is right already may not be predicted otherwise.
                if everywhere and not close(right, array):
                    return [], []
                continue
            if not close(seen.got[tensor], array, np.abs(right).max(initial=0)):
                return [], []
            if tensor in wrong:
                explained += [tensor] * (tensor not in explained)
                cases += [seen] * (seen not in cases)
    return explained, cases


def _filled(sentence, cases):
    """The sentence with the sizes of the largest case, where a factor shows best."""
    situation = max((seen.situation for seen in cases), key=lambda s: s.x.size)
    return re.sub(r"\{([\w*]+)\}", lambda found: str(value(found[1], situation)), sentence)


def _condition(observations, cases):
    """ "right at stride 1, wrong at stride 2": what tells the wrong cases from the right ones; None when none is right."""
    fine = [seen for seen in observations if seen not in cases]
    if not fine:
        return None
    if all(len(seen.situation.x) == 1 for seen in fine) and all(len(seen.situation.x) > 1 for seen in cases):
        return "right for a batch of one only"
    for option in fine[0].situation.options:
        values = [[seen.situation.options[option] for seen in group] for group in (fine, cases)]
        if not set(values[0]) & set(values[1]):
            good, bad = (" and ".join(dict.fromkeys(describe(option, value) for value in group)) for group in values)
            return f"right at {good}, wrong at {bad}"
    return f"right at {fine[0].situation.case.name}, wrong at {cases[0].situation.case.name}"
