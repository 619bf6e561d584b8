"""The pictures: what stands where in them, and what their labels say."""

import io
import math

import numpy as np
import pytest
import torch
from PIL import Image

from vae_fast.cli.module import VAEModule
from vae_fast.cli.plots import GAP, curves, grid_png, latent, reconstructions, tile
from vae_fast.cli.reading import Observations

ROWS = [
    {"epoch": e, "train_neg_elbo": 100 - e, "train_reconstruction": 80 - e, "train_kl": 20.0}
    | {"val_neg_elbo": 101 - e, "val_reconstruction": 81 - e, "val_kl": 20.0}
    for e in range(4)
]


def test_tile_puts_images_in_reading_order() -> None:
    x = torch.arange(5.0).reshape(5, 1, 1, 1).expand(5, 2, 3, 4) / 10
    sheet = tile(x, 3)
    assert sheet.shape == (2 * 3 + GAP, 3 * 4 + 2 * GAP, 2)
    assert sheet[0, [0, 4 + GAP, 2 * (4 + GAP)], 0] == pytest.approx([0, 0.1, 0.2])
    assert sheet[3 + GAP, [0, 4 + GAP, 2 * (4 + GAP)], 0] == pytest.approx([0.3, 0.4, 1.0])
    assert (sheet[3 : 3 + GAP] == 1).all()


@pytest.mark.parametrize(
    ("shape", "mode"),
    [((64, 1, 28, 28), "L"), ((5, 3, 9, 16), "RGB"), ((1, 1, 8, 8), "L"), ((90, 1, 1, 37), "L")],
)
def test_grid_is_near_square_and_large_enough(shape: tuple[int, ...], mode: str) -> None:
    with Image.open(io.BytesIO(grid_png(torch.rand(shape)))) as picture:
        assert picture.mode == mode
        assert 600 <= max(picture.size) <= 1400
        assert max(picture.size) < 3 * min(picture.size)


def test_grid_of_one_row_of_pixels_lies_down() -> None:
    with Image.open(io.BytesIO(grid_png(torch.rand(1, 1, 1, 37)))) as picture:
        assert picture.width == 37 * picture.height


def test_grid_keeps_grey_values() -> None:
    with Image.open(io.BytesIO(grid_png(torch.full((1, 1, 8, 8), 100 / 255)))) as picture:
        assert np.unique(np.asarray(picture)).tolist() == [100]


def test_curves_show_three_terms_in_nats() -> None:
    axes = curves(ROWS).axes
    assert [ax.get_title() for ax in axes] == ["−ELBO", "Reconstruction", "KL to the prior"]
    assert axes[0].get_ylabel() == "nats per image" and axes[0].get_xlabel() == "epoch"
    train, validation = axes[1].get_lines()
    assert train.get_xdata().tolist() == [1, 2, 3, 4] and train.get_ydata().tolist() == [80, 79, 78, 77]
    assert validation.get_ydata().tolist() == [81, 80, 79, 78]
    assert [text.get_text() for text in axes[0].get_legend().get_texts()] == ["train", "validation"]


def test_curves_of_one_epoch_and_of_none() -> None:
    assert curves(ROWS[:1]).axes[0].get_lines()[0].get_marker() == "o"
    assert len(curves([]).axes) == 3
    without_validation = [{"epoch": 0, "train_neg_elbo": 1.0, "train_reconstruction": 1.0, "train_kl": 0.0}]
    assert math.isnan(curves(without_validation).axes[0].get_lines()[1].get_ydata()[0])


def test_latent_projects_on_the_widest_plane_and_says_so() -> None:
    torch.manual_seed(0)
    mu = torch.randn(300, 5) * torch.tensor([0.1, 3.0, 0.1, 2.0, 0.1])
    y = torch.arange(300) % 3
    ax = latent(mu, Observations(torch.zeros(300, 1, 1, 1), y, ("a", "b", "c")), y).axes[0]
    assert ax.get_title() == "Latent space: PCA of mu, 2 of 5 dimensions"
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["a", "b", "c"]
    points = np.concatenate([drawn.get_offsets() for drawn in ax.collections])
    assert len(points) == 300
    assert points.var(0).sum() == pytest.approx(mu[:, [1, 3]].var(0).sum().item(), rel=0.02)


@pytest.mark.parametrize("dimensions", [1, 2])
def test_latent_without_classes_or_reduction(dimensions: int) -> None:
    mu = torch.randn(20, dimensions)
    ax = latent(mu, Observations(torch.zeros(20, 1, 1, 1)), None).axes[0]
    assert ax.get_legend() is None and "PCA" not in ax.get_title()
    assert np.asarray(ax.collections[0].get_offsets())[:, 0] == pytest.approx(mu[:, 0].numpy())


def test_reconstructions_stand_below_their_originals() -> None:
    module = VAEModule((3, 8, 10), network="mlp", widths=[4])
    x = torch.randint(0, 256, (6, 3, 8, 10), dtype=torch.uint8)
    with torch.no_grad():
        ax = reconstructions(module, x).axes[0]
        expected = module.vae.reconstruct(x)
    sheet = ax.images[0].get_array()
    assert sheet.shape == (2 * 8 + GAP, 6 * 10 + 5 * GAP, 3)
    np.testing.assert_allclose(sheet[:8, :10], x[0].permute(1, 2, 0) / 255, atol=1e-6)
    np.testing.assert_allclose(sheet[8 + GAP :, :10], expected[0].permute(1, 2, 0), atol=1e-5)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["original", "reconstruction"]
