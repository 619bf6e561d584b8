"""The VAE as a LightningModule: the objective, its terms in nats per image, the optimiser."""

import math
from typing import Literal

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor

import vae_fast

from .errors import UserError
from .networks import NETWORKS, SMALLEST_SIDE, WIDTHS, GaussianDecoder

ARCHITECTURE = ("likelihood", "latent_dim", "network", "widths")


class VAEModule(LightningModule):
    """A variational autoencoder, trained by Adam with a cosine schedule.

    Args:
        shape: (C, H, W) of an image.
        likelihood: p(x|z): bernoulli (grey values as targets) or gaussian (one learned variance).
        latent_dim: Dimensions of z.
        beta: Weight of the KL in the objective; the -ELBO that is reported always has weight 1.
        network: conv (images of at least 8 x 8) or mlp.
        widths: conv: channels of each convolution of stride 2, then one hidden layer; mlp: hidden layers.
            By default '[32,64,256]' for conv, '[512,256]' for mlp.
        lr: Learning rate at the start.
        epochs: Passes over the training images; --trainer.max_epochs is the same.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        likelihood: Literal["bernoulli", "gaussian"] = "bernoulli",
        latent_dim: int = 16,
        beta: float = 1.0,
        network: Literal["conv", "mlp"] = "conv",
        widths: list[int] | None = None,
        lr: float = 3e-3,
        epochs: int = 60,
    ) -> None:
        super().__init__()
        shape = (shape[0], shape[1], shape[2])
        widths = list(WIDTHS[network] if widths is None else widths)
        _check_options(shape, latent_dim, beta, network, widths, lr, epochs)
        self.save_hyperparameters(logger=False)
        self.lr, self.epochs = lr, epochs
        self.importance_samples = 0
        encoder, decoder = (make(shape, latent_dim, widths) for make in NETWORKS[network])
        if likelihood == "gaussian":
            decoder = GaussianDecoder(decoder)
        self.vae = vae_fast.VAE(encoder, decoder, likelihood=likelihood, beta=beta, latent_dim=latent_dim)

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
        neg_elbo = self.trainer.callback_metrics["train_neg_elbo"]
        if not torch.isfinite(neg_elbo):
            raise UserError(
                f"training diverged: -ELBO is {neg_elbo:g} in epoch {self.current_epoch + 1}; "
                f"try --lr below {self.lr:g}; the last good checkpoint is kept"
            )

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        optimizer = torch.optim.Adam(self.parameters(), self.lr)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: self._cosine(epoch))
        return {"optimizer": optimizer, "lr_scheduler": scheduler}

    def _cosine(self, epoch: int) -> float:
        return 0.5 * (1 + math.cos(math.pi * min(epoch / self.epochs, 1)))


def _check_options(
    shape: tuple[int, ...],
    latent_dim: int,
    beta: float,
    network: str,
    widths: list[int],
    lr: float,
    epochs: int,
) -> None:
    positive = {"latent_dim": latent_dim, "lr": lr, "epochs": epochs}
    for name, value in positive.items():
        if not 0 < value < math.inf:
            raise UserError(f"--{name} {value}: expected a positive number")
    if min(widths, default=0) < 1:
        raise UserError(f"--widths {widths}: expected positive numbers, at least one")
    if not 0 <= beta < math.inf:
        raise UserError(f"--beta {beta}: expected zero or a positive number")
    if network == "conv" and len(widths) < 2:
        raise UserError(f"--widths {widths}: expected at least two for conv: channels, then the hidden layer")
    if network == "conv" and min(shape[1:]) < SMALLEST_SIDE:
        raise UserError(
            f"--network conv: images of {shape[1]} x {shape[2]}; expected at least "
            f"{SMALLEST_SIDE} x {SMALLEST_SIDE}: use --network mlp"
        )
