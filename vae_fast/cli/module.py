"""The VAE as a LightningModule: the objective, its terms in nats per observation, the optimiser."""

import math
from pathlib import Path
from typing import Literal

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor

import vae_fast

from .errors import UserError
from .heads import COMPONENTS, COUNTS, LEVELS, MIXTURE, loss_options, networks
from .networks import SMALLEST_SIDE, WIDTHS
from .reading import COUNTS_HINT

ARCHITECTURE = ("likelihood", "latent_dim", "network", "widths", "components", "levels")
MOST_LEVELS = 256


class VAEModule(LightningModule):
    """A variational autoencoder, trained by Adam with a cosine schedule.

    Args:
        shape: (C, H, W) of an image, or (D,) of counts.
        likelihood: p(x|z). Images: bernoulli (grey values as targets), continuous_bernoulli, gaussian (one learned
            variance), laplace (one learned scale), discretized_logistic, discretized_logistic_mixture (both of 256 grey
            levels), categorical (of 16). Counts: poisson, negative_binomial, zero_inflated_negative_binomial
            (proportions times each row's total; one theta a column).
        latent_dim: Dimensions of z.
        beta: Weight of the KL in the objective; the -ELBO that is reported always has weight 1.
        network: conv (images of at least 8 x 8) or mlp; by default conv for images, mlp for counts.
        widths: conv: channels of each convolution of stride 2, then one hidden layer; mlp: hidden layers.
            By default '[32,64,256]' for conv, '[512,256]' for mlp, '[128]' for counts.
        lr: Learning rate at the start.
        epochs: Passes over the training data; --trainer.max_epochs is the same.
        components: Logistics in a discretized_logistic_mixture; by default 10.
        levels: Grey levels, at most 256; by default 16 for categorical, 256 for the discretised.
        library: A usual total of counts in a row, for what is sampled.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        likelihood: Literal[
            "bernoulli",
            "continuous_bernoulli",
            "gaussian",
            "laplace",
            "discretized_logistic",
            "discretized_logistic_mixture",
            "categorical",
            "poisson",
            "negative_binomial",
            "zero_inflated_negative_binomial",
        ] = "bernoulli",
        latent_dim: int = 16,
        beta: float = 1.0,
        network: Literal["conv", "mlp"] | None = None,
        widths: list[int] | None = None,
        lr: float = 3e-3,
        epochs: int = 60,
        components: int | None = None,
        levels: int | None = None,
        library: float | None = None,
    ) -> None:
        super().__init__()
        shape, counts = tuple(shape), likelihood in COUNTS
        if network is None:
            network = "mlp" if counts else "conv"
        widths = list(WIDTHS["counts" if counts else network] if widths is None else widths)
        levels = LEVELS.get(likelihood) if levels is None else levels
        if components is None and likelihood == MIXTURE:
            components = COMPONENTS
        _check_options(latent_dim, beta, widths, lr, epochs)
        _check_network(shape, network, widths, counts)
        _check_levels(shape, likelihood, components, levels)
        self.save_hyperparameters(logger=False)
        self.lr, self.epochs, self.counts = lr, epochs, counts
        self.importance_samples = 0
        self.highest = 255 if levels is None else levels - 1
        encoder, decoder = networks(likelihood, shape, latent_dim, network, widths, components, levels)
        self.vae = vae_fast.VAE(
            encoder,
            decoder,
            likelihood=likelihood,
            beta=beta,
            latent_dim=latent_dim,
            library=(library or 1.0) if counts else None,
            **loss_options(likelihood, shape[0], levels),
        )

    def pixels(self, x: Tensor) -> Tensor:
        """Data, means or draws of images as float32 in [0, 1]."""
        return x.float().clamp(0, 1) if x.is_floating_point() else x.float() / self.highest

    def on_fit_start(self) -> None:
        if self.trainer.world_size > 1:
            torch.manual_seed(torch.initial_seed() + self.global_rank)

    def on_train_start(self) -> None:
        """A resumed run has the optimiser's state from the checkpoint, but the options given now."""
        scheduler = self.trainer.lr_scheduler_configs[0].scheduler
        scheduler.base_lrs = [self.lr]
        now = self.lr * self._cosine(scheduler.last_epoch)
        for group in self.trainer.optimizers[0].param_groups:
            group.update(initial_lr=self.lr, lr=now)

    def training_step(self, x: Tensor, batch_idx: int) -> Tensor:
        return self._step("train", x)

    def validation_step(self, x: Tensor, batch_idx: int) -> None:
        self._step("val", x)

    def test_step(self, x: Tensor, batch_idx: int) -> None:
        self._step("test", x)
        if self.importance_samples:
            bound = self.vae.log_evidence(x, self.importance_samples)
            self.log("test_log_evidence", bound.mean(), batch_size=len(x))

    def _step(self, stage: str, x: Tensor) -> Tensor:
        out = self.vae(x)
        nll, kl = out.nll.mean(), out.kl.mean()
        terms = {"neg_elbo": nll + kl, "reconstruction": nll, "kl": kl, "loss": out.loss.detach()}
        named = {f"{stage}_{name}": value for name, value in terms.items()}
        self.log_dict(named, logger=False, on_step=False, on_epoch=True, sync_dist=True, batch_size=len(x))
        return out.loss

    def on_train_epoch_end(self) -> None:
        for stage, where in (("train", ""), ("val", ", of what it doesn't train on")):
            neg_elbo = self.trainer.callback_metrics.get(f"{stage}_neg_elbo", torch.zeros(()))
            if not torch.isfinite(neg_elbo):
                checkpoints = self.trainer.checkpoint_callbacks
                kept = any(isinstance(c, ModelCheckpoint) and Path(c.best_model_path).is_file() for c in checkpoints)
                raise UserError(
                    f"training diverged: -ELBO is {neg_elbo:g} in epoch {self.current_epoch + 1}{where}; "
                    f"try --lr below {self.lr:g}" + kept * "; the last good checkpoint is kept"
                )

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        optimizer = torch.optim.Adam(self.parameters(), self.lr)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: self._cosine(epoch))
        return {"optimizer": optimizer, "lr_scheduler": scheduler}

    def _cosine(self, epoch: int) -> float:
        return 0.5 * (1 + math.cos(math.pi * min(epoch / self.epochs, 1)))


def _check_options(latent_dim: int, beta: float, widths: list[int], lr: float, epochs: int) -> None:
    positive = {"latent_dim": latent_dim, "lr": lr, "epochs": epochs}
    for name, value in positive.items():
        if not 0 < value < math.inf:
            raise UserError(f"--{name} {value}: expected a positive number")
    if min(widths, default=0) < 1:
        raise UserError(f"--widths {widths}: expected positive numbers, at least one")
    if not 0 <= beta < math.inf:
        raise UserError(f"--beta {beta}: expected zero or a positive number")


def _check_network(shape: tuple[int, ...], network: str, widths: list[int], counts: bool) -> None:
    if network != "conv":
        return
    if counts:
        raise UserError("--network conv: is for images; expected mlp for counts")
    if len(widths) < 2:
        raise UserError(f"--widths {widths}: expected at least two for conv: channels, then the hidden layer")
    if min(shape[1:]) < SMALLEST_SIDE:
        hint = COUNTS_HINT if shape[1] == 1 else ""  # what a matrix is read as
        raise UserError(
            f"--network conv: images of {shape[1]} x {shape[2]}; expected at least "
            f"{SMALLEST_SIDE} x {SMALLEST_SIDE}: use --network mlp{hint}"
        )


def _check_levels(shape: tuple[int, ...], likelihood: str, components: int | None, levels: int | None) -> None:
    if components is not None and components < 1:
        raise UserError(f"--components {components}: expected a positive number")
    if likelihood == MIXTURE and shape[0] not in (1, 3):
        raise UserError(f"--likelihood {likelihood}: images of {shape[0]} channels; expected 1 or 3")
    if levels is None:
        return
    if likelihood not in LEVELS:
        raise UserError(f"--levels {levels}: is for {', '.join(LEVELS)}; got --likelihood {likelihood}")
    if not 2 <= levels <= MOST_LEVELS:
        raise UserError(f"--levels {levels}: expected 2 to {MOST_LEVELS}")
