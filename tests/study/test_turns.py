"""What the notebooks ask: the right answers are gradients, and the mistakes are told apart."""
import numpy as np
import pytest
from paths import EXAMPLES

from minires.study.notebook import numerical, turn, verdict
from minires.study.turns import TURNS


@pytest.mark.parametrize("name", TURNS)
def test_the_right_answer_is_right_and_each_mistake_is_named(name):
    asked = TURNS[name]
    assert verdict(asked, asked.right) == "right"
    for sentence, wrong in asked.mistakes.items():
        assert verdict(asked, wrong) == f"not yet: {sentence}"


@pytest.mark.parametrize("name", [name for name, asked in TURNS.items() if asked.value])
def test_the_right_answer_is_the_derivative(name, rng):
    asked = TURNS[name]
    first, *others = asked.arguments(rng)
    np.testing.assert_allclose(asked.right(first, *others), numerical(lambda x: asked.value(x, *others), first), atol=1e-7)


@pytest.mark.parametrize(("answer", "said"), [
    (lambda x, dy: None, "your turn: nothing is returned yet"),
    (lambda x, dy: ..., "your turn: nothing is returned yet"),
    (lambda x, dy: dy[:2], "not yet: the shape is (2,), and must be (5,)"),
    (lambda x, dy: x @ dy[:2], "not yet: ValueError: matmul: "),
    (lambda x, dy: [dy, dy[:2]], "not yet: ValueError: setting an array element with a sequence."),
    (lambda x, dy: ["a"] * 5, "not yet: the entries are of <U1, and must be numbers"),
    (lambda x, dy: np.float32(dy - dy.mean()), "not yet: 4 of 5 entries are wrong; at [0] stands "),
    (lambda x, dy: (dy - dy.mean()) * (1 + 1e-8), "not yet: 5 of 5 entries are wrong; at [0] stands "),
    (lambda x, dy: np.append((dy - dy.mean())[:4], 9), "not yet: 1 of 5 entries are wrong; at [4] stands 9, and should "),
])
def test_whatever_is_answered_is_one_sentence(answer, said, capsys):
    turn("centring", answer)
    assert capsys.readouterr().out.startswith(said)


def test_every_notebook_of_a_derivation_asks_and_every_question_is_asked():
    asked = {name: [path.stem[:2] for path in EXAMPLES.glob("*.ipynb") if f'turn(\\"{name}\\"' in path.read_text()]
             for name in TURNS}
    assert sorted(number for numbers in asked.values() for number in numbers) == [f"0{number}" for number in range(1, 8)]
    assert all(len(numbers) == 1 for numbers in asked.values())
