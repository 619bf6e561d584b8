"""The default run, cut short: handwritten digits, a convolutional Bernoulli VAE."""

import json
from pathlib import Path

import pytest
import torch
from cli_helpers import command, metrics

from vae_fast.cli.data import VAEData, shifted


@pytest.mark.usefixtures("one_thread")
def test_the_defaults_learn_handwritten_digits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert command("fit", "--epochs", 3) == 0
    run = tmp_path / "runs/vae/version_0"
    first, *_, last = metrics(run)
    assert last["val_neg_elbo"] < first["val_neg_elbo"] - 20
    assert json.loads((run / "test.json").read_text())["test_neg_elbo"] < 140
    options = torch.load(run / "checkpoints/best.ckpt", weights_only=True)["hyper_parameters"]
    assert (options["network"], options["likelihood"], options["shape"]) == ("conv", "bernoulli", (1, 28, 28))


def test_training_images_are_shifted_and_the_others_are_not() -> None:
    x = torch.arange(12, dtype=torch.uint8).reshape(1, 1, 3, 4)
    assert shifted(x, 1, 0)[0, 0].tolist() == [[0, 1, 2, 3], [0, 1, 2, 3], [4, 5, 6, 7]]
    assert shifted(x, 0, -1)[0, 0].tolist() == [[1, 2, 3, 3], [5, 6, 7, 7], [9, 10, 11, 11]]
    data = VAEData()
    assert data.hparams.shift == 1
    torch.manual_seed(0)
    batches = data.train_dataloader().dataset
    moved = {tuple((batches.__getitems__([0])[0, 0] > 0).nonzero().sum(0).tolist()) for _ in range(100)}
    assert len(moved) == 9
    assert torch.cat(list(data.val_dataloader())).equal(data.observations.x[data.val_rows])


def test_batches_are_bytes_and_cover_the_split() -> None:
    data = VAEData(batch_size=96, shift=0)
    assert [len(rows) for rows in (data.train_rows, data.val_rows, data.test_rows)] == [4000, 500, 500]
    batches = list(data.train_dataloader())
    assert {x.dtype for x in batches} == {torch.uint8} and batches[0].shape == (96, 1, 28, 28)
    seen, expected = torch.cat(batches).flatten(1), data.observations.x[data.train_rows].flatten(1)
    assert not seen.equal(expected)
    for total in (seen, expected):
        assert total.shape == (4000, 784)
    assert seen.sum(1).sort().values.equal(expected.sum(1).sort().values)
    assert torch.cat(list(data.test_dataloader())).equal(data.observations.x[data.test_rows])
