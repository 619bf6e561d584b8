"""Two processes compute what one does: the same gradients, and a run of the command from end to end."""

import os
import time
from pathlib import Path

import torch
from cli_helpers import SMALL, metrics, started, write_bars
from torch.distributed import barrier, init_process_group
from torch.nn.parallel import DistributedDataParallel

from vae_fast.cli.module import VAEModule

ALMOST_NO_NOISE = -40.0


def _module() -> VAEModule:
    """In float64, with a q(z|x) so narrow that the noise, which differs by process, does not count."""
    torch.manual_seed(0)
    module = VAEModule((1, 9, 8), latent_dim=3, widths=[4, 5]).double()
    last = module.vae.encoder[-1][-1]
    with torch.no_grad():
        last.bias[3:] = ALMOST_NO_NOISE
    return module


def _images() -> torch.Tensor:
    return torch.randint(0, 256, (12, 1, 9, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def _gradients(module: torch.nn.Module) -> list[torch.Tensor]:
    return [parameter.grad for parameter in module.parameters() if parameter.grad is not None]


def _one_of_two(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.manual_seed(rank)
    vae = DistributedDataParallel(_module().vae)
    vae(_images()[rank::2]).loss.backward()
    if rank == 0:
        torch.save(_gradients(vae), folder / "gradients.pt")
    barrier()
    os._exit(0)  # past gloo's destructors, which now and then wait for each other for ever (torch 2.13)


def _run_both(folder: Path) -> None:
    """Fails, rather than waits for ever, if the processes don't find each other."""
    both = torch.multiprocessing.spawn(_one_of_two, (folder,), nprocs=2, join=False)
    deadline = time.monotonic() + 120
    try:
        while not both.join(timeout=5):
            assert time.monotonic() < deadline, "the two processes did not end"
    finally:
        for process in both.processes:
            process.kill()


def test_gradients_of_two_processes_equal_those_of_one(tmp_path: Path) -> None:
    _run_both(tmp_path)
    module = _module()
    module.vae(_images()).loss.backward()
    alone, together = _gradients(module.vae), torch.load(tmp_path / "gradients.pt", weights_only=True)
    assert len(alone) == len(together) > 0
    for one, two in zip(alone, together, strict=True):
        assert one.abs().max() > 0
        torch.testing.assert_close(two, one, rtol=1e-6, atol=1e-6 * one.abs().max().item())


def test_the_command_trains_on_two_processes(tmp_path: Path) -> None:
    ddp = ("--trainer.devices", 2, "--trainer.strategy", "ddp")
    process = started(tmp_path, "fit", "--data", write_bars(tmp_path), "--epochs", 2, *SMALL, *ddp)
    said, told = process.communicate(timeout=120)
    assert process.returncode == 0, told
    run = tmp_path / "runs/vae/version_0"
    assert [row["step"] for row in metrics(run)] == [3, 6]
    assert said.count("nats per image, 10 test images") == 1
    assert {path.name for path in run.iterdir()} >= {"samples.png", "curves.png", "latent.png", "metrics.csv"}
    assert list((tmp_path / "runs/vae").iterdir()) == [run]
    assert "Warning" not in told and "Traceback" not in told
