"""Reading, refusing and downloading CIFAR-10, on small made-up copies of it, and on real records where present."""

import functools
import hashlib
import http.server
import io
import os
import pickle
import sys
import tarfile
import threading

import numpy as np
import pytest
from paths import DATA

from minires.data import cifar10, load_dataset
from minires.data.augment import channel_statistics
from minires.data.cifar10 import load_cifar10, read_records
from minires.errors import UserError

FILES = ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch")
RECORDS = 20
REAL = DATA / "lossless" / "test_batch_first1000.bin"


@pytest.fixture
def small_files(monkeypatch):
    monkeypatch.setattr(cifar10, "RECORDS_PER_FILE", RECORDS)


@pytest.fixture
def records():
    """The six files' records: (label, 3072 bytes of planes) in rows of 3073 bytes."""
    rng = np.random.default_rng(5)
    files = {}
    for name in FILES:
        files[name] = rng.integers(0, 256, (RECORDS, 3073), dtype=np.uint8)
        files[name][:, 0] = rng.integers(0, 10, RECORDS)
    return files


@pytest.fixture
def binary(tmp_path, records):
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    for name, rows in records.items():
        (folder / f"{name}.bin").write_bytes(rows.tobytes())
    return folder


def python_content(rows):
    return {b"batch_label": b"a batch", b"labels": rows[:, 0].tolist(), b"data": rows[:, 1:].copy(), b"filenames": []}


@pytest.fixture
def python(tmp_path, records):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name, rows in records.items():
        (folder / name).write_bytes(pickle.dumps(python_content(rows), protocol=2))
    return folder


def naive_image(row):
    """One record's picture, pixel by pixel, from the format's description."""
    image = np.empty((32, 32, 3), np.uint8)
    for y in range(32):
        for x in range(32):
            for c in range(3):
                image[y, x, c] = row[1 + 1024 * c + 32 * y + x]
    return image


def test_binary_layout_is_read_in_order(small_files, binary, records):
    train, test = load_cifar10(binary.parent)
    assert train.images.shape == (5 * RECORDS, 32, 32, 3) and test.images.shape == (RECORDS, 32, 32, 3)
    assert train.images.dtype == np.uint8 and train.labels.dtype == np.int64 and train.images.flags.c_contiguous
    assert train.classes[0] == "airplane" and train.classes[9] == "truck"
    np.testing.assert_array_equal(train.images[2 * RECORDS + 3], naive_image(records["data_batch_3"][3]))
    np.testing.assert_array_equal(test.images[7], naive_image(records["test_batch"][7]))
    np.testing.assert_array_equal(train.labels, np.concatenate([records[name][:, 0] for name in FILES[:5]]))
    np.testing.assert_array_equal(test.labels, records["test_batch"][:, 0])


def test_both_layouts_and_both_ways_of_naming_the_folder_agree(small_files, binary, python, tmp_path):
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    python = python.rename(moved / python.name)
    for a, b in zip(load_cifar10(binary), load_cifar10(moved), strict=True):
        np.testing.assert_array_equal(a.images, b.images)
        np.testing.assert_array_equal(a.labels, b.labels)
    np.testing.assert_array_equal(load_cifar10(python)[1].images, load_cifar10(binary.parent)[1].images)
    np.testing.assert_array_equal(load_dataset("cifar10", binary)[0].labels, load_dataset(str(moved))[0].labels)


def test_python_layout_as_python_2_wrote_it(small_files, python, records):
    """The published files: byte strings, NumPy 1's module name, dtype('u1', 0, 1), the array in Fortran order."""
    rows = records["test_batch"]
    planes = np.asfortranarray(rows[:, 1:])
    written = pickle.dumps({b"labels": rows[:, 0].tolist(), b"data": planes}, protocol=2)
    assert b"numpy._core.multiarray" in written or b"numpy.core.multiarray" in written
    (python / "test_batch").write_bytes(written.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    np.testing.assert_array_equal(load_cifar10(python)[1].images[4], naive_image(rows[4]))

    def short(text):
        return b"U" + bytes([len(text)]) + text

    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85" + short(b"b") + b"tR"
        + b"(K\x01M\x14\x00M\x00\x0c\x86cnumpy\ndtype\n(" + short(b"u1") + b"K\x00K\x01tR"
        + b"(K\x03" + short(b"|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
        + b"T" + (RECORDS * 3072).to_bytes(4, "little") + rows[:, 1:].tobytes() + b"tb"
    )
    labels = b"(" + b"".join(b"K" + bytes([label]) for label in rows[:, 0]) + b"l"
    (python / "test_batch").write_bytes(
        b"\x80\x02}(" + short(b"data") + array + short(b"labels") + labels + b"u."
    )
    np.testing.assert_array_equal(load_cifar10(python)[1].images[4], naive_image(rows[4]))
    np.testing.assert_array_equal(load_cifar10(python)[1].labels, rows[:, 0])


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_malicious_pickle_is_refused_and_not_run(small_files, python, records, tmp_path, protocol):
    harm = tmp_path / "harm"
    content = python_content(records["data_batch_2"]) | {b"filenames": Payload(harm)}
    (python / "data_batch_2").write_bytes(pickle.dumps(content, protocol=protocol))
    pickle.loads(pickle.dumps(Payload(harm)))  # the payload does work where it is run
    harm.rmdir()
    with pytest.raises(UserError, match=r"data_batch_2.*asks for \w+\.mkdir"):
        load_cifar10(python)
    assert not harm.exists()


@pytest.mark.parametrize(
    "code, reason",
    [
        (b"cbuiltins\neval\n(S'1'\ntR.", "builtins.eval"),
        (b"cnumpy\nload\n(S'x'\ntR.", "numpy.load"),
        (b"c_codecs\ndecode\n(S'x'\nS'zip'\ntR.", "_codecs.decode"),
        (b"c_codecs\nencode\n(S'x'\nS'zip'\ntR.", "encoding zip"),
        (b"cnumpy\ndtype\n(S'O'\ntR.", "type O"),
        (pickle.dumps({b"data": np.zeros(3)}, protocol=2), "type f8"),
    ],
)
def test_only_what_byte_arrays_need_is_allowed(small_files, python, code, reason):
    (python / "data_batch_1").write_bytes(code)
    with pytest.raises(UserError, match=reason):
        load_cifar10(python)


def test_an_array_whose_bytes_do_not_fill_it_is_refused(small_files, python, records):
    content = pickle.dumps(python_content(records["test_batch"]), protocol=2)
    longer = content.replace(b"K\x14M\x00\x0c", b"K\x15M\x00\x0c")  # 21 rows claimed, 20 there
    assert longer != content
    (python / "test_batch").write_bytes(longer)
    with pytest.raises(UserError, match=r"test_batch.*\(21, 3072\)"):
        load_cifar10(python)


def test_python_layout_damage_names_file_and_sizes(small_files, python, records):
    path = python / "data_batch_4"
    whole = path.read_bytes()
    rows = records["data_batch_4"]
    for length in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match=rf"data_batch_4 \({length:,} bytes\) is truncated.*about 61,460 bytes"):
            load_cifar10(python)
    damaged = {
        r"data \(19, 3072\), expected \(20, 3072\)": python_content(rows[:-1]),
        r"labels of 19 items.*20 integers": python_content(rows) | {b"labels": [1] * 19},
        r"labels of 20 items.*20 integers": python_content(rows) | {b"labels": [1] * 19 + ["1"]},
        r"label 10, expected 0 to 9": python_content(rows) | {b"labels": [1] * 19 + [10]},
        r"label -1, expected 0 to 9": python_content(rows) | {b"labels": [1] * 19 + [-1]},
        r"data a list": python_content(rows) | {b"data": [1]},
        r"no data and labels": [1, 2],
    }
    for message, content in damaged.items():
        path.write_bytes(pickle.dumps(content, protocol=2))
        with pytest.raises(UserError, match=f"data_batch_4.*{message}"):
            load_cifar10(python)


@pytest.mark.parametrize("change", [-3073, -1, 1, 3073])
def test_a_resized_binary_file_names_file_and_sizes(small_files, binary, change):
    path, expected = binary / "data_batch_5.bin", RECORDS * 3073
    path.write_bytes((path.read_bytes() + bytes(3073))[: expected + change])
    with pytest.raises(UserError, match=rf"data_batch_5.bin has {expected + change:,} bytes, expected {expected:,} "):
        load_cifar10(binary)


def test_the_official_files_hold_ten_thousand_records(binary):
    with pytest.raises(UserError, match="has 61,460 bytes, expected 30,730,000"):
        load_cifar10(binary)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(small_files, binary, python, name):
    (binary / f"{name}.bin").unlink()
    (python / name).unlink()
    with pytest.raises(UserError, match=f"{name}.bin is missing"):
        load_cifar10(binary)
    with pytest.raises(UserError, match=f"{name} is missing"):
        load_cifar10(python)


def test_a_wrong_label_is_named(small_files, binary):
    path = binary / "test_batch.bin"
    data = bytearray(path.read_bytes())
    data[3073 * 6] = 10
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"test_batch\.bin: record 6 has label 10, expected 0 to 9"):
        load_cifar10(binary)


def test_a_wrong_folder_says_what_was_expected(tmp_path):
    with pytest.raises(UserError, match="holds no CIFAR-10: expected it to hold cifar-10-batches-bin/ or"):
        load_cifar10(tmp_path)
    with pytest.raises(UserError, match="nowhere is not a folder"):
        load_cifar10(tmp_path / "nowhere")


def test_read_records_takes_any_whole_number_of_records(tmp_path, records):
    path = tmp_path / "some.bin"
    path.write_bytes(records["test_batch"][:3].tobytes())
    some = read_records(path)
    assert len(some) == 3
    np.testing.assert_array_equal(some.images[2], naive_image(records["test_batch"][2]))
    for size in (0, 3072, 3074):
        path.write_bytes(bytes(size))
        with pytest.raises(UserError, match=f"some.bin has {size:,} bytes, expected a multiple of 3,073"):
            read_records(path)
    with pytest.raises(UserError, match=r"none\.bin is missing"):
        read_records(tmp_path / "none.bin")
    with pytest.raises(UserError, match="cannot be read"):
        read_records(tmp_path)


@pytest.mark.skipif(not REAL.exists(), reason=f"the real records are not at {REAL}")
def test_real_records():
    test = read_records(REAL)
    assert len(test) == 1000
    assert test.labels[:10].tolist() == [3, 8, 8, 0, 6, 6, 1, 6, 3, 1]  # cat, ship, ship, airplane, frog, ...
    assert test.images[0, 0, 0].tolist() == [158, 112, 49]  # the published first pixel of the first test image
    mean, std = channel_statistics(test.images)
    np.testing.assert_allclose(mean, cifar10.CIFAR10_MEAN, atol=0.01)
    np.testing.assert_allclose(std, cifar10.CIFAR10_STD, atol=0.01)


@pytest.fixture
def site(tmp_path, binary, monkeypatch):
    """A server with an archive of the made-up files, taken for the real one; yields the list of requests it got."""
    folder, requests = tmp_path / "site", []
    folder.mkdir()
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        tar.add(binary, binary.name)
    (folder / "cifar-10-binary.tar.gz").write_bytes(archive.getvalue())

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_arguments):
            requests.append(self.path)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=folder)) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        monkeypatch.setattr(cifar10, "URL", f"http://127.0.0.1:{server.server_port}/cifar-10-binary.tar.gz")
        monkeypatch.setattr(cifar10, "MD5", hashlib.md5(archive.getvalue()).hexdigest())
        monkeypatch.setenv("MINIRES_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        yield requests
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("progress", [True, False])
def test_download_verifies_unpacks_and_is_done_once(small_files, site, binary, tmp_path, capsys, progress):
    train, _ = load_cifar10(progress=progress)
    np.testing.assert_array_equal(train.images, load_cifar10(binary)[0].images)
    assert capsys.readouterr().err.count(f"downloading {cifar10.URL}") == progress
    load_cifar10(progress=progress)
    assert len(site) == 1
    assert sorted(p.name for p in (tmp_path / "cache").iterdir()) == ["cifar-10-batches-bin", "cifar-10-binary.tar.gz"]

    damaged = tmp_path / "cache/cifar-10-batches-bin/data_batch_3.bin"
    damaged.write_bytes(b"half")
    np.testing.assert_array_equal(load_cifar10(progress=progress)[0].images, train.images)  # unpacked again
    assert len(site) == 1


def test_on_a_terminal_a_bar_shows_size_and_time(small_files, site, monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes standard error for a terminal
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    load_cifar10()
    shown = capsys.readouterr().err
    assert "CIFAR-10" in shown and "kB" in shown and "0:00:00" in shown and "downloading" not in shown


def test_a_wrong_checksum_is_refused_and_leaves_nothing(small_files, site, monkeypatch, tmp_path):
    monkeypatch.setattr(cifar10, "MD5", "0" * 32)
    with pytest.raises(UserError, match="md5 is not 000"):
        load_cifar10(progress=False)
    assert not list((tmp_path / "cache").iterdir())


def test_without_network_the_message_names_the_address_and_the_way_out(monkeypatch, tmp_path):
    monkeypatch.setenv("MINIRES_CACHE", str(tmp_path))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(cifar10, "URL", "http://127.0.0.1:9/cifar-10-binary.tar.gz")  # the discard port: nobody listens
    with pytest.raises(UserError, match=r"downloaded from http://127.0.0.1:9/cifar\S+ .*--data-dir") as caught:
        load_cifar10(progress=True)
    assert "\n" not in str(caught.value)
