"""SIGINT and SIGTERM leave a checkpoint from which the run goes on."""

import os
import re
import signal
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from cli_helpers import SMALL, command, metrics, started, write_bars

from vae_fast.cli.module import VAEModule

LAST = "runs/vae/version_0/checkpoints/last.ckpt"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signalled_process_can_be_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    monkeypatch.chdir(tmp_path)
    process = started(tmp_path, "fit", "--data", write_bars(tmp_path), "--epochs", 100_000, *SMALL)
    assert process.stdout is not None
    while not process.stdout.readline().startswith("epoch 3/"):
        assert process.poll() is None, process.communicate()
    process.send_signal(number)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    name = signal.Signals(number).name
    assert told == f"vae-fast: stopped by {name}; resume with: vae-fast fit --ckpt_path {LAST}\n"
    steps = torch.load(LAST, weights_only=True)["global_step"]
    epochs = len(metrics(tmp_path / "runs/vae/version_0"))
    assert steps >= 3 * 5
    assert command("fit", "--ckpt_path", LAST, "--epochs", epochs + 2, *SMALL[-2:]) == 0
    assert [row["epoch"] for row in metrics(tmp_path / "runs/vae/version_1")] == list(range(epochs + 2))
    resumed = torch.load(LAST.replace("version_0", "version_1"), weights_only=True)
    assert resumed["global_step"] == (epochs + 2) * 5


@pytest.mark.parametrize("batch", [0, 2, 4])
def test_the_batch_under_way_is_finished_and_no_step_is_lost_or_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, batch: int
) -> None:
    monkeypatch.chdir(tmp_path)
    step = VAEModule.training_step

    def signalled(module: VAEModule, x: torch.Tensor, batch_idx: int) -> torch.Tensor:
        if (module.current_epoch, batch_idx) == (1, batch):
            os.kill(os.getpid(), signal.SIGTERM)
        return step(module, x, batch_idx)

    with monkeypatch.context() as patched:
        patched.setattr(VAEModule, "training_step", signalled)
        assert command("fit", "--data", write_bars(tmp_path), "--epochs", 3, *SMALL) == 143
    assert torch.load(LAST, weights_only=True)["global_step"] == 5 + batch + 1
    assert command("fit", "--ckpt_path", LAST, *SMALL[-2:]) == 0
    resumed = torch.load(LAST.replace("version_0", "version_1"), weights_only=True)
    assert resumed["global_step"] == 15
    assert [row["step"] for row in metrics(tmp_path / "runs/vae/version_1")] == [5, 10, 15]
    assert not re.search("[Ww]arning|Traceback", capsys.readouterr().err)


def test_a_signal_before_training_says_that_nothing_was_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(VAEModule, "configure_optimizers", lambda module: os.kill(os.getpid(), signal.SIGINT))
    before = signal.getsignal(signal.SIGINT)
    assert command("fit", "--data", write_bars(tmp_path), *SMALL) == 130
    assert "stopped by SIGINT; nothing was trained yet" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize(("module", "option"), [(np, "--data"), (torch, "--ckpt_path")])
def test_a_signal_while_a_file_is_read_is_not_taken_for_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, module: ModuleType, option: str
) -> None:
    monkeypatch.setattr(module, "load", lambda *_, **__: os.kill(os.getpid(), signal.SIGINT))
    assert command("fit", option, write_bars(tmp_path)) == 130
    assert "stopped by SIGINT; nothing was trained yet" in capsys.readouterr().err


def test_a_signal_after_training_names_the_finished_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("vae_fast.cli.fit.write_pictures", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    assert command("fit", "--data", write_bars(tmp_path), "--epochs", 1, *SMALL) == 143
    assert f"resume with: vae-fast fit --ckpt_path {LAST}" in capsys.readouterr().err
