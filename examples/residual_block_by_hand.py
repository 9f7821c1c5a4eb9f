"""One residual block, forward and backward on numbers small enough to follow: python examples/residual_block_by_hand.py

    y = relu(F(x) + S(x)), F(x) = conv2(relu(conv1(x))), S(x) = x
    g = relu'(F(x) + S(x)) * dy          dx = F.backward(g) + S.backward(g)

One image of 2 x 2 pixels and one channel, 1x1 convolutions without bias, no normalisation: then F multiplies each pixel
by w1, cuts off what is negative and multiplies by w2, and every number below can be checked in the head. The last lines
check dx against numerical differences, and show what the shortcut is for. The plain NumPy operators compute it: for four
pixels no kernel need be compiled.
"""
import numpy as np

from minires.backends import use_backend
from minires.layer import Sequential
from minires.layers import Conv2d, Identity, ReLU


def show(name, array, why=""):
    (first, second), formula = array.reshape(2, 2), f"    {why}" if why else ""
    print(f"{name:>12} = [[{first[0]:7.3f} {first[1]:7.3f}]{formula}\n{'':>15} [{second[0]:7.3f} {second[1]:7.3f}]]")


@use_backend("reference")
def main():
    branch = Sequential(Conv2d(1, 1, 1, bias=False), ReLU(), Conv2d(1, 1, 1, bias=False)).astype(np.float64)
    shortcut, relu = Identity(), ReLU()
    branch[0].weight.data[:] = 2.0  # w1
    branch[2].weight.data[:] = -0.25  # w2

    x = np.array([[1.0, 2.0], [-1.0, 3.0]]).reshape(1, 2, 2, 1)  # (N, H, W, C)
    dy = np.array([[1.0, -2.0], [4.0, 0.5]]).reshape(1, 2, 2, 1)

    def forward(x):
        return relu.forward(branch.forward(x) + shortcut.forward(x))

    print("forward, w1 = 2, w2 = -0.25")
    show("x", x)
    show("F(x)", branch.forward(x), "w2 * relu(w1 * x)")
    show("S(x)", shortcut.forward(x), "the identity")
    y = forward(x)
    show("y", y, "relu(F(x) + S(x))")

    print("\nbackward")
    show("dy", dy, "what the next layer hands back")
    g = relu.backward(dy)
    show("g", g, "dy where F(x) + S(x) > 0, else 0; a sum hands it to both paths")
    through_branch = branch.backward(g)
    show("dx, branch", through_branch, "w1 * w2 * g where w1 * x > 0: two weights shrink it")
    through_shortcut = shortcut.backward(g)
    show("dx, shortcut", through_shortcut, "g itself: no weight in between")
    dx = through_branch + through_shortcut
    show("dx", dx, "their sum")
    print(f"         dw1 = {branch[0].weight.grad.item():.3f}, dw2 = {branch[2].weight.grad.item():.3f}")

    # dL/dx_i is the slope of L = sum(dy * y) when x_i alone moves.
    step, numerical = 1e-6, np.empty_like(x)
    for index in np.ndindex(x.shape):
        nudge = np.zeros_like(x)
        nudge[index] = step
        numerical[index] = (dy * (forward(x + nudge) - forward(x - nudge))).sum() / (2 * step)
    error = np.abs(dx - numerical).max()
    print()
    show("numerical dx", numerical, "(L(x + h) - L(x - h)) / 2h")
    print(f"largest difference {error:.1e}: {'the same' if error < 1e-8 else 'WRONG'}")
    if error >= 1e-8:
        raise SystemExit(1)

    print("\nTwenty such blocks in a row multiply a gradient that passes every relu")
    print(f"    by (1 + w1 * w2)^20 = {(1 - 0.5) ** 20:.1e} along branch and shortcut together, and with small weights,")
    print(f"    w1 * w2 = -0.01, by (1 - 0.01)^20 = {0.99**20:.2f}; without the shortcut by 0.01^20 = {0.01**20:.0e}.")


if __name__ == "__main__":
    main()
