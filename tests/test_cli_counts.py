"""vae-fast on counts: which files are read and refused, what a run on simulated cells learns, writes and resumes."""

import json
import sys
import types
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse
import torch
from cli_helpers import command, metrics
from PIL import Image
from sklearn.datasets import load_digits

from vae_fast.cli.counts import read_counts
from vae_fast.cli.data import VAEData
from vae_fast.cli.errors import UserError
from vae_fast.cli.heads import COUNTS
from vae_fast.cli.module import VAEModule
from vae_fast.cli.plots import counts as draw_counts
from vae_fast.cli.plots import predicted_counts

ZINB = "zero_inflated_negative_binomial"
SMALL = ("--widths", "[16]", "--latent_dim", 4, "--batch_size", 32, "--trainer.accelerator", "cpu")


def cells(count: int = 300, genes: int = 40, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Counts [N, D] and the cells' types [N], by the process that the model assumes (Lopez et al. 2018).

    A type has proportions softmax(2 n), n normal; a cell's library is log-normal around 400; each count is Poisson of a
    Gamma variable of shape theta = 2 around proportion times library, and is lost, to 0, with probability 0.2.
    """
    rng = np.random.default_rng(seed)
    y = np.arange(count) % 3
    logits = 2 * rng.standard_normal((3, genes))
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    library = np.exp(np.log(400) + 0.3 * rng.standard_normal((count, 1)))
    x = rng.poisson(rng.gamma(2.0, library * shares[y] / 2.0))
    return np.where(rng.random(x.shape) < 0.2, 0, x), y


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def refused(capsys: pytest.CaptureFixture) -> Callable[..., None]:
    def check(expected: str, *args: object) -> None:
        capsys.readouterr()
        assert command(*args) == 2
        told = capsys.readouterr().err
        assert told.startswith("vae-fast: error: ") and told.count("\n") == 1, told
        assert expected in told

    return check


@pytest.mark.parametrize(
    ("highest", "dtype"), [(255, torch.uint8), (256, torch.uint16), (65535, torch.uint16), (65536, torch.int32)]
)
@pytest.mark.parametrize("stored", [np.int64, np.float32], ids=lambda d: d.__name__)
def test_counts_are_kept_as_small_as_they_are(
    here: Path, highest: int, dtype: torch.dtype, stored: type[np.number]
) -> None:
    x = np.array([[0, 1, highest], [2, 0, 0]], stored)
    np.save("counts.npy", x)
    read = read_counts("counts.npy")
    assert read.x.dtype == dtype and read.y is None
    assert read.x.tolist() == x.tolist()


@pytest.mark.parametrize("kind", ["csr", "csc", "coo"])
def test_sparse_matrices_of_scipy(here: Path, kind: str) -> None:
    x, _ = cells(20, 7)
    scipy.sparse.save_npz("counts.npz", scipy.sparse.csr_matrix(x).asformat(kind))
    assert read_counts("counts.npz").x.tolist() == x.tolist()


def test_entries_that_stand_twice_are_added(here: Path) -> None:
    twice = scipy.sparse.coo_matrix(([200, 100, 1], ([0, 0, 1], [2, 2, 0])), (2, 3))
    scipy.sparse.save_npz("counts.npz", twice)
    assert read_counts("counts.npz").x.tolist() == twice.toarray().tolist()


def test_classes_of_counts(here: Path) -> None:
    x, y = cells(20)
    np.savez("counts.npz", counts=x, labels=np.array(["b", "c", "a"])[y], batch=y)
    assert read_counts("counts.npz").classes == ("a", "b", "c")
    assert read_counts("counts.npz", labels="batch").y.tolist() == y.tolist()


BAD = {
    "negative": (np.array([[1, -2]]), "values from -2 to 1; expected counts"),
    "nan": (np.array([[1.0, np.nan]]), "holds NaN or infinite values"),
    "infinite": (np.array([[1.0, np.inf]]), "holds NaN or infinite values"),
    "fractions": (np.array([[1.0, 0.25]]), "holds numbers that are no counts, 0.25 among them"),
    "rows": (np.zeros((0, 4)), "got shape [0, 4]"),
    "columns": (np.zeros((4, 0)), "got shape [4, 0]"),
    "row": (np.arange(4), "got shape [4]"),
    "images": (np.zeros((4, 5, 5)), "got shape [4, 5, 5]"),
    "text": (np.array([["1", "2"]]), "got values of type <U1"),
    "large": (np.array([[2**31]]), "values up to 2.14748e+09; expected counts below 2^31"),
    "objects": (np.array([[1, 2]], object), "would need unpickling, which is refused"),
    "few": (np.ones((9, 3), int), "too few observations: 9; expected at least 10"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_matrices(refused: Callable[..., None], here: Path, name: str) -> None:
    x, expected = BAD[name]
    np.save("bad.npy", x)
    refused(expected, "fit", "--likelihood", ZINB, "--data", "bad.npy")
    assert not (here / "runs").exists()


def test_bad_files_of_counts(refused: Callable[..., None], here: Path) -> None:
    fit = ("fit", "--likelihood", "negative_binomial", "--data")
    refused("--data digits, the default, are images; --likelihood is one of counts: expected a matrix", *fit[:3])
    refused("--data x.csv: expected a matrix of counts [N, D]: a .npy, a .npz or an AnnData .h5ad", *fit, "x.csv")
    refused("--data nosuch.npz: no such file", *fit, "nosuch.npz")
    np.savez("keys.npz", y=np.ones(4))
    refused("expected counts under one of x, counts, X, data, arr_0; got y", *fit, "keys.npz")
    np.save("whole.npy", np.ones((20, 3), int))
    refused("--network conv: is for images", *fit, "whole.npy", "--network", "conv")
    np.savez("labels.npz", x=np.ones((20, 3), int), y=np.ones(19))
    refused("labels of shape [19]; expected one an observation, [20]", *fit, "labels.npz")
    refused("--labels nosuch: labels.npz has x, y", *fit, "labels.npz", "--labels", "nosuch")
    refused("--layer raw: only a .h5ad file has layers", *fit, "labels.npz", "--layer", "raw")
    refused("--shift 1: is for images", *fit, "labels.npz", "--shift", 1)
    (here / "cut.npz").write_bytes((here / "labels.npz").read_bytes()[:100])
    refused("cut.npz: is corrupt or truncated", *fit, "cut.npz")
    refused("--layer raw: is for counts", "fit", "--layer", "raw")
    refused("--data x.h5ad: no such file", "fit", "--data", "x.h5ad")
    (here / "x.h5ad").touch()
    refused("holds counts: choose --likelihood zero_inflated_negative_binomial", "fit", "--data", "x.h5ad")


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"indices": np.array([0, 9])}, "its indices do not fit its shape [2, 3]"),
        ({"indices": np.array([0, -1])}, "its indices do not fit"),
        ({"indices": np.array([0])}, "its indices do not fit"),
        ({"indptr": np.array([0, 3, 2])}, "its indices do not fit"),
        ({"indptr": np.array([0, 2])}, "its indices do not fit"),
        ({"data": np.array([1.0, 0.5])}, "no counts, 0.5 among them"),
        ({"data": np.array([1, -1])}, "values from -1 to 1"),
        ({"shape": np.array([2, 0])}, "got shape [2, 0]"),
        ({"shape": np.array([2])}, "got shape [2]"),
        ({"format": np.array("bsr")}, "a sparse matrix of format bsr; expected csr, csc or coo"),
        ({"format": np.array("coo")}, "no row in it; expected a matrix saved by scipy.sparse.save_npz"),
    ],
    ids=str,
)
def test_damaged_sparse_matrices(here: Path, changed: dict[str, np.ndarray], expected: str) -> None:
    whole = {"data": np.array([1, 2]), "indices": np.array([0, 2]), "indptr": np.array([0, 1, 2])}
    whole |= {"shape": np.array([2, 3]), "format": np.array(b"csr")}
    np.savez("bad.npz", **{**whole, **changed})
    with pytest.raises(UserError) as raised:
        read_counts("bad.npz")
    assert expected in str(raised.value)


def test_h5ad_without_anndata_names_the_extra(
    refused: Callable[..., None], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "cells.h5ad").touch()
    monkeypatch.setitem(sys.modules, "anndata", None)
    expected = "cells.h5ad: reading .h5ad needs anndata: pip install 'vae_fast[anndata]'"
    refused(expected, "fit", "--likelihood", ZINB, "--data", "cells.h5ad")


class _Column(list):
    def astype(self, kind: type) -> np.ndarray:
        return np.array(self).astype(kind)


class _Frame(dict):
    columns = property(dict.keys)


class _Table:
    """What is read of an AnnData object."""

    def __init__(self, x: np.ndarray, y: np.ndarray) -> None:
        self.X, self.layers = np.log1p(x), {"counts": scipy.sparse.csr_matrix(x)}
        self.raw = types.SimpleNamespace(X=x)
        self.obs = _Frame(batch=_Column(y % 2), cell_type=_Column(y))


def test_layers_and_columns_of_h5ad(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = cells(20)
    (here / "cells.h5ad").touch()
    module = types.ModuleType("anndata")
    module.read_h5ad = lambda path: _Table(x, y)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "anndata", module)
    for layer in ("counts", "raw"):
        read = read_counts("cells.h5ad", layer)
        assert read.x.tolist() == x.tolist() and read.y.tolist() == y.tolist()
    assert read_counts("cells.h5ad", "raw", "batch").y.tolist() == (y % 2).tolist()
    for layer, labels, expected in (
        (None, None, "numbers that are no counts"),
        ("nosuch", None, "has no layer nosuch; --layer may be one of raw, counts"),
        ("raw", "nosuch", "--labels nosuch: the observations of cells.h5ad have batch, cell_type"),
    ):
        with pytest.raises(UserError, match=expected):
            read_counts("cells.h5ad", layer, labels)


def test_h5ad_as_anndata_writes_it(here: Path) -> None:
    import anndata

    x, y = cells(20)
    table = anndata.AnnData(scipy.sparse.csr_matrix(x.astype(np.float32)))
    table.layers["counts"] = x
    table.obs["cell_type"] = y
    table.write_h5ad("cells.h5ad")
    for layer in (None, "counts"):
        read = read_counts("cells.h5ad", layer)
        assert read.x.tolist() == x.tolist() and read.y.tolist() == y.tolist()
    (here / "bad.h5ad").write_bytes((here / "cells.h5ad").read_bytes()[:1000])
    with pytest.raises(UserError, match=r"bad\.h5ad: anndata can't read it"):
        read_counts("bad.h5ad")


def test_classes_where_there_are_none(refused: Callable[..., None], here: Path) -> None:
    x, _ = cells(20)
    np.save("cells.npy", x)
    scipy.sparse.save_npz("sparse.npz", scipy.sparse.csr_matrix(x))
    fit = ("fit", "--likelihood", ZINB, "--labels", "kind", "--data")
    refused("--labels kind: only .npz and .h5ad files have classes, got cells.npy", *fit, "cells.npy")
    refused("--labels kind: SciPy's sparse .npz files have no classes, got sparse.npz", *fit, "sparse.npz")


def test_counts_without_their_likelihood(refused: Callable[..., None], here: Path) -> None:
    hint = "; for counts choose their likelihood, --likelihood zero_inflated_negative_binomial, say"
    x = np.arange(240).reshape(20, 12)
    np.savez("small.npz", x=x)
    refused(f"use --network mlp{hint}", "fit", "--data", "small.npz")
    np.save("large.npy", 2 * x)
    refused(f"or integers in [0, 255]{hint}", "fit", "--data", "large.npy")
    scipy.sparse.save_npz("sparse.npz", scipy.sparse.csr_matrix(x))
    refused(hint, "fit", "--data", "sparse.npz")
    np.save("images.npy", np.full((20, 9, 9), 300))
    refused("or integers in [0, 255]\n", "fit", "--data", "images.npy")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of eight epochs on simulated cells."""
    folder = tmp_path_factory.mktemp("counts")
    x, y = cells()
    np.savez(folder / "cells.npz", x=x, y=np.array(["b", "t", "nk"])[y])
    args = ("--data", folder / "cells.npz", "--labels", "y", "--run_dir", folder / "runs/vae", *SMALL)
    assert command("fit", "--likelihood", ZINB, "--epochs", 8, "--lr", 0.01, *args) == 0
    return folder / "runs/vae/version_0"


def test_training_improves_the_evidence_of_cells(run: Path) -> None:
    first, *_, last = metrics(run)
    assert last["val_neg_elbo"] < first["val_neg_elbo"] - 20
    assert last["val_neg_elbo"] == pytest.approx(last["val_reconstruction"] + last["val_kl"], rel=1e-5)
    assert json.loads((run / "test.json").read_text())["test_neg_elbo"] < first["val_neg_elbo"] - 20
    options = torch.load(run / "checkpoints/best.ckpt", weights_only=True)["hyper_parameters"]
    assert (options["network"], options["shape"], options["widths"]) == ("mlp", (40,), [16])


def test_pictures_of_a_run_on_counts(run: Path) -> None:
    assert {path.name for path in run.glob("*.png")} == {"counts.png", "curves.png", "latent.png"}
    for path in run.glob("*.png"):
        with Image.open(path) as picture:
            assert min(picture.size) > 100


def test_test_and_sample_of_counts(
    run: Path, here: Path, capsys: pytest.CaptureFixture, refused: Callable[..., None]
) -> None:
    best = ("--ckpt_path", run / "checkpoints/best.ckpt")
    capsys.readouterr()
    assert command("test", *best, "--k", 5) == 0
    printed = capsys.readouterr().out
    neg_elbo = json.loads((run / "test.json").read_text())["test_neg_elbo"]
    assert f"{neg_elbo:.2f} nats per observation, 30 test observations of" in printed and "K = 5" in printed
    assert command("sample", "out.npy", "--n", 200, *best) == 0
    x = np.load("out.npy")
    assert x.shape == (200, 40) and x.dtype == np.int32 and x.min() == 0
    data, _ = cells()
    assert x.sum(1).mean() == pytest.approx(data.sum(1).mean(), rel=0.3)
    assert command("sample", "out.npy", "--n", 3, "--mean", "true", *best) == 0
    mean = np.load("out.npy")
    assert mean.dtype == np.float32 and (mean > 0).all()
    refused("out.png: the model is one of counts; expected a name ending in .npy", "sample", "out.png", *best)
    np.save("more.npy", cells(50, seed=1)[0])
    assert command("test", *best, "--data", "more.npy", "--k", 0) == 0
    assert "5 test observations of more.npy" in capsys.readouterr().out
    np.savez("named.npz", x=cells(50, seed=1)[0], kind=np.arange(50) % 2)
    assert command("test", *best, "--data", "named.npz", "--labels", "kind", "--k", 0) == 0
    refused("--labels nosuch: named.npz has x, kind", "test", *best, "--data", "named.npz", "--labels", "nosuch")
    np.save("other.npy", data[:, :39])
    refused("--data other.npy: 39 columns; the checkpoint was trained on 40", "test", *best, "--data", "other.npy")


def test_resuming_a_run_on_counts(run: Path, here: Path) -> None:
    args = ("--ckpt_path", run / "checkpoints/last.ckpt", "--epochs", 9, "--run_dir", here, *SMALL[-2:])
    assert command("fit", *args) == 0
    again = metrics(here / "version_0")
    assert again[:8] == metrics(run) and len(again) == 9


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("likelihood", COUNTS)
def test_every_likelihood_of_counts_learns_real_counts(here: Path, likelihood: str) -> None:
    """scikit-learn's digits: how many pixels are on in each of 64 blocks of 4 x 4."""
    digits = load_digits()
    np.savez("blocks.npz", x=digits.data.astype(np.uint8), y=digits.target)
    data = VAEData("blocks.npz", counts=True)
    model = VAEModule(data.observations.shape, likelihood, 8, library=data.library)
    train, val = data.observations.x[data.train_rows], data.observations.x[data.val_rows]
    before = model.vae.loss(val).item()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(4):
        for x in train.split(64):
            optimizer.zero_grad()
            model.vae.loss(x).backward()
            assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
            optimizer.step()
    with torch.no_grad():
        assert model.vae.loss(val).item() < before - 25
        columns = predicted_counts(model.vae, val.split(100))
    seen = columns["mean"] > 1
    assert columns["predicted mean"][seen] == pytest.approx(columns["mean"][seen].numpy(), rel=0.5)
    assert (columns["predicted zeros"] - columns["zeros"]).abs().mean() < 0.15


def test_predicted_counts_of_a_model_that_is_right() -> None:
    """A Poisson model whose proportions are the data's: means agree, and zeros are those of Poisson variables."""
    torch.manual_seed(0)
    rates = torch.tensor([0.5, 1.0, 4.0])
    x = torch.poisson(rates.expand(20000, 3)).to(torch.uint8)
    model = VAEModule((3,), "poisson", 2, widths=[4])
    with torch.no_grad():
        for parameter in model.vae.decoder.parameters():
            parameter.zero_()
        model.vae.decoder.layers[-1].bias.copy_(rates.log())
        columns = predicted_counts(model.vae, x.split(5000))
    assert columns["predicted mean"] == pytest.approx(columns["mean"].numpy(), rel=0.02)
    library = x.float().sum(1, keepdim=True)
    expected = torch.exp(-library * rates / rates.sum()).mean(0)
    assert columns["predicted zeros"] == pytest.approx(expected.numpy(), rel=1e-4)
    axes = draw_counts(columns).axes
    assert [ax.get_title() for ax in axes] == ["Mean count of each column", "Fraction of zeros of each column"]
    assert axes[0].get_xlabel() == "observed" and axes[1].get_ylabel() == "predicted"


@pytest.mark.parametrize("mean", [[0.0, 2.0], [0.0, 0.0]], ids=["one column", "all"])
def test_columns_without_counts_are_drawn(mean: list[float]) -> None:
    columns = {name: torch.tensor(mean) for name in ("mean", "predicted mean", "zeros", "predicted zeros")}
    figure = draw_counts(columns)
    figure.canvas.draw()
    assert figure.axes[0].get_xscale() == ("log" if any(mean) else "linear")
