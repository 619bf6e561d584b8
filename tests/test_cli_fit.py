"""vae-fast fit, test and sample on small images: what they write, print and repeat."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_helpers import SMALL, command, metrics, write_bars
from PIL import Image

PICTURES = ("samples.png", "reconstructions.png", "curves.png", "latent.png")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def fit(folder: Path, *args: object) -> int:
    return command("fit", "--data", write_bars(folder), *SMALL, *args)


def test_fit_fills_the_run_folder_and_says_where(here: Path, capsys: pytest.CaptureFixture) -> None:
    assert fit(here, "--epochs", 3) == 0
    run = here / "runs" / "vae" / "version_0"
    for name in PICTURES:
        with Image.open(run / name) as picture:
            assert min(picture.size) > 100
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    assert [row["epoch"] for row in metrics(run)] == [0, 1, 2]
    assert all(math.isfinite(value) for row in metrics(run) for value in row.values())
    printed = capsys.readouterr().out
    neg_elbo = json.loads((run / "test.json").read_text())["test_neg_elbo"]
    for said in ("samples.png", "metrics.csv", "best.ckpt", f"{neg_elbo:.2f} nats per image, 10 test images"):
        assert said in printed


def test_training_lowers_the_negative_elbo(here: Path) -> None:
    assert fit(here, "--epochs", 30, "--lr", 0.01) == 0
    rows = metrics(here / "runs/vae/version_0")
    assert rows[-1]["val_neg_elbo"] < 0.8 * rows[0]["val_neg_elbo"]
    assert rows[-1]["train_neg_elbo"] == pytest.approx(
        rows[-1]["train_reconstruction"] + rows[-1]["train_kl"], rel=1e-5
    )


def test_the_same_seed_gives_the_same_run(here: Path) -> None:
    for _ in range(2):
        assert fit(here, "--epochs", 2) == 0
    assert fit(here, "--epochs", 2, "--seed_everything", 1) == 0
    first, again, other = (metrics(here / f"runs/vae/version_{i}") for i in range(3))
    assert first == again
    assert first != other


@pytest.mark.parametrize(
    "options",
    [
        ("--likelihood", "gaussian"),
        ("--network", "mlp", "--widths", "[16]", "--latent_dim", 1),
        ("--trainer.precision", "bf16-mixed"),
        ("--beta", 4, "--latent_dim", 2),
    ],
    ids=lambda options: options[0][2:],
)
def test_options_train_and_are_stored(here: Path, options: tuple) -> None:
    assert fit(here, "--epochs", 2, *options) == 0
    checkpoint = torch.load(here / "runs/vae/version_0/checkpoints/best.ckpt", weights_only=True)
    name = options[0][2:]
    if name in checkpoint["hyper_parameters"]:
        assert str(checkpoint["hyper_parameters"][name]) == str(options[1]) or name == "beta"
    last = metrics(here / "runs/vae/version_0")[-1]
    beta = checkpoint["hyper_parameters"]["beta"]
    assert last["val_loss"] == pytest.approx(last["val_reconstruction"] + beta * last["val_kl"], rel=1e-4)
    assert command("test", "--k", 2) == 0


def test_max_epochs_is_another_name_for_epochs(here: Path) -> None:
    assert fit(here, "--trainer.max_epochs", 1) == 0
    assert len(metrics(here / "runs/vae/version_0")) == 1


def test_every_epoch_is_kept_however_seldom_it_is_validated(here: Path) -> None:
    assert fit(here, "--epochs", 3, "--trainer.check_val_every_n_epoch", 2) == 0
    last = torch.load(here / "runs/vae/version_0/checkpoints/last.ckpt", weights_only=True)
    assert last["global_step"] == 3 * 5
    assert (here / "runs/vae/version_0/samples.png").is_file()


def test_resuming_goes_on_in_a_new_folder_with_all_metrics(here: Path) -> None:
    assert fit(here, "--epochs", 2, "--beta", 2) == 0
    first = here / "runs/vae/version_0"
    before = (first / "metrics.csv").read_bytes(), (first / "checkpoints/last.ckpt").read_bytes()
    assert command("fit", "--ckpt_path", first / "checkpoints/last.ckpt", "--epochs", 3, *SMALL[-2:]) == 0
    second = here / "runs/vae/version_1"
    assert metrics(second)[:2] == metrics(first)
    assert [row["epoch"] for row in metrics(second)] == [0, 1, 2]
    assert before == ((first / "metrics.csv").read_bytes(), (first / "checkpoints/last.ckpt").read_bytes())
    options = torch.load(second / "checkpoints/last.ckpt", weights_only=True)["hyper_parameters"]
    assert (options["beta"], options["latent_dim"], options["epochs"]) == (2, 4, 3)


def test_resuming_goes_on_with_the_learning_rate_given_now(here: Path) -> None:
    assert fit(here, "--epochs", 2) == 0
    path = here / "runs/vae/version_0/checkpoints/last.ckpt"
    before = torch.load(path, weights_only=True)
    assert before["lr_schedulers"][0]["_last_lr"] == [0]
    assert command("fit", "--ckpt_path", path, "--epochs", 4, "--lr", 0.5, *SMALL[-2:]) == 0
    after = torch.load(here / "runs/vae/version_1/checkpoints/last.ckpt", weights_only=True)
    assert after["lr_schedulers"][0]["base_lrs"] == [0.5]
    weights = before["state_dict"].items()
    assert max((after["state_dict"][name] - weight).abs().max() for name, weight in weights) > 0.1


def test_resuming_a_finished_run_draws_its_pictures_again(here: Path, capsys: pytest.CaptureFixture) -> None:
    assert fit(here, "--epochs", 2) == 0
    first, second = (here / f"runs/vae/version_{i}" for i in range(2))
    assert command("fit", "--ckpt_path", first / "checkpoints/last.ckpt", *SMALL[-2:]) == 0
    assert metrics(second) == metrics(first)
    assert (second / "test.json").read_bytes() == (first / "test.json").read_bytes()
    assert all((second / name).is_file() for name in PICTURES)


def test_resuming_keeps_the_best_checkpoint_so_far(here: Path) -> None:
    assert fit(here, "--epochs", 20, "--lr", 0.01) == 0
    first = here / "runs/vae/version_0/checkpoints"
    assert command("fit", "--ckpt_path", first / "last.ckpt", "--epochs", 21, "--beta", 50, *SMALL[-2:]) == 0
    second = here / "runs/vae/version_1/checkpoints"
    assert (second / "best.ckpt").read_bytes() == (first / "best.ckpt").read_bytes()


def test_test_finds_the_newest_run_and_agrees_with_fit(here: Path, capsys: pytest.CaptureFixture) -> None:
    for seed in range(2):
        assert fit(here, "--epochs", 1, "--seed_everything", seed) == 0
    neg_elbo = json.loads((here / "runs/vae/version_1/test.json").read_text())["test_neg_elbo"]
    capsys.readouterr()
    assert command("test", "--k", 3) == 0
    printed = capsys.readouterr().out
    assert "runs/vae/version_1/checkpoints/best.ckpt" in printed
    assert f"{neg_elbo:.2f} nats" in printed
    assert "K = 3" in printed


def test_more_importance_samples_tighten_the_bound(here: Path, capsys: pytest.CaptureFixture) -> None:
    assert fit(here, "--epochs", 20, "--lr", 0.01) == 0
    bounds = []
    for k in (1, 200):
        capsys.readouterr()
        assert command("test", "--k", k) == 0
        line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("log p(x)"))
        bounds.append(float(line.split()[2]))
    assert bounds[0] < bounds[1] < 0


def test_sample_writes_a_grid_or_an_array(here: Path) -> None:
    assert fit(here, "--epochs", 1) == 0
    assert command("sample", "--n", 7, "out.png") == 0
    assert command("sample", "out.npy", "--n", 7, "--ckpt_path", "runs/vae/version_0/checkpoints/last.ckpt") == 0
    with Image.open("out.png") as picture:
        assert picture.mode == "L"
    x = np.load("out.npy")
    assert x.shape == (7, 1, 12, 10) and x.dtype == np.float32
    assert 0 <= x.min() and x.max() <= 1 and len(np.unique(x.reshape(7, -1), axis=0)) == 7


def test_checkpoints_are_only_ever_loaded_as_plain_values(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert fit(here, "--epochs", 1) == 0
    real, asked = torch.load, []

    def spy(*args: object, **kwargs: object) -> object:
        asked.append(kwargs.get("weights_only"))
        return real(*args, **kwargs)

    monkeypatch.setattr(torch, "load", spy)
    last = "runs/vae/version_0/checkpoints/last.ckpt"
    assert command("fit", "--ckpt_path", last, "--epochs", 2, *SMALL[-2:]) == 0
    assert command("test", "--k", 1) == 0
    assert command("sample", "out.npy", "--n", 1) == 0
    assert len(asked) >= 5 and all(weights_only is True for weights_only in asked)
