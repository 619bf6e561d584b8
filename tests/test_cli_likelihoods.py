"""Every likelihood of images in the command: shapes of its parameters, learning, means and draws as pictures."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_helpers import bars, command, metrics, write_bars
from torch import Tensor

from vae_fast.cli.data import VAEData, quantised
from vae_fast.cli.errors import UserError
from vae_fast.cli.heads import COUNTS, LEVELS, data_form
from vae_fast.cli.module import VAEModule
from vae_fast.likelihoods import LIKELIHOODS

IMAGES = [name for name, entry in LIKELIHOODS.items() if entry.public and name not in COUNTS]
SMALL = ("--widths", "[4,8,16]", "--latent_dim", 4, "--batch_size", 16, "--trainer.accelerator", "cpu")


def model_of(likelihood: str, shape: tuple[int, ...], levels: int | None = None) -> VAEModule:
    torch.manual_seed(0)
    return VAEModule(shape, likelihood, 4, widths=[4, 8, 16], components=3, levels=levels)


def pictures(likelihood: str, channels: int, levels: int | None = None) -> Tensor:
    """Bars [N, C, H, W], as the data module gives them to that likelihood."""
    x = torch.from_numpy(bars(60)[0])[:, None].expand(-1, channels, -1, -1).contiguous()
    cut = data_form(likelihood, levels)["quantise"]
    return x if cut is None else quantised(x, cut)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("likelihood", IMAGES)
def test_every_likelihood_of_images_learns(likelihood: str, channels: int) -> None:
    x = pictures(likelihood, channels)
    model = model_of(likelihood, tuple(x.shape[1:]))
    before = model.vae.loss(x).item()
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(40):
        optimizer.zero_grad()
        model.vae.loss(x).backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
        optimizer.step()
    assert model.vae.loss(x).item() < before - 15 * channels


@pytest.mark.parametrize("mean", [True, False])
@pytest.mark.parametrize("likelihood", IMAGES)
def test_means_and_draws_are_pictures(likelihood: str, mean: bool) -> None:
    x = pictures(likelihood, 3)
    model = model_of(likelihood, tuple(x.shape[1:]))
    with torch.no_grad():
        for made in (model.vae.sample(5, mean=mean), model.vae.reconstruct(x[:5], mean=mean)):
            shown = model.pixels(made)
            assert shown.shape == (5, *x.shape[1:]) and shown.dtype == torch.float32
            assert 0 <= shown.min() <= shown.max() <= 1
    assert torch.equal(model.pixels(x).mul(model.highest).round().to(torch.uint8), x)


@pytest.mark.parametrize("likelihood", LEVELS)
def test_draws_lie_on_the_levels(likelihood: str) -> None:
    x = pictures(likelihood, 1, levels=5)
    model = model_of(likelihood, (1, 12, 10), levels=5)
    with torch.no_grad():
        drawn = 4 * model.pixels(model.vae.sample(50, mean=False))
    assert (drawn - drawn.round()).abs().max() < 1e-5 and drawn.round().unique().numel() == 5
    assert x.max() <= 4 and model.vae.loss(x).isfinite()


def test_images_are_cut_into_equal_levels() -> None:
    x = torch.arange(256, dtype=torch.uint8)
    assert quantised(x, 4).bincount().tolist() == [64] * 4
    assert torch.equal(quantised(x, 4), quantised((x.float() + 0.5) / 256, 4))
    assert quantised(torch.ones(1), 16).item() == 15


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"likelihood": "gaussian", "levels": 4}, "--levels 4: is for categorical, discretized_logistic"),
        ({"likelihood": "categorical", "levels": 1}, "--levels 1: expected 2 to 256"),
        ({"likelihood": "categorical", "levels": 257}, "--levels 257: expected 2 to 256"),
        ({"components": 0}, "--components 0: expected a positive number"),
        ({"likelihood": "discretized_logistic_mixture", "shape": (2, 8, 8)}, "images of 2 channels; expected 1 or 3"),
    ],
    ids=str,
)
def test_bad_options_are_named(options: dict, expected: str) -> None:
    with pytest.raises(UserError) as raised:
        VAEModule(**{"shape": (1, 28, 28), **options})
    assert expected in str(raised.value)


@pytest.mark.parametrize("likelihood", ["discretized_logistic_mixture", "categorical"])
def test_a_run_from_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, likelihood: str) -> None:
    monkeypatch.chdir(tmp_path)
    options = ("--levels", 8, *(("--components", 2) if likelihood != "categorical" else ()))
    args = ("--data", write_bars(tmp_path), "--likelihood", likelihood, *options, *SMALL)
    assert command("fit", "--epochs", 4, "--lr", 0.01, *args) == 0
    run = tmp_path / "runs/vae/version_0"
    first, *_, last = metrics(run)
    assert last["val_neg_elbo"] < first["val_neg_elbo"] - 10
    assert {path.name for path in run.glob("*.png")} >= {"samples.png", "reconstructions.png"}
    assert command("test", "--k", 2) == 0
    assert command("sample", "out.npy", "--n", 3, "--mean", "false") == 0
    x = np.load("out.npy")
    assert x.shape == (3, 1, 12, 10) and x.dtype == np.float32
    np.testing.assert_allclose(7 * x, np.rint(7 * x), atol=1e-5)
    assert command("fit", "--ckpt_path", run / "checkpoints/last.ckpt", "--epochs", 5, *SMALL[-2:]) == 0
    assert metrics(tmp_path / "runs/vae/version_1")[:4] == metrics(run)


@pytest.mark.parametrize("likelihood", LEVELS)
def test_floats_are_cut_into_256_levels_too(tmp_path: Path, likelihood: str) -> None:
    x = torch.from_numpy(bars(20)[0])
    np.save(tmp_path / "floats.npy", (x.float() / 255).numpy())
    data = VAEData(str(tmp_path / "floats.npy"), **data_form(likelihood, 256))
    assert torch.equal(data.observations.x, x[:, None])
    assert model_of(likelihood, (1, 12, 10), levels=256).vae.loss(data.observations.x).isfinite()


def test_components_are_a_mixture_s(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    args = ("--data", write_bars(tmp_path), "--run_dir", tmp_path, "--epochs", 1, *SMALL)
    mixture = "discretized_logistic_mixture"
    assert command("fit", "--components", 10, *args) == 2
    assert f"--components 10: is for {mixture}; got --likelihood bernoulli" in capsys.readouterr().err
    assert command("fit", "--likelihood", mixture, *args) == 0
    last = tmp_path / "version_0/checkpoints/last.ckpt"
    assert torch.load(last, weights_only=True)["hyper_parameters"]["components"] == 10
    assert command("fit", "--ckpt_path", last, *args[:4], "--epochs", 2, "--components", 10, *SMALL[-2:]) == 0


@pytest.mark.parametrize("precision", ["64-true", "bf16-mixed"])
def test_floats_of_another_dtype_than_the_networks(tmp_path: Path, precision: str) -> None:
    np.save(tmp_path / "floats.npy", (bars(20)[0] / 255).astype(np.float32))
    args = ("--data", tmp_path / "floats.npy", "--run_dir", tmp_path, "--epochs", 1, *SMALL)
    assert command("fit", "--trainer.precision", precision, *args) == 0
    assert (tmp_path / "version_0/reconstructions.png").is_file()


def test_data_without_levels_stay_as_they_are() -> None:
    assert data_form("gaussian", None)["quantise"] is None
    assert data_form("categorical", None)["quantise"] == 16
    data = VAEData("digits", **data_form("categorical", 2))
    assert data.observations.x.unique().tolist() == [0, 1] and data.shift == 1
    assert math.prod(data.observations.shape) == 784
