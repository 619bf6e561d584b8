"""vae-fast test: the ELBO and the importance-weighted log-evidence of a trained VAE, in nats per observation."""

from collections.abc import Mapping
from typing import Any

from jsonargparse import auto_cli
from lightning.pytorch import Trainer, seed_everything

from .checkpoints import RUNS, find_checkpoint, load_data, load_model, read_checkpoint
from .data import VAEData
from .errors import UserError, refusals
from .module import VAEModule


def test(
    ckpt_path: str | None = None,
    data: str | None = None,
    layer: str | None = None,
    labels: str | None = None,
    k: int = 100,
    batch_size: int | None = None,
    run_dir: str = RUNS,
    accelerator: str = "auto",
    precision: str = "32-true",
    seed: int = 0,
) -> None:
    """Prints -ELBO, reconstruction, KL and the importance-weighted bound of log p(x), in nats per test image or row.

    Args:
        ckpt_path: Checkpoint to test; by default the best of the newest run.
        data: Images or counts, as for vae-fast fit; by default those it was trained on. Their test split is used.
        layer: Where the counts are in a .h5ad file, as for vae-fast fit.
        labels: Where the classes of counts are, as for vae-fast fit.
        k: Importance samples of the log-evidence; 0 leaves it out.
        batch_size: Images or rows in a batch, as in training by default; small ones are taken more at a time.
        run_dir: Where to look for the newest run.
        accelerator: cpu, gpu or auto.
        precision: Lightning's precision, bf16-mixed for example.
        seed: Seed of the noise.
    """
    if k < 0:
        raise UserError(f"--k {k}: expected zero or a positive number")
    path = find_checkpoint(ckpt_path, run_dir)
    checkpoint = read_checkpoint(path)
    model = load_model(path, checkpoint)
    tested = load_data(path, checkpoint, data=data, batch_size=batch_size, layer=layer, labels=labels)
    results = evaluate(model, tested, k, seed=seed, accelerator=accelerator, precision=precision)
    print(aligned({"checkpoint": path}))
    print(table(results, tested.unit, f"{len(tested.test_rows)} test {tested.unit}s of {tested.data}", k))


def evaluate(model: VAEModule, data: VAEData, k: int = 0, seed: int = 0, **options: Any) -> dict[str, float]:
    """Means over the test split in nats: test_neg_elbo, test_reconstruction, test_kl, test_log_evidence."""
    model.importance_samples = k
    with refusals():
        trainer = Trainer(devices=1, logger=False, enable_progress_bar=False, enable_model_summary=False, **options)
        seed_everything(seed)
    trainer.test(model, data, verbose=False)
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


def table(results: dict[str, float], unit: str, tested: str, k: int = 0) -> str:
    """The results as lines for a person."""
    lines = {
        "-ELBO": f"{results['test_neg_elbo']:.2f} nats per {unit}, {tested}",
        "  reconstruction": f"{results['test_reconstruction']:.2f}",
        "  KL": f"{results['test_kl']:.2f}",
    }
    if k:
        lines["log p(x)"] = f"{results['test_log_evidence']:.2f} nats per {unit}, a lower bound from K = {k} samples"
    return aligned(lines)


def aligned(lines: Mapping[str, object]) -> str:
    """A line each: the name, then in a column the value."""
    return "\n".join(f"{name:<16} {value}" for name, value in lines.items())


def run(args: list[str]) -> None:
    auto_cli(test, args=args, prog="vae-fast test", exit_on_error=False)
