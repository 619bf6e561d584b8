"""What a user does wrong costs one clear line on stderr and exit code 2, and never a file."""

import errno
import importlib
import io
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_helpers import SMALL, bars, command, package_path, write_bars

import vae_fast
from vae_fast.cli import errors

LAST = "runs/vae/version_0/checkpoints/last.ckpt"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def refused(here: Path, capsys: pytest.CaptureFixture) -> Callable[..., None]:
    def check(expected: str, *args: object) -> None:
        capsys.readouterr()
        assert command(*args) == 2
        told = capsys.readouterr().err
        assert told.startswith("vae-fast: error: ") and told.count("\n") == 1, told
        assert expected in told

    return check


@pytest.fixture(scope="module")
def a_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    assert command("fit", "--data", write_bars(folder), "--epochs", 1, "--run_dir", folder / "runs/vae", *SMALL) == 0
    return folder


@pytest.fixture
def trained(here: Path, a_run: Path) -> Path:
    shutil.copytree(a_run, here, dirs_exist_ok=True)
    return here / LAST


TWO = ("--trainer.devices", 2, "--trainer.accelerator", "cpu")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--latent_dim", "x"), "--latent_dim: Expected a <class 'int'>"),
        (("--likelihood", "nosuch"), "--likelihood"),
        (("--nosuch", 1), "--nosuch 1"),
        (("--epochs", 0), "--epochs 0: expected a positive number"),
        (("--batch_size", 0), "--batch_size 0"),
        (("--data", "nosuch.npy"), "--data nosuch.npy: no such file"),
        (("--config", "nosuch.yaml"), "nosuch.yaml"),
        (("--ckpt_path", "nosuch.ckpt"), "nosuch.ckpt: no such file"),
        (("--trainer.accelerator", "tpu"), "torch_xla"),
        (("--trainer.strategy", "nosuch"), "invalid strategy name"),
        (("--trainer.devices", "x"), "should be an int"),
        (("--seed_everything", -1), "-1 is not in bounds"),
        (("--widths", "[]"), "--widths []: expected positive numbers"),
        (("--widths", "[4,0]"), "--widths [4, 0]: expected positive numbers"),
        (("--run_dir", "/proc/nosuch"), "/proc/nosuch"),
        (("--trainer.enable_checkpointing", "false"), "--trainer.enable_checkpointing False: vae-fast fit tests"),
        (("--trainer.barebones", "true"), "--trainer.barebones True: vae-fast fit tests and draws from checkpoints"),
        (("--trainer.strategy", "ddp_spawn_find_unused_parameters_true", *TWO), "--trainer.strategy: one that forks"),
        (("--trainer.strategy", "ddp_fork", *TWO), "--trainer.strategy: one that forks or spawns"),
    ],
)
def test_bad_options(refused: Callable[..., None], options: tuple, expected: str) -> None:
    refused(expected, "fit", *options)


def test_bad_data(refused: Callable[..., None], here: Path) -> None:
    np.save("few.npy", bars(9)[0])
    refused("--data few.npy: too few images: 9; expected at least 10", "fit", "--data", "few.npy")
    np.save("small.npy", bars(20, 7, 7)[0])
    refused("use --network mlp", "fit", "--data", "small.npy")
    (here / "empty").mkdir()
    refused("empty: no images in this folder", "fit", "--data", "empty")
    assert not (here / "runs").exists()


def test_no_checkpoint_and_bad_outputs(refused: Callable[..., None]) -> None:
    refused("no checkpoint in runs/vae: train one with vae-fast fit", "test")
    refused("no checkpoint in runs/vae", "sample", "out.png")
    refused("out.jpg: expected a name ending in .png or .npy", "sample", "out.jpg")
    refused("--n 0: expected at least 1", "sample", "out.png", "--n", 0)
    refused("required: out", "sample")
    refused("--k -1", "test", "--k", -1)


def test_bad_options_of_test_and_sample(refused: Callable[..., None], trained: Path) -> None:
    refused("Precision 'nosuch' is invalid", "test", "--precision", "nosuch")
    refused("accelerator='nosuch'", "test", "--accelerator", "nosuch")
    refused("-1 is not in bounds", "test", "--seed", -1)
    refused("", "sample", "out.npy", "--seed", 2**70)


def test_corrupt_and_foreign_checkpoints(refused: Callable[..., None], trained: Path) -> None:
    whole = trained.read_bytes()
    bad = trained.with_name("bad.ckpt")
    for content in (b"", b"not a checkpoint", whole[: len(whole) // 2]):
        bad.write_bytes(content)
        for args in (("fit",), ("test",), ("sample", "out.png")):
            refused("bad.ckpt: is corrupt, or no checkpoint", *args, "--ckpt_path", bad)
    torch.save({"state_dict": {}}, bad)
    refused("bad.ckpt: no hyper_parameters in it", "test", "--ckpt_path", bad)
    torch.save({**torch.load(trained, weights_only=True), "hyper_parameters": [1]}, bad)
    refused("bad.ckpt: no hyper_parameters in it", "fit", "--ckpt_path", bad)


def test_checkpoints_that_do_not_fit(refused: Callable[..., None], trained: Path) -> None:
    whole = torch.load(trained, weights_only=True)
    options = {**whole["hyper_parameters"], "widths": "wide"}
    data = {**whole["datamodule_hyper_parameters"], "nosuch": 1}
    weights = dict(list(whole["state_dict"].items())[1:])
    for changed in ({"hyper_parameters": options}, {"state_dict": weights}):
        torch.save({**whole, **changed}, "odd.ckpt")
        for args in (("fit",), ("test",), ("sample", "out.png")):
            refused("odd.ckpt: its options and its weights do not fit", *args, "--ckpt_path", "odd.ckpt")
    torch.save({**whole, "datamodule_hyper_parameters": data}, "odd.ckpt")
    refused("odd.ckpt: its options do not fit", "test", "--ckpt_path", "odd.ckpt")
    del whole["optimizer_states"]
    torch.save(whole, "odd.ckpt")
    refused("odd.ckpt: no optimizer_states in it", "fit", "--ckpt_path", "odd.ckpt")
    assert command("sample", "out.npy", "--n", 1, "--ckpt_path", "odd.ckpt") == 0


class _Touch:
    def __reduce__(self) -> tuple:
        return Path.touch, (Path("sprung"),)


def test_checkpoints_are_never_unpickled(refused: Callable[..., None], trained: Path, here: Path) -> None:
    checkpoint = torch.load(trained, weights_only=True)
    torch.save({**checkpoint, "hyper_parameters": _Touch()}, "trap.ckpt")
    for args in (("fit",), ("test",), ("sample", "out.png")):
        refused("trap.ckpt: holds more than tensors and plain values", *args, "--ckpt_path", "trap.ckpt")
    assert not (here / "sprung").exists()


def test_a_checkpoint_of_other_options_or_images(refused: Callable[..., None], trained: Path) -> None:
    refused("--latent_dim 5: the checkpoint", "fit", "--ckpt_path", trained, "--latent_dim", 5)
    np.save("other.npy", bars(20, 9, 9)[0])
    for name in ("fit", "test"):
        refused("--data other.npy: images of shape [1, 9, 9]", name, "--ckpt_path", trained, "--data", "other.npy")


class _FullDisk(io.FileIO):
    """A file on a disk that has room for 100 bytes."""

    def write(self, content: bytes) -> int:
        super().write(content[:100])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("victim", ["last.ckpt", "best.ckpt", "curves.png", "metrics.csv"])
def test_a_full_disk_costs_nothing_already_written(
    refused: Callable[..., None], trained: Path, here: Path, monkeypatch: pytest.MonkeyPatch, victim: str
) -> None:
    before = {path: path.read_bytes() for path in here.rglob("*") if path.is_file()}
    real = errors.write_whole

    def fills_up(path: Path, content: bytes) -> None:
        if path.name != victim:
            return real(path, content)
        with monkeypatch.context() as full:
            full.setattr(errors.tempfile, "NamedTemporaryFile", _full_temporary)
            return real(path, content)

    for name in ("callbacks", "checkpoints", "fit", "plots", "sample"):
        module = importlib.import_module(f"vae_fast.cli.{name}")
        monkeypatch.setattr(module, "write_whole", fills_up)
    refused(f"{victim}: No space left on device", "fit", "--ckpt_path", trained, "--epochs", 2, *SMALL[-2:])
    assert {path: path.read_bytes() for path in before} == before
    assert not [path for path in here.rglob(".*") if path.is_file()]


def _full_temporary(dir: Path, prefix: str, delete: bool) -> io.FileIO:
    return _FullDisk(dir / f"{prefix}full", "wb")


def test_an_overwritten_file_survives_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.png"
    errors.write_whole(path, b"old")
    monkeypatch.setattr(errors.tempfile, "NamedTemporaryFile", _full_temporary)
    with pytest.raises(OSError, match="No space left on device") as raised:
        errors.write_whole(path, b"new" * 100)
    assert raised.value.filename == str(path)
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_an_interrupted_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(file: int) -> None:
        raise errors.Interrupted(2)

    monkeypatch.setattr(errors.os, "fsync", interrupted)
    with pytest.raises(errors.Interrupted):
        errors.write_whole(tmp_path / "x.png", b"new")
    assert not list(tmp_path.iterdir())


WITHOUT_EACH = """
import sys
from vae_fast.cli.main import main
for package in ("lightning", "jsonargparse", "matplotlib", "PIL", "mlxtend"):
    for name in list(sys.modules):
        if name.startswith("vae_fast.cli.") and name[13:] not in ("main", "errors"):
            del sys.modules[name]
    sys.modules[package] = None
    assert main(["fit"]) == 2
    del sys.modules[package]
"""


def test_the_version_is_printed(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as ended:
        command("--version")
    assert ended.value.code == 0 and capsys.readouterr().out == f"vae-fast {vae_fast.__version__}\n"


def test_a_missing_package_is_named(here: Path) -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT_EACH], capture_output=True, text=True, env=package_path())
    expected = ("lightning", "jsonargparse", "matplotlib", "PIL", "mlxtend")
    told = [f"vae-fast: error: {name} is not installed: pip install vae_fast[train]" for name in expected]
    assert done.stderr.splitlines() == told and done.returncode == 0


def test_a_diverging_run_keeps_its_last_good_checkpoint(refused: Callable[..., None], trained: Path) -> None:
    before = trained.read_bytes()
    args = ("fit", "--ckpt_path", trained, "--epochs", 5, "--lr", 1e12, *SMALL[-2:])
    refused("; the last good checkpoint is kept", *args)
    assert trained.read_bytes() == before


@pytest.mark.parametrize("validated", ["1.0", "0.5"])
def test_a_run_that_diverges_at_once_keeps_no_checkpoint(
    refused: Callable[..., None], here: Path, validated: str
) -> None:
    """The one or two steps of its epoch are taken from finite parameters: what isn't is seen in validation."""
    images = 20 if validated == "1.0" else 40
    options = ("--data", write_bars(here, images), "--epochs", 2, "--lr", 1e12, *SMALL)
    options += ("--trainer.val_check_interval", validated)
    refused("try --lr below 1e+12\n", "fit", *options)  # no word of a checkpoint
    assert not list(here.rglob("*.ckpt"))


def test_the_library_itself_needs_none_of_the_command_s_packages() -> None:
    packages = ("lightning", "jsonargparse", "matplotlib", "PIL", "mlxtend")
    code = f"import sys, vae_fast; print([name for name in {packages} if name in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=package_path()).stdout
    assert out.strip() == "[]"
