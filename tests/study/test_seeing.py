"""What a network sees: Grad-CAM and saliency against hand-computed and numerical values, and nothing left behind."""
import numpy as np
import pytest

from minires.backends import use_backend
from minires.errors import UserError
from minires.layer import Sequential
from minires.layers import Conv2d, GlobalAvgPool2d, Linear, ReLU
from minires.models import build_model
from minires.study import seeing
from minires.study.gradcheck import distinct_nonzero, randomise_parameters
from minires.study.taps import left_as_found, opened, tapped


@pytest.fixture(autouse=True)
def reference_kernels():
    with use_backend("reference"):
        yield


def tiny(rng):
    """resnet20 in float64 with random weights and statistics, in training mode."""
    return randomise_parameters(build_model("resnet20", rng=rng).astype(np.float64), rng)


def state_of(model):
    """Every attribute of every layer, and every gradient, by value or identity."""
    found = {}
    for name, layer in model.named_layers():
        for key, value in vars(layer).items():
            found[name, key] = value.copy() if isinstance(value, np.ndarray) else value
    return found, [(id(parameter.grad), parameter.grad.copy(), parameter.data.copy()) for parameter in model.parameters()]


def assert_untouched(before, after):
    assert before[0].keys() == after[0].keys()
    for key, value in before[0].items():
        same = np.array_equal(value, after[0][key]) if isinstance(value, np.ndarray) else value is after[0][key]
        assert same, key
    for one, other in zip(before[1], after[1], strict=True):
        assert one[0] == other[0] and np.array_equal(one[1], other[1]) and np.array_equal(one[2], other[2])


def test_grad_cam_by_hand():
    """A 1x1 convolution copies x into two channels, x and 2x; class 0 weighs them 3 and -1, class 1 the opposite."""
    model = Sequential(Conv2d(1, 2, 1, bias=False), ReLU(), GlobalAvgPool2d(), Linear(2, 2)).astype(np.float64)
    model[0].weight.data[...] = [[[[1, 2]]]]
    model[3].weight.data[...] = [[3, -3], [-1, 1]]
    x = np.array([[[[1.0], [2.0]], [[-1.0], [4.0]]]])
    # A = (relu(x), 2 relu(x)); ds/dA = weight / 4 at each of four pixels, so alpha = weight / 4.
    rectified = np.array([[[1.0, 2.0], [0.0, 4.0]]])
    np.testing.assert_allclose(seeing.grad_cam(model, x, "1", np.array([0])), (3 - 2) / 4 * rectified, rtol=1e-15)
    np.testing.assert_array_equal(seeing.grad_cam(model, x, "1", np.array([1])), 0 * rectified)  # all evidence against
    # Of the convolution: ReLU stops the gradient at the negative pixel, so alpha is over three of four, and A is x, 2x.
    wanted = np.maximum((3 - 2) * 3 / 16 * x[..., 0], 0)
    np.testing.assert_allclose(seeing.grad_cam(model, x, "0", np.array([0])), wanted, rtol=1e-15)


def test_grad_cam_asks_about_the_predicted_class_unless_told(rng):
    model, x = tiny(rng), rng.standard_normal((3, 8, 8, 3))
    predicted = model.eval().forward(x).argmax(1)
    model.forget()
    both = seeing.grad_cam(model, x, ["layer2", "layer3"])
    assert both["layer2"].shape == (3, 4, 4) and both["layer3"].shape == (3, 2, 2)
    np.testing.assert_array_equal(both["layer2"], seeing.grad_cam(model, x, "layer2", predicted))
    assert not np.array_equal(both["layer2"], seeing.grad_cam(model, x, "layer2", (predicted + 1) % 10))


def test_grad_cam_sees_each_image_alone(rng):
    model, x = tiny(rng), rng.standard_normal((3, 8, 8, 3))
    together = seeing.grad_cam(model, x, "layer1.1.conv2")
    alone = [seeing.grad_cam(model, x[index:index + 1], "layer1.1.conv2")[0] for index in range(3)]
    np.testing.assert_allclose(together, alone, rtol=1e-9, atol=1e-12)


def test_input_gradient_is_the_numerical_one(rng):
    model, x = tiny(rng), distinct_nonzero((2, 8, 8, 3), rng)
    target = np.array([3, 7])
    dx = seeing.input_gradient(model, x, target)
    model.eval()

    def score(images):
        return model.forward(images)[[0, 1], target].sum()

    for place in [(0, 0, 0, 0), (0, 3, 5, 1), (1, 7, 7, 2), (1, 2, 0, 0)]:
        step = np.zeros_like(x)
        step[place] = 1e-6
        assert dx[place] == pytest.approx((score(x + step) - score(x - step)) / 2e-6, rel=1e-5, abs=1e-8)
    assert np.abs(dx).min(axis=(1, 2, 3)).max() > 0


def test_saliency_and_contribution():
    dx, x = np.array([[[[1.0, -3.0]], [[0.0, 2.0]]]]), np.array([[[[2.0, 1.0]], [[5.0, -1.0]]]])
    np.testing.assert_array_equal(seeing.saliency(dx), [[[3], [2]]])
    np.testing.assert_array_equal(seeing.gradient_times_input(dx, x), [[[-1], [-2]]])


def test_feature_maps_are_the_layers_outputs(rng):
    model, x = tiny(rng), rng.standard_normal((2, 8, 8, 3))
    model.eval()
    wanted = model.relu.forward(model.bn1.forward(model.conv1.forward(x)))
    np.testing.assert_array_equal(seeing.feature_maps(model, x, "relu"), wanted)
    np.testing.assert_array_equal(seeing.feature_maps(model, x, "layer1"), model.layer1.forward(wanted))


@pytest.mark.parametrize("training", [True, False])
def test_nothing_is_left_behind(rng, training):
    model, x = tiny(rng).train(training), rng.standard_normal((2, 8, 8, 3))
    for parameter in model.parameters():
        parameter.grad[...] = rng.standard_normal(parameter.grad.shape)
    before = state_of(model)
    seeing.grad_cam(model, x, "layer3")
    seeing.input_gradient(model, x)
    seeing.classify(model, [(x, np.zeros(2, np.int64))])
    assert_untouched(before, state_of(model))
    with pytest.raises(UserError):
        seeing.grad_cam(model, x, "fc")  # fails in the middle of a pass
    assert_untouched(before, state_of(model))
    with left_as_found(model):
        model.train().forward(x)
        assert not np.array_equal(model.bn1.running_mean, before[0]["bn1", "running_mean"])
        assert all((parameter.grad == 0).all() for parameter in model.parameters())
    assert_untouched(before, state_of(model))


def test_taps_see_every_layer_and_the_gradient_at_its_ends(rng):
    model, x, seen, gradients = tiny(rng), rng.standard_normal((2, 8, 8, 3)), [], {}
    with opened(model):
        with tapped(model, lambda name, layer, y: seen.append(name),
                    lambda name, layer, dy, dx: gradients.update({name: (dy, dx)})):
            with tapped(model, lambda name, layer, y: seen.append(f"inner {name}")):
                model.fc.forward(np.zeros((1, 64)))
            assert seen == ["fc", "inner fc"]
            dy = rng.standard_normal((2, 10))
            dx = model.backward(dy + 0 * model.forward(x))
        assert {name for name, _ in model.named_layers()} == set(gradients) == {name for name in seen if "inner" not in name}
        assert gradients[""][1] is dx and gradients["fc"][0] is gradients[""][0]
        assert gradients["layer2"][1] is gradients["layer1"][0]
        count = len(seen)
        model.forward(x)
        assert len(seen) == count


MISTAKES = {
    "unknown layer": (lambda m, x: seeing.feature_maps(m, x, "layer9"), "layer 'layer9' is not in this ResNet"),
    "no image": (lambda m, x: seeing.grad_cam(m, x, "pool"), r"'pool' puts out \(2, 64\)"),
    "class out of range": (lambda m, x: seeing.input_gradient(m, x, np.array([0, 10])), "integers in 0 .. 9"),
    "negative class": (lambda m, x: seeing.input_gradient(m, x, np.array([0, -1])), "integers in 0 .. 9"),
    "one class for two": (lambda m, x: seeing.input_gradient(m, x, np.array([0])), "does not fit 2 images"),
    "no batch": (lambda m, x: seeing.classify(m, []), "no batch"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes(name, rng):
    look, message = MISTAKES[name]
    with pytest.raises(UserError, match=message):
        look(tiny(rng), rng.standard_normal((2, 8, 8, 3)))


def test_classify_confusion_and_worst_mistakes(rng):
    model = Sequential(Linear(2, 3)).astype(np.float64)
    model[0].weight.data[...], model[0].bias.data[...] = [[1, 0, -1], [0, 0, 0]], 0
    batches = [(np.array([[2.0, 0], [-1, 0]]), np.array([0, 0])), (np.array([[-3.0, 0], [1000, 0]]), np.array([2, 1]))]
    probabilities, target = seeing.classify(model, batches)
    powers = np.exp([[2, 0, -2], [-1, 0, 1], [-3, 0, 3]])
    np.testing.assert_allclose(probabilities[:3], powers / powers.sum(1, keepdims=True), rtol=1e-14)
    np.testing.assert_array_equal(probabilities[3], [1, 0, 0])
    assert target.tolist() == [0, 0, 2, 1]
    matrix = seeing.confusion_matrix(target, probabilities.argmax(1), 3)
    assert matrix.tolist() == [[1, 0, 1], [1, 0, 0], [0, 0, 1]]
    assert seeing.worst_mistakes(probabilities, target, 5).tolist() == [3, 1]
    assert seeing.worst_mistakes(probabilities, target, 1).tolist() == [3]
    assert seeing.worst_mistakes(probabilities, probabilities.argmax(1), 5).tolist() == []
