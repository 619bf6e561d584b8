"""Reading images: every accepted form gives the same tensor, every bad file one clear line."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_helpers import bars
from PIL import Image

from vae_fast.cli.errors import UserError
from vae_fast.cli.reading import read_images, split


def test_the_digits_are_mnist(  # 500 of each digit, grey values in all of 0..255
) -> None:
    images = read_images("digits")
    assert images.x.dtype == torch.uint8 and images.shape == (1, 28, 28)
    assert images.classes == tuple("0123456789")
    assert images.y is not None and images.y.bincount().tolist() == [500] * 10
    assert (images.x.min(), images.x.max()) == (0, 255)


def test_split_is_fixed_disjoint_and_shuffled() -> None:
    train, val, test = split(5000)
    assert [len(part) for part in (train, val, test)] == [4000, 500, 500]
    assert torch.cat([train, val, test]).sort().values.equal(torch.arange(5000))
    assert all(a.equal(b) for a, b in zip(split(5000), (train, val, test), strict=True))
    digits = read_images("digits").y
    assert digits is not None and digits[test].bincount(minlength=10).min() > 25


@pytest.mark.parametrize("form", ["NHW", "NHWC", "NCHW", "ND", "float", "float64", "int64", "fortran", "big-endian"])
def test_array_forms_agree(tmp_path: Path, form: str) -> None:
    x = bars(20, 12, 12)[0]
    forms = {
        "NHW": x,
        "NHWC": x[..., None],
        "NCHW": x[:, None],
        "ND": x.reshape(20, -1),
        "float": (x / 255).astype(np.float32),
        "float64": x / 255,
        "int64": x.astype(np.int64),
        "fortran": np.asfortranarray(x),
        "big-endian": (x / 255).astype(">f4"),
    }
    np.save(tmp_path / "x.npy", forms[form])
    images = read_images(str(tmp_path / "x.npy"))
    assert images.x.dtype == (torch.float32 if forms[form].dtype.kind == "f" else torch.uint8)
    expected = torch.from_numpy(x)[:, None]
    got = images.x if images.x.dtype == torch.uint8 else (images.x * 255).round().to(torch.uint8)
    assert got.equal(expected) and images.y is None


def test_colour_vectors_and_bool(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    colour = rng.integers(0, 256, (12, 9, 8, 3), np.uint8)
    for name, x in {"last": colour, "first": colour.transpose(0, 3, 1, 2)}.items():
        np.save(tmp_path / f"{name}.npy", x)
        assert read_images(str(tmp_path / f"{name}.npy")).x.equal(torch.from_numpy(colour).permute(0, 3, 1, 2))
    np.save(tmp_path / "vector.npy", rng.random((12, 37)))
    assert read_images(str(tmp_path / "vector.npy")).shape == (1, 1, 37)
    np.save(tmp_path / "bool.npy", np.eye(12, dtype=bool)[:, None])
    assert read_images(str(tmp_path / "bool.npy")).x.unique().tolist() == [0, 255]


@pytest.mark.parametrize(("key", "labels"), [("x", "y"), ("images", "labels"), ("data", "targets"), ("arr_0", None)])
def test_npz_keys(tmp_path: Path, key: str, labels: str | None) -> None:
    x, y = bars(20)
    np.savez_compressed(tmp_path / "x.npz", **{key: x}, **({labels: np.array(list("abc"))[y]} if labels else {}))
    images = read_images(str(tmp_path / "x.npz"))
    assert images.x.equal(torch.from_numpy(x)[:, None])
    assert images.classes == (("a", "b", "c") if labels else ())
    assert images.y is None if labels is None else images.y.equal(torch.from_numpy(y))


def test_folder_of_pictures_with_classes(tmp_path: Path) -> None:
    x, y = bars(12)
    for index in range(12):
        folder = tmp_path / "abc"[y[index]] / "deeper"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(x[index]).save(folder / f"{index:02}.png")
    (tmp_path / "notes.txt").write_text("not a picture")
    (tmp_path / ".hidden.png").write_text("not a picture either")
    images = read_images(str(tmp_path))
    order = np.lexsort((np.arange(12), y))
    assert images.x.equal(torch.from_numpy(x[order])[:, None])
    assert images.classes == ("a", "b", "c") and images.y is not None and images.y.tolist() == sorted(y)


def test_folder_without_classes_mixing_grey_and_colour(tmp_path: Path) -> None:
    for index, mode in enumerate(["L", "RGB", "RGBA", "P", "1"]):
        Image.new("RGB", (9, 8), (10 * index, 0, 0)).convert(mode).save(tmp_path / f"{index}.png")
    images = read_images(str(tmp_path))
    assert images.shape == (3, 8, 9) and images.y is None
    assert images.x[2, :, 0, 0].tolist() == [20, 0, 0]


def _bad_arrays() -> dict[str, tuple[np.ndarray, str]]:
    x = np.full((20, 8, 8), 0.5)
    nan, above, below = x.copy(), x.copy(), x.copy()
    nan[3, 4, 5], above[0], below[0] = np.nan, 1.01, -0.1
    return {
        "nan": (nan, "NaN or infinite"),
        "above": (above, "from 0.5 to 1.01; expected floats in [0, 1]"),
        "below": (below, "from -0.1"),
        "integers": (np.full((20, 8, 8), 256), "integers in [0, 255]"),
        "complex": (x.astype(complex), "complex128; expected uint8, or floats"),
        "text": (np.full((20, 8), "a"), "expected uint8, or floats"),
        "five": (x[None, None], "got shape [1, 1, 20, 8, 8]; expected [N, H, W]"),
        "channels": (np.zeros((20, 5, 8, 8)), "expected [N, H, W]"),
        "empty": (x[:0], "got shape [0, 8, 8]"),
        "scalar": (np.array(0.5), "got shape []"),
    }


@pytest.mark.parametrize("name", _bad_arrays())
def test_bad_arrays_are_named(tmp_path: Path, name: str) -> None:
    x, expected = _bad_arrays()[name]
    np.save(tmp_path / f"{name}.npy", x)
    _refused(tmp_path / f"{name}.npy", expected)


class _Touch:
    """Unpickling this leaves a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple:
        return Path.touch, (Path(self.path),)


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    trap = np.array([_Touch(tmp_path / "sprung")] * 12, dtype=object)
    np.save(tmp_path / "x.npy", trap)
    np.savez(tmp_path / "x.npz", x=trap)
    (tmp_path / "plain.npy").write_bytes(pickle.dumps(trap))
    for name in ("x.npy", "x.npz", "plain.npy"):
        _refused(tmp_path / name, "unpickling, which is refused")
    assert not (tmp_path / "sprung").exists()


def test_corrupt_files_are_named(tmp_path: Path) -> None:
    x, y = bars(20)
    np.save(tmp_path / "cut.npy", x)
    np.savez_compressed(tmp_path / "cut.npz", x=x, y=y)
    for path in (tmp_path / "cut.npy", tmp_path / "cut.npz"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        _refused(path, "corrupt or truncated")
    np.savez_compressed(tmp_path / "flipped.npz", x=x)
    content = bytearray((tmp_path / "flipped.npz").read_bytes())
    content[len(content) // 2] ^= 0xFF
    (tmp_path / "flipped.npz").write_bytes(content)
    _refused(tmp_path / "flipped.npz", "corrupt or truncated")
    np.savez(tmp_path / "encrypted.npz", x=x)
    content = bytearray((tmp_path / "encrypted.npz").read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "encrypted.npz").write_bytes(content)
    _refused(tmp_path / "encrypted.npz", "encrypted")
    (tmp_path / "empty.npy").touch()
    _refused(tmp_path / "empty.npy", "corrupt or truncated")
    np.save(tmp_path / "swapped.npy", x)
    (tmp_path / "swapped.npy").rename(tmp_path / "swapped.npz")
    _refused(tmp_path / "swapped.npz", "is not a .npz file")


def test_a_header_that_promises_too_much(tmp_path: Path) -> None:
    header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (1000000000, 100000, 100), }"
    header += b" " * (118 - len(header) - 1) + b"\n"
    (tmp_path / "huge.npy").write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + b"\0" * 64)
    _refused(tmp_path / "huge.npy", "corrupt or truncated")


def test_bad_names_keys_and_labels(tmp_path: Path) -> None:
    x, y = bars(20)
    np.savez(tmp_path / "keys.npz", pictures=x)
    _refused(tmp_path / "keys.npz", "images under one of x, images, data, arr_0; got pictures")
    np.savez(tmp_path / "labels.npz", x=x, y=y[:-1])
    _refused(tmp_path / "labels.npz", "labels of shape [19]; expected one an observation, [20]")
    _refused(tmp_path / "missing.npy", "no such file or folder")
    (tmp_path / "table.csv").write_text("1,2")
    _refused(tmp_path / "table.csv", "expected digits, a .npy, a .npz or an image folder")


def test_bad_folders_are_named(tmp_path: Path) -> None:
    _refused(tmp_path, "no images in this folder")
    for name, size in (("a.png", (8, 8)), ("b.png", (9, 8))):
        Image.new("L", size).save(tmp_path / name)
    _refused(tmp_path, "b.png: 9 x 8 pixels, but a.png has 8 x 8")
    Image.fromarray(np.zeros((8, 8), np.uint16)).save(tmp_path / "b.png")
    _refused(tmp_path, "b.png: more than 8 bits")
    Image.effect_noise((64, 64), 50).save(tmp_path / "b.png")
    whole = (tmp_path / "b.png").read_bytes()
    for content in (b"", b"not a picture", whole[: len(whole) // 2]):
        (tmp_path / "b.png").write_bytes(content)
        _refused(tmp_path, "b.png: corrupt or not an image")


def _refused(path: Path, expected: str) -> None:
    with pytest.raises(UserError) as raised:
        read_images(str(path))
    assert expected in str(raised.value) and path.name in str(raised.value) and "\n" not in str(raised.value)
