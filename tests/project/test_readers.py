"""Files of others: pictures, weights, settings. What can be read is read right, the rest is one sentence."""
import argparse
import warnings

import numpy as np
import pytest
from picture_folders import write_pictures
from PIL import Image

from minires.backends import use_backend
from minires.cli import main
from minires.data import Loader, Standardise, load_dataset, load_folder
from minires.data.picture import read_pixels
from minires.errors import UserError
from minires.evaluation import open_checkpoint, read_image
from minires.files import load_tensors, save_tensors
from minires.interop.torch import load_torch_weights, to_torch_state_dict
from minires.models import build_model
from minires.training import ModelCard, load_model, read_metrics
from minires.training.run import read_config


@pytest.fixture(autouse=True)
def reference_kernels():
    with use_backend("reference"):
        yield


def both(path):
    """What `predict` and what a folder's reader make of a picture."""
    pixels = read_pixels(path)
    np.testing.assert_array_equal(pixels, read_image(path, len(pixels))[0])
    return pixels


# --- pictures ---


def test_a_photograph_is_turned_upright(tmp_path):
    picture = Image.new("RGB", (32, 32), "blue")
    picture.paste((255, 0, 0), (0, 0, 16, 32))
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(tmp_path / "e.png", exif=exif)
    assert both(tmp_path / "e.png")[2, 29].tolist() == [255, 0, 0]


def test_grey_of_16_bits_is_scaled_and_of_32_refused(tmp_path):
    Image.fromarray((np.arange(1024, dtype=np.uint16) * 64).reshape(32, 32)).save(tmp_path / "g.png")
    expected = np.rint(np.arange(1024) * 64 / 257).reshape(32, 32)
    np.testing.assert_array_equal(both(tmp_path / "g.png"), np.repeat(expected[..., None], 3, 2))
    Image.fromarray(np.ones((32, 32), np.float32)).save(tmp_path / "f.tif")
    for read in (read_pixels, lambda path: read_image(path, 32)):
        with pytest.raises(UserError, match=r"f\.tif has pixels of mode F, whose black and white nothing says"):
            read(tmp_path / "f.tif")


def test_hidden_colours_of_transparent_parts_do_not_come_through(tmp_path):
    picture = Image.new("RGBA", (8, 8), (0, 200, 0, 0))
    picture.paste((200, 0, 0, 255), (2, 2, 6, 6))
    picture.save(tmp_path / "a.png")
    picture.quantize().save(tmp_path / "p.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in ("a.png", "p.png"):
            pixels = both(tmp_path / name)
            assert pixels[0, 0].tolist() == [255, 255, 255] and pixels[4, 4, 0] > 150


def test_a_picture_that_unpacks_to_too_much_is_refused_before_it_is_unpacked(tmp_path):
    import tracemalloc

    Image.new("1", (9000, 9000)).save(tmp_path / "big.png")
    tracemalloc.start()
    with pytest.raises(UserError, match="9000 x 9000 pixels: expected at most"):
        both(tmp_path / "big.png")
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()


def test_what_is_left_out_of_a_folder_is_counted(tmp_path, capsys):
    rng = np.random.default_rng(0)
    for name in ("train/a", "train/b", "test/a", "test/b"):
        (tmp_path / name).mkdir(parents=True)
        for file in ("1.png", "2.bmp", "3.webp"):
            Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(tmp_path / name / file)
    (tmp_path / "train/a/4.jpg").write_bytes(b"no picture")
    (tmp_path / "train/b/5.png").write_bytes((tmp_path / "train/b/1.png").read_bytes()[:60])
    (tmp_path / "train/b/notes.txt").write_text("no picture")
    (tmp_path / "train/b/.hidden.png").write_text("no picture")
    assert [len(part) for part in load_folder(tmp_path)] == [6, 6]
    assert capsys.readouterr().err == (
        f"minires: {tmp_path}/train: 6 pictures; left out are 2 that cannot be read (a/4.jpg the first) and 1 that are no "
        "pictures (b/notes.txt)\n")


def test_photographs_of_any_size_are_resized_and_cropped_to_the_middle(tmp_path):
    for part in ("train", "test"):
        (tmp_path / part / "a").mkdir(parents=True)
        wide = np.zeros((20, 60, 3), np.uint8)
        wide[:, 20:40] = 200  # the middle square
        Image.fromarray(wide).save(tmp_path / part / "a/wide.png")
        tall = Image.fromarray(wide.transpose(1, 0, 2)).resize((40, 120), Image.Resampling.NEAREST)
        tall.save(tmp_path / part / "a/z.bmp")
        Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3)).save(tmp_path / part / "a/zz.png")
    with pytest.raises(UserError, match=r"wide\.png is 60x20 pixels: say with --size"):
        load_folder(tmp_path)
    train, _ = load_folder(tmp_path, 8)
    assert train.images.shape == (3, 8, 8, 3) and (np.abs(train.images[:2, 1:-1, 1:-1].astype(int) - 200) < 5).all()
    np.testing.assert_array_equal(train.images[2].ravel(), np.arange(192))  # of that size already: as it is


# --- weights ---


@pytest.fixture
def model():
    return build_model("resnet20", rng=3)


def fits(model, source):
    other = load_torch_weights(build_model("resnet20", rng=4), source)
    return all(np.array_equal(array, model.state_dict()[name]) for name, array in other.state_dict().items())


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "_orig_mod.module.", "module._orig_mod.", "module.module.",
                                    "model.", "model.net."])
def test_prefixes_of_wrappers_are_taken_off(prefix, model):
    assert fits(model, {prefix + key: array for key, array in to_torch_state_dict(model).items()})


def test_bfloat16_is_widened(tmp_path, model):
    import json

    state = {name: array.astype(np.float32) for name, array in to_torch_state_dict(model).items()}
    header, data, cut = {}, b"", {}
    for name, array in state.items():
        half = (array.reshape(-1).view(np.uint32) >> 16).astype(np.uint16)
        cut[name] = (half.astype(np.uint32) << 16).view(np.float32).reshape(array.shape)
        header[name] = {"dtype": "BF16", "shape": list(array.shape), "data_offsets": [len(data), len(data) + half.nbytes]}
        data += half.tobytes()
    text = json.dumps(header).encode()
    (tmp_path / "b.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data)
    tensors, _ = load_tensors(tmp_path / "b.safetensors")
    assert all(np.array_equal(tensors[name], array) for name, array in cut.items())
    load_torch_weights(model, tmp_path / "b.safetensors")


@pytest.mark.parametrize("name", ["model_best.pth.tar", "last.ckpt", "weights.bin", "weights"])
@pytest.mark.parametrize("wrapper", ["state_dict", "params"])
def test_the_content_counts_and_not_the_name(name, wrapper, model, tmp_path):
    torch = pytest.importorskip("torch")
    state = {key: torch.from_numpy(array) for key, array in to_torch_state_dict(model).items()}
    torch.save({wrapper: state, "best_acc": np.float64(91.2), "epoch": 3}, tmp_path / name)
    assert fits(model, tmp_path / name)
    card = open_checkpoint(tmp_path / name, "resnet20", mean="0.5,0.5,0.5", std="0.2,0.2,0.2")[1]
    assert card.model == "resnet20"


def test_what_torch_refuses_is_named(tmp_path, model):
    torch = pytest.importorskip("torch")
    torch.save({"state_dict": {}, "args": argparse.Namespace(lr=1)}, tmp_path / "c.pth")
    with pytest.raises(UserError, match=r"a argparse\.Namespace, which is code and is not run: save the state_dict alone"):
        load_torch_weights(model, tmp_path / "c.pth")
    torch.save({"mine": {"a": torch.ones(2)}, "lr": 1}, tmp_path / "d.pth")
    with pytest.raises(UserError, match="under the keys mine, lr: expected a state_dict"):
        load_torch_weights(model, tmp_path / "d.pth")
    endless = {}
    endless["model"] = endless
    with pytest.raises(UserError, match="no weights were found"):
        load_torch_weights(model, endless)
    sparse = {key: torch.from_numpy(array) for key, array in to_torch_state_dict(model).items()}
    with pytest.raises(UserError, match=r"conv1\.weight is a tensor that has no plain numbers"):
        load_torch_weights(model, sparse | {"conv1.weight": torch.empty(16, 3, 3, 3, device="meta")})


WRONG_CARDS = [{"classes": ""}, {"classes": None}, {"classes": ["a"]}, {"num_classes": 10**15}, {"num_classes": True},
               {"model": 3}, {"mean": None}, {"mean": [125, 123, 114]}, {"std": ["a", "b", "c"]}, {"image_size": "32"},
               {"shortcut": []}, {"dataset": 0}]


@pytest.mark.parametrize("wrong", WRONG_CARDS, ids=str)
def test_a_header_with_wrong_values_is_one_sentence(wrong, tmp_path):
    card = ModelCard("resnet20", 2, None, "shapes", ("a", "b"), 32, [0.5] * 3, [0.2] * 3)
    save_tensors(tmp_path / "m.safetensors", card.build(0).state_dict(), card.about() | wrong)
    with pytest.raises(UserError, match="has a damaged header"):
        load_model(tmp_path / "m.safetensors")


# --- settings and statistics ---


CONFIG = """model = "resnet20"
dataset = "shapes"
recipe_name = "onecycle"
epochs = 2
batch_size = 4
[recipe]
schedule = "onecycle"
lr = 0.1
weight_decay = 0.0
"""


@pytest.mark.parametrize(("old", "new"), [
    ('"shapes"', "0"), ("lr = 0.1", 'lr = "0.1"'), ("epochs = 2", "epochs = 2.5"), ("epochs = 2", "epochs = true"),
    ("batch_size = 4", "batch_size = [4]"), ('"onecycle"\nlr', '"square"\nlr'), ("lr = 0.1", "lr = nan"),
    ("[recipe]", "recipe = 3\n[other]"), ("epochs = 2", "epochs = 2\nshortcut = 1"),
    ("epochs = 2", "epochs = " + "[" * 3000)])
def test_a_changed_config_is_one_sentence(old, new, tmp_path):
    (tmp_path / "config.toml").write_text(CONFIG)
    assert read_config(tmp_path).epochs == 2
    (tmp_path / "config.toml").write_text(CONFIG.replace(old, new))
    with pytest.raises(UserError, match="is not the configuration of a run"):
        read_config(tmp_path)


def test_bytes_that_are_no_text(tmp_path):
    (tmp_path / "config.toml").write_bytes(CONFIG.encode() + b"\xff")
    with pytest.raises(UserError, match="is not the configuration"):
        read_config(tmp_path)
    for content in (b"\xff\n", b"[" * 100_000, b'{"epoch": "1", "train_loss": 1, "test_accuracy": 1}',
                    b'{"epoch": 1, "train_loss": null, "test_accuracy": 1}'):
        (tmp_path / "metrics.jsonl").write_bytes(content)
        with pytest.raises(UserError, match=r"metrics\.jsonl"):
            read_metrics(tmp_path / "metrics.jsonl")


def test_statistics_of_bytes_are_refused():
    with pytest.raises(UserError, match=r"are not of pixels in \[0, 1\]: divide them by 255"):
        Standardise((125.3, 123.0, 113.9), (63.0, 62.1, 66.7))
    with pytest.raises(UserError, match="a loader takes a Dataset"):
        Loader([1, 2], 3, mean=[0.5], std=[0.5])


def test_a_home_folder_is_understood(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(UserError, match=f"folder {tmp_path} holds no data set"):
        load_dataset("~")
    monkeypatch.setenv("MINIRES_CACHE", "  ")  # empty: as if it were not there
    with pytest.raises(UserError, match=r"data directory .* is not a folder"):
        load_dataset("cifar10", "~/absent")


def test_a_run_can_be_evaluated_from_another_folder(tmp_path, monkeypatch, capsys):
    write_pictures(tmp_path / "pets", ("a$in$", "b"), 4, 4, (8, 8))

    def call(*arguments):
        with pytest.raises(SystemExit) as stop:
            main(list(map(str, arguments)))
        return stop.value.code or 0

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert call("train", "--dataset", "pets", "--epochs", 1, "--batch-size", 4, "--out", "r") == 0
    assert "\x1b" not in capsys.readouterr().out  # no bar in a log
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert call("eval", "--checkpoint", tmp_path / "r" / "last.safetensors") == 0
    # Names with two dollars are no formula.
    assert call("plot", "confusion", tmp_path / "r" / "last.safetensors", "--out", "c.png") == 0


@pytest.mark.parametrize("size", [0, 5000, "64", True, 1.5])
def test_a_wrong_size_of_pictures_is_not_their_fault(size, tmp_path):
    write_pictures(tmp_path / "pets", "ab", 4, 4, (8, 8))
    with pytest.raises(UserError, match=r"^size must be an int"):
        load_folder(tmp_path / "pets", size)
