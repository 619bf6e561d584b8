"""vae-fast fit: trains a VAE; everything about the run goes into one folder."""

import json
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher

from .callbacks import Best, History, Last, RunLogger, StopOnSignal, progress_bar
from .checkpoints import RUNS, TO_RESUME, SafeCheckpointIO, check_shape, load_model, read_checkpoint
from .data import VAEData
from .errors import Interrupted, UserError, refusals, write_whole
from .heads import MIXTURE, data_form
from .module import ARCHITECTURE, VAEModule
from .plots import write_pictures
from .test import aligned, evaluate, table

DEFAULT_SEED = 0


class FitCLI(LightningCLI):
    """LightningCLI with the options of model and data at the top: --latent_dim, not --model.latent_dim."""

    def __init__(self, args: list[str]) -> None:
        super().__init__(
            VAEModule,
            VAEData,
            trainer_defaults={
                "num_sanity_val_steps": 0,
                "enable_model_summary": False,
                "log_every_n_steps": 1,
            },
            seed_everything_default=DEFAULT_SEED,
            parser_kwargs={"prog": "vae-fast fit", "description": __doc__, "exit_on_error": False},
            args=args,
            run=False,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
        )

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        self.data_options = parser.add_class_arguments(VAEData, instantiate=False, skip={"counts", "quantise"})
        self.model_options = parser.add_class_arguments(VAEModule, instantiate=False, skip={"shape", "library"})
        parser.add_argument(
            "--ckpt_path", type=str | None, help="Checkpoint to resume from: its options are the defaults."
        )
        parser.add_argument("--run_dir", type=str, default=RUNS, help="Each run makes a folder version_N in here.")
        parser.add_lightning_class_args(Trainer, "trainer")
        parser.set_defaults({f"trainer.{name}": value for name, value in self.trainer_defaults.items()})

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """The options; when resuming, those of the checkpoint take the place of the defaults."""
        self.config = parser.parse_args(args)
        self.checkpoint, components = None, self.config.components
        if self.config.ckpt_path is not None:
            path = Path(self.config.ckpt_path)
            self.checkpoint = read_checkpoint(path, TO_RESUME)
            load_model(path, self.checkpoint)
            saved = {**self.checkpoint["hyper_parameters"], **self.checkpoint["datamodule_hyper_parameters"]}
            options = self.data_options + self.model_options
            parser.set_defaults({name: saved[name] for name in options if name in saved})
            self.config = parser.parse_args(args)
            self._refuse_other_architecture(saved)
        if components is not None and self.config.likelihood != MIXTURE:
            raise UserError(f"--components {components}: is for {MIXTURE}; got --likelihood {self.config.likelihood}")
        for name, refused in (("enable_checkpointing", False), ("barebones", True)):
            if self.config.trainer[name] is refused:
                raise UserError(f"--trainer.{name} {refused}: vae-fast fit tests and draws from checkpoints")
        if self.config.trainer.max_epochs is not None:
            self.config.epochs = self.config.trainer.max_epochs

    def _refuse_other_architecture(self, saved: dict[str, Any]) -> None:
        for name in ARCHITECTURE:
            if self.config[name] != saved.get(name, self.config[name]):
                raise UserError(
                    f"--{name} {self.config[name]}: the checkpoint {self.config.ckpt_path} was trained with "
                    f"{saved.get(name)}; expected the same when resuming"
                )

    def instantiate_classes(self) -> None:
        self.config_init = self.parser.instantiate(self.config)
        form = data_form(self.config.likelihood, self.config.levels)
        self.datamodule = VAEData(**{name: self.config[name] for name in self.data_options}, **form)
        if self.checkpoint is not None:
            check_shape(self.datamodule, self.checkpoint)
        options = {name: self.config[name] for name in self.model_options}
        self.model = VAEModule(self.datamodule.observations.shape, library=self.datamodule.library, **options)
        self.trainer = self.instantiate_trainer()

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        chosen = self.config_init.trainer
        self.best = Best(Path(self.config.ckpt_path) if self.config.ckpt_path else None)
        self.last, self.history = Last(), History()
        callbacks = [self.history, StopOnSignal(self.last), self.best, self.last]
        if chosen.enable_progress_bar is not False:
            callbacks.append(progress_bar(self.datamodule.unit))
        self.trainer_defaults["callbacks"] = callbacks
        trainer = super().instantiate_trainer(
            logger=[RunLogger(self.config.run_dir, name=""), *_listed(chosen.logger)],
            plugins=[SafeCheckpointIO(), *_listed(chosen.plugins)],
            max_epochs=self.config.epochs,
            **kwargs,
        )
        if isinstance(trainer.strategy.launcher, _MultiProcessingLauncher):
            raise UserError(
                "--trainer.strategy: one that forks or spawns trains in processes that are gone when vae-fast fit "
                "tests and draws; expected ddp"
            )
        return trainer


def _listed(chosen: Any) -> list:
    """What was given to an option that takes one or several; nothing for None, True or False."""
    if chosen is None or isinstance(chosen, bool):
        return []
    return list(chosen) if isinstance(chosen, list | tuple) else [chosen]


def run(args: list[str]) -> None:
    """Trains, tests the best checkpoint, draws the pictures and says where everything is."""
    with refusals():
        cli = FitCLI(args)
    cli.trainer.fit(cli.model, cli.datamodule, ckpt_path=cli.config.ckpt_path, weights_only=True)
    if not cli.trainer.is_global_zero:
        return
    try:
        _finish(cli)
    except Interrupted as interrupted:
        raise Interrupted(interrupted.signum, cli.last.path) from None


def _finish(cli: FitCLI) -> None:
    best = Path(cli.best.best_model_path or cli.last.path)
    if not best.is_file():
        print("no checkpoint was written: nothing to test or draw")
        return
    model = load_model(best, read_checkpoint(best)).to(cli.trainer.strategy.root_device)
    folder = Path(str(cli.trainer.loggers[0].log_dir))
    results = evaluate(model, cli.datamodule, **_like(cli))
    write_whole(folder / "test.json", json.dumps(results, indent=2).encode())
    pictures = write_pictures(folder, model, cli.datamodule, cli.history.rows)
    print(summary(folder, best, results, cli.datamodule, pictures))


def _like(cli: FitCLI) -> dict[str, Any]:
    """The trainer's options that the test takes over."""
    return {name: cli.config.trainer[name] for name in ("accelerator", "precision")}


def summary(folder: Path, best: Path, results: dict[str, float], data: VAEData, pictures: list[str]) -> str:
    """What a person wants to know at the end of a run."""
    lines = {
        "pictures": f"{folder}/  {', '.join(pictures)}",
        "metrics": folder / "metrics.csv",
        "checkpoint": best,
    }
    return table(results, data.unit, f"{len(data.test_rows)} test {data.unit}s") + "\n" + aligned(lines)
