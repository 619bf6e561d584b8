"""What happens beside the training: checkpoints, metrics.csv, stopping on a signal, the progress bar."""

import csv
import io
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, ProgressBar, TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm
from lightning.pytorch.loggers import CSVLogger

from .errors import Interrupted, write_whole

BEST, LAST = "best", "last"


def _is_first() -> bool:
    return getattr(rank_zero_only, "rank", 0) == 0


class RunLogger(CSVLogger):
    """CSVLogger for runs that may end at any moment.

    It claims its version_N folder by making it, so that two runs at once get two folders, and replaces
    metrics.csv as a whole, so that a full disk costs no row.
    """

    @property
    def version(self) -> int | str:
        if self._version is None:
            self._version = self._get_next_version()
            while _is_first() and not self._claim():
                self._version += 1
        return self._version

    def _claim(self) -> bool:
        os.makedirs(self.root_dir, exist_ok=True)
        try:
            os.mkdir(os.path.join(self.root_dir, f"version_{self._version}"))
        except FileExistsError:
            return False
        return True

    @rank_zero_only
    def save(self) -> None:
        rows = self.experiment.metrics
        if not rows:
            return
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, sorted(set().union(*rows)))
        writer.writeheader()
        writer.writerows(rows)
        write_whole(Path(self.experiment.metrics_file_path), text.getvalue().encode())


class Best(ModelCheckpoint):
    """best.ckpt: the lowest validation loss; a resumed run's folder starts from the best so far."""

    def __init__(self, resumed_from: Path | None = None) -> None:
        super().__init__(filename=BEST, monitor="val_loss", enable_version_counter=False)
        self._resumed_from = resumed_from

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        if torch.isfinite(trainer.callback_metrics["val_loss"]):  # Lightning would keep the first, whatever it is
            super().on_validation_end(trainer, module)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if self._resumed_from is None or state_dict["best_model_score"] is None:
            return
        earlier = self._resumed_from.with_name(f"{BEST}.ckpt")
        if not earlier.is_file():
            return
        here = os.path.join(str(self.dirpath), earlier.name)
        if _is_first():
            write_whole(Path(here), earlier.read_bytes())
        score = state_dict["best_model_score"]
        moved = {"best_model_path": here, "kth_best_model_path": here, "best_k_models": {here: score}}
        super().load_state_dict({**state_dict, **moved, "dirpath": self.dirpath, "last_model_path": ""})


class Last(ModelCheckpoint):
    """last.ckpt: the end of every epoch, or the batch after which the run was interrupted."""

    def __init__(self) -> None:
        super().__init__(filename=LAST, enable_version_counter=False, save_on_train_epoch_end=True)

    @property
    def path(self) -> Path:
        return Path(str(self.dirpath)) / f"{LAST}.ckpt"

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """A resumed run has a folder of its own: nothing is taken over."""


class History(Callback):
    """One row of metrics an epoch, in metrics.csv and, for a resumed run to go on from, in checkpoints."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def on_fit_start(self, trainer: Trainer, module: LightningModule) -> None:
        for row in self.rows:
            self._log(trainer, row)

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        self.rows.append({"epoch": trainer.current_epoch, "step": trainer.global_step, **metrics})
        self._log(trainer, self.rows[-1])

    def _log(self, trainer: Trainer, row: dict[str, float]) -> None:
        for logger in trainer.loggers:
            logger.log_metrics(row, step=int(row["step"]))
            logger.save()

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows = list(state_dict["rows"])


class StopOnSignal(Callback):
    """SIGINT or SIGTERM stop after the batch under way and write last.ckpt; a second one stops at once."""

    def __init__(self, last: Last) -> None:
        self._last = last
        self._received: int | None = None
        self._previous: dict[int, Any] = {}

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._previous = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}

    def _note(self, signum: int, frame: object) -> None:
        if self._received is not None:
            raise Interrupted(signum, self._last.path if self._last.path.exists() else None)
        self._received = signum

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if not trainer.fit_loop.epoch_loop.batch_progress.is_last_batch and self._anyone(trainer):
            trainer.save_checkpoint(self._last.path)
            raise Interrupted(self._received or signal.SIGTERM, self._last.path)

    def on_train_epoch_start(self, trainer: Trainer, module: LightningModule) -> None:
        if trainer.global_step > 0 and self._last.path.exists() and self._anyone(trainer):
            raise Interrupted(self._received or signal.SIGTERM, self._last.path)

    def _anyone(self, trainer: Trainer) -> bool:
        """Whether any process was signalled: all of them must stop after the same batch."""
        if trainer.world_size == 1:
            return self._received is not None
        return trainer.strategy.reduce_boolean_decision(self._received is not None, all=False)

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._restore()
        if self._received is not None:
            raise Interrupted(self._received, self._last.path)

    def on_exception(self, trainer: Trainer, module: LightningModule, exception: BaseException) -> None:
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}


class Bar(TQDMProgressBar):
    """One bar an epoch, with the validation -ELBO in nats per observation."""

    def init_validation_tqdm(self) -> Tqdm:
        return Tqdm(disable=True)

    def get_metrics(self, trainer: Trainer, module: LightningModule) -> dict[str, Any]:
        metrics = trainer.callback_metrics
        return {"val -ELBO": f"{metrics['val_neg_elbo']:.2f}"} if "val_neg_elbo" in metrics else {}


class EpochLines(ProgressBar):
    """One line an epoch, where standard output is no terminal. unit: what an observation is called."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self._unit = unit

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        metrics = trainer.callback_metrics
        values = (
            f"{stage} {metrics[key]:.2f}" for stage in ("train", "val") if (key := f"{stage}_neg_elbo") in metrics
        )
        if trainer.is_global_zero:
            epoch = f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"
            print(f"{epoch}  -ELBO, nats per {self._unit}: {'  '.join(values)}", flush=True)

    def disable(self) -> None:
        """Lightning disables the bars of all processes but the first; ours prints in the first only."""

    def enable(self) -> None:
        """See `disable`."""


def progress_bar(unit: str) -> ProgressBar:
    return Bar(leave=True) if sys.stdout.isatty() else EpochLines(unit)
