"""discretized_logistic_mixture_nll against the float64 reference, that against mpmath, and both against direct sums."""

import math

import mpmath
import pytest
import torch
import torch.nn.functional as F
from operands import FLOATING, MARGIN, assert_gradients, assert_values, leaf, wide

import vae_fast
from vae_fast import ELBOLoss, reference

BYTES = {"levels": 256.0, "x_low": 0.0, "x_high": 255.0}
# (channels, M, B, N): fewer and more pixels than vectors and blocks have lanes
SHAPES = [(3, 1, 1, 1), (3, 10, 2, 70), (1, 4, 3, 37), (3, 3, 1, 1100), (1, 10, 5, 1)]
LAYOUTS = {
    "planes": lambda t: t,
    "channels last": lambda t: t.transpose(1, 2).contiguous().transpose(1, 2),
    "spaced": lambda t: torch.stack((t, torch.full_like(t, 77)), 3)[..., 0],
    "sliced": lambda t: F.pad(t, (1, 2, 3, 4, 1, 0), value=77)[1:, 3 : 3 + t.shape[1], 1:-2],
}
# Log-scales, and relative errors of values and of gradients, beside 1: two to three times those of the formula in
# float32, where components far from x have scores in the thousands, whose rounding is the relative error of the shares.
RANGES = {(-4.0, 0.0): (1e-6, 5e-5), (-7.0, 0.0): (6e-6, 2e-3), (-10.0, 5.0): (4e-5, 3e-3)}


def mixture(channels, m, b, n, log_scales=(-4.0, 0.0)):
    """Parameters [b, C, n], and bytes [b, channels, n]."""
    low, high = log_scales
    parameters = torch.randn(b, m * (10 if channels == 3 else 3), n)
    each = parameters[:, m:].unflatten(1, (channels, -1, m))
    each[:, :, 0] = 2.2 * torch.rand_like(each[:, :, 0]) - 1.1
    each[:, :, 1] = low + (high - low) * torch.rand_like(each[:, :, 1])
    x = torch.randint(256, (b, channels, n), dtype=torch.uint8)
    x[..., ::5] = 255 * (x[..., ::5] > 127)
    return parameters, x


def expected(parameters, x, mask=None, incoming=None):
    """(terms [B, N], gradient) in float64, of bytes."""
    parameters = wide(parameters)
    terms = reference.discretized_logistic_mixture(parameters, x.double(), channels=float(x.shape[1]), **BYTES)
    kept = terms if mask is None else torch.where(mask, terms, 0)
    weight = torch.ones(len(x)) if incoming is None else incoming
    (gradient,) = torch.autograd.grad(kept.sum(1), parameters, weight.double())
    return kept.detach(), gradient


def assert_close(got, value, relative):
    error, bound = (got.double() - value).abs(), MARGIN * relative * (1 + value.abs())
    rounding = torch.finfo(got.dtype).eps / 2 * value.abs() if got.dtype.itemsize == 2 else 0
    assert (error <= bound + rounding).all(), f"{((error - rounding) / (1 + value.abs())).max():.3g} of {relative}"


@pytest.mark.parametrize("log_scales", RANGES, ids=str)
@pytest.mark.parametrize("channels, m, b, n", SHAPES)
def test_shapes(channels, m, b, n, log_scales, poisoned):
    parameters, x = mixture(channels, m, b, n, log_scales)
    parameters, incoming = leaf(parameters), torch.rand(b)
    nll = vae_fast.discretized_logistic_mixture_nll(parameters, x)
    nll.backward(incoming)
    terms, gradient = expected(parameters, x, incoming=incoming)
    of_values, of_gradients = RANGES[log_scales]
    assert_values(nll, terms.sum(1), (1 + terms.abs()).sum(1), of_values)
    assert_close(parameters.grad, gradient, of_gradients)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("of_x", LAYOUTS)
@pytest.mark.parametrize("channels", [1, 3])
def test_layouts(layout, of_x, channels):
    parameters, x = mixture(channels, 3, 2, 75)
    parameters, x = leaf(LAYOUTS[layout](parameters)), LAYOUTS[of_x](x)
    nll = vae_fast.discretized_logistic_mixture_nll(parameters, x)
    nll.sum().backward()
    terms, gradient = expected(parameters, x)
    assert_values(nll, terms.sum(1), (1 + terms.abs()).sum(1))
    assert_close(parameters.grad, gradient, 5e-5)


@pytest.mark.parametrize("dtype", FLOATING, ids=str)
@pytest.mark.parametrize("layout", ["planes", "channels last"])
def test_dtypes(dtype, layout):
    parameters, x = mixture(3, 4, 2, 37)
    parameters = leaf(LAYOUTS[layout](parameters).to(dtype))
    nll = vae_fast.discretized_logistic_mixture_nll(parameters, x)
    nll.sum().backward()
    terms, gradient = expected(parameters, x)
    exact = dtype == torch.float64
    assert_values(nll, terms.sum(1), (1 + terms.abs()).sum(1), 1e-12 if exact else 1e-6)
    assert parameters.grad.stride() == parameters.stride()
    assert_close(parameters.grad, gradient, 1e-11 if exact else 5e-5)


@pytest.mark.parametrize("levels", [2, 32, 256, 4096])
def test_x_in_any_units(levels):
    """Integers, and floats in three ranges, mean the same."""
    parameters, _ = mixture(3, 2, 2, 60, (-3.0, 0.0))
    index = torch.randint(levels, (2, 3, 60))
    index[..., :4] = torch.tensor([0, levels - 1, 0, levels - 1])
    reading = {
        (0.0, 1.0): index / (levels - 1),
        (-1.0, 1.0): 2 * index / (levels - 1) - 1,
        (0.0, 100.0): 100 * index / (levels - 1),
    }
    values = [
        vae_fast.discretized_logistic_mixture_nll(parameters, index.to(t), levels=levels)
        for t in (torch.int32, torch.int64)
    ]
    for x_range, x in reading.items():
        values.append(vae_fast.discretized_logistic_mixture_nll(parameters, x, levels=levels, x_range=x_range))
    assert all(torch.equal(value, values[0]) for value in values)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("channels_last", [False, True])
def test_images_are_not_copied(channels, channels_last):
    parameters, x = mixture(channels, 2, 2, 30)
    parameters, x = parameters.unflatten(2, (5, 6)), x.unflatten(2, (5, 6))
    terms, gradient = expected(parameters.flatten(2), x.flatten(2))
    if channels_last:
        parameters, x = parameters.movedim(1, -1).contiguous(), x.movedim(1, -1).contiguous()
        gradient = gradient.unflatten(2, (5, 6)).movedim(1, -1)
    else:
        gradient = gradient.unflatten(2, (5, 6))
    parameters = leaf(parameters)
    nll = vae_fast.discretized_logistic_mixture_nll(parameters, x, channels_last=channels_last)
    nll.sum().backward()
    assert_values(nll, terms.sum(1))
    assert_close(parameters.grad, gradient, 5e-5)
    assert parameters.grad.stride() == parameters.stride()


@pytest.mark.parametrize("log_scale", range(-10, 6))
@pytest.mark.parametrize("mean", [-1.3, -1.0, 0.0, 0.5 / 255, 0.7312, 2.0])
def test_probabilities_sum_to_one(log_scale, mean):
    parameters = torch.tensor([0.0, mean, log_scale]).reshape(1, 3, 1).expand(256, 3, 1)
    x = torch.arange(256, dtype=torch.uint8).reshape(256, 1, 1)
    nll = vae_fast.discretized_logistic_mixture_nll(parameters, x)
    assert torch.exp(-nll.double()).sum().item() == pytest.approx(1, abs=1e-5)


def test_the_probabilities_of_colours_sum_to_one():
    parameters, _ = mixture(3, 3, 1, 1, (-2.0, 0.0))
    levels = torch.cartesian_prod(*[torch.arange(12)] * 3).t().unsqueeze(0)
    terms = reference.discretized_logistic_mixture(
        parameters.double().expand(1, -1, 12**3), levels.double(), levels=12.0, x_low=0.0, x_high=11.0
    )
    nll = vae_fast.discretized_logistic_mixture_nll(parameters.expand(12**3, -1, 1), levels.permute(2, 1, 0), levels=12)
    assert torch.exp(-terms).sum().item() == pytest.approx(1, abs=1e-12)
    assert torch.exp(-nll.double()).sum().item() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("log_scale", [-60.0, -10.0, -7.0, -3.0, 0.0, 5.0, 60.0])
@pytest.mark.parametrize("mean", [-3.0, -0.7, 0.001, 1.0])
@pytest.mark.parametrize("level", [0, 1, 127, 254, 255])
def test_the_reference_against_mpmath(log_scale, mean, level):
    with mpmath.workdps(400):
        centre, half, inverse = mpmath.mpf(2 * level - 255) / 255, mpmath.mpf(1) / 255, mpmath.exp(-log_scale)

        def sigmoid(edge):
            return 1 / (1 + mpmath.exp(-(edge - mpmath.mpf(mean)) * inverse))

        upper, lower = sigmoid(centre + half) if level < 255 else 1, sigmoid(centre - half) if level > 0 else 0
        inside = upper - lower
        exact = float(-mpmath.log(inside)) if inside > 0 else None
    parameters = torch.tensor([0.0, mean, log_scale], dtype=torch.float64).reshape(1, 3, 1)
    x = torch.full((1, 1, 1), level, dtype=torch.float64)
    if exact is not None:
        value = reference.discretized_logistic_mixture(parameters, x, channels=1.0, **BYTES).item()
        assert value == pytest.approx(exact, rel=1e-11, abs=1e-11)


def test_extreme_log_scales():
    """Finite wherever the true value is, gradients too."""
    log_scales = torch.tensor([-1e4, -200.0, -69.0, -30.0, 30.0, 80.0, 200.0, 1e4]).reshape(-1, 1, 1)
    parameters = leaf(torch.cat((torch.zeros(8, 1, 1), torch.full((8, 1, 1), 1e-4), log_scales), 1))
    nll = vae_fast.discretized_logistic_mixture_nll(parameters, torch.full((8, 1, 1), 128, dtype=torch.uint8))
    nll.sum().backward()
    inside = torch.tensor([0.0] * 4)  # the mean's own level
    density = log_scales[4:].flatten() + math.log(255 / 2) + math.log(4)
    assert_values(nll, torch.cat((inside, density)).double(), 1 + nll.detach().abs())
    assert parameters.grad.isfinite().all()


@pytest.mark.parametrize("layout", ["planes", "channels last"])
def test_what_is_masked_is_not_used(layout):
    parameters, x = mixture(3, 2, 4, 75)
    mask, weight = torch.rand(4, 75) > 0.4, torch.tensor([0.0, 1.0, 2.5, 0.3])
    used = (mask & (weight != 0).unsqueeze(1)).unsqueeze(1)
    spoilt = leaf(LAYOUTS[layout](torch.where(used, parameters, math.nan)))
    nll = vae_fast.discretized_logistic_mixture_nll(spoilt, x, mask=mask, weight=weight)
    nll.sum().backward()
    terms, gradient = expected(parameters, x, mask)
    assert_values(nll, terms.sum(1) * weight, (1 + terms.abs()).sum(1) * weight)
    assert_close(spoilt.grad, gradient * weight.reshape(-1, 1, 1), 5e-5)
    assert (spoilt.grad[~used.expand_as(spoilt)] == 0).all()


@pytest.mark.parametrize("plane", [1, 2, 5, 6], ids=["logit", "mean", "log-scale", "coefficient"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_nan_stays_in_its_pixel(dtype, plane):
    parameters, x = mixture(3, 2, 3, 75)
    parameters[1, plane, 40] = math.nan
    parameters = leaf(parameters.to(dtype))
    nll = vae_fast.discretized_logistic_mixture_nll(parameters, x)
    nll.sum().backward()
    assert nll.isnan().tolist() == [False, True, False]
    assert parameters.grad.isnan().any(1).nonzero().tolist() == [[1, 40]]


def test_threads_do_not_matter(threads):
    parameters, x = mixture(3, 2, 3, 2500)
    parameters, results = leaf(parameters), []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        nll = vae_fast.discretized_logistic_mixture_nll(parameters, x)
        results.append((nll, *torch.autograd.grad(nll.sum(), parameters)))
    assert all(torch.equal(a, b) for result in results[1:] for a, b in zip(results[0], result, strict=True))


@pytest.mark.parametrize("channels", [1, 3])
def test_the_reference_differentiates_twice(channels):
    parameters, x = mixture(channels, 2, 1, 3, (-2.0, 0.0))
    x[..., 0] = 255
    parameters = wide(parameters)

    def terms(p):
        return reference.discretized_logistic_mixture(p, x.double(), channels=float(channels), **BYTES)

    assert torch.autograd.gradcheck(terms, (parameters,))
    assert torch.autograd.gradgradcheck(terms, (parameters,))


def pixelcnn(parameters, x, last=0.999, floor=1e-12):
    """The formula of PixelCNN++, channels last: parameters [..., 10 M], x [..., 3] in [-1, 1] -> log-probabilities."""
    m = parameters.shape[-1] // 10
    logits, rest = parameters[..., :m], parameters[..., m:].unflatten(-1, (3, 3 * m))
    means, log_scales, c = rest[..., :m], rest[..., m : 2 * m].clamp(min=-7), rest[..., 2 * m :].tanh()
    red, green = x[..., 0, None], x[..., 1, None]
    means = torch.stack(
        (
            means[..., 0, :],
            means[..., 1, :] + c[..., 0, :] * red,
            means[..., 2, :] + c[..., 1, :] * red + c[..., 2, :] * green,
        ),
        -2,
    )
    centred, inverse = x[..., None] - means, torch.exp(-log_scales)
    plus, minus, mid = inverse * (centred + 1 / 255), inverse * (centred - 1 / 255), inverse * centred
    delta = torch.sigmoid(plus) - torch.sigmoid(minus)
    density = mid - log_scales - 2 * F.softplus(mid) - math.log(127.5)
    inside = torch.where(delta > 1e-5, torch.log(delta.clamp(min=floor)), density)
    upper = torch.where(x[..., None] > last, -F.softplus(minus), inside)
    each = torch.where(x[..., None] < -0.999, plus - F.softplus(plus), upper).sum(-2)
    return torch.logsumexp(each + F.log_softmax(logits, -1), -1)


@pytest.mark.parametrize("compat, last, floor", [("pixelcnn++", 0.999, 1e-12), ("nvae", 0.99, 1e-10)])
def test_formulas_of_trained_models(compat, last, floor):
    parameters, x = mixture(3, 4, 2, 30, (-9.0, 0.0))
    parameters = leaf(parameters.double().unflatten(2, (5, 6)))
    x = x.unflatten(2, (5, 6))
    theirs = -pixelcnn(parameters.movedim(1, -1), x.movedim(1, -1) / 127.5 - 1, last, floor)
    for seen, options in ((x, {}), (x / 255, {"x_range": (0.0, 1.0)}), (x / 127.5 - 1, {})):
        ours = vae_fast.discretized_logistic_mixture_nll(parameters, seen, compat=compat, **options)
        assert torch.allclose(ours, theirs.flatten(1).sum(1), rtol=1e-5)
    (got,) = torch.autograd.grad(ours.sum(), parameters)
    (gradient,) = torch.autograd.grad(theirs.sum(), parameters)
    assert torch.allclose(got, gradient, rtol=1e-3, atol=1e-3)


def test_where_the_formulas_agree():
    """Away from the ends, and where no bin is empty, compat changes nothing."""
    parameters, x = mixture(3, 3, 2, 60, (-2.0, 0.0))
    x = x.clamp(1, 253)
    exact = vae_fast.discretized_logistic_mixture_nll(parameters, x)
    for compat in ("pixelcnn++", "nvae"):
        assert torch.allclose(vae_fast.discretized_logistic_mixture_nll(parameters, x, compat=compat), exact, rtol=1e-5)


def test_nvae_counts_a_level_twice():
    parameters = torch.tensor([0.0, 1.0, -3.0]).reshape(1, 3, 1).expand(256, 3, 1)
    x = torch.arange(256, dtype=torch.uint8).reshape(256, 1, 1)
    total = torch.exp(-vae_fast.discretized_logistic_mixture_nll(parameters, x, compat="nvae")).sum()
    assert 1.1 < total < 1.6


@pytest.mark.parametrize("channels", [1, 3])
def test_samples_and_mean(channels):
    parameters, _ = mixture(channels, 3, 1, 1, (-5.0, -3.0))
    each = parameters[:, 3:].unflatten(1, (channels, -1, 3))
    each[:, :, 0] *= 0.3  # far from the ends, where a clamp would move the mean
    if channels == 3:
        each[:, :, 2] *= 0.3
    form = {"channels": float(channels), "x_low": 0.0, "x_high": 255.0}
    draws = reference.discretized_logistic_mixture_sample(parameters.expand(1, -1, 40_000), **form)
    assert draws.shape == (1, channels, 40_000) and draws.min() >= 0 and draws.max() <= 255
    assert (draws - draws.round()).abs().max() < 1e-3
    mean = reference.discretized_logistic_mixture_mean(parameters, **form)
    assert torch.allclose(draws.mean(2, keepdim=True), mean, atol=1.0)


def brute_force(parameters, channels, levels, form):
    """E[x], [channels, N], of the probabilities of all colours."""
    colours = torch.cartesian_prod(*[torch.arange(float(levels)).double()] * channels).reshape(-1, channels, 1)
    each = parameters.expand(len(colours), -1, -1)
    at = colours.expand(-1, -1, parameters.shape[2])
    units = {"x_low": 0.0, "x_high": levels - 1.0}
    p = torch.exp(-reference.discretized_logistic_mixture(each, at, channels=channels, levels=levels, **units))
    value = form["x_low"] + at * ((form["x_high"] - form["x_low"]) / (levels - 1))
    return (p.unsqueeze(1) * value).sum(0)


@pytest.mark.parametrize("x_low, x_high", [(-1.0, 1.0), (0.0, 1.0), (0.0, 255.0)])
@pytest.mark.parametrize("log_scales", [(-6.0, -3.0), (-3.0, 1.0)], ids=str)
def test_the_mean_of_greys_is_exact(x_low, x_high, log_scales):
    parameters, _ = mixture(1, 3, 1, 20, log_scales)
    parameters, form = parameters.double(), {"x_low": x_low, "x_high": x_high}
    mean = reference.discretized_logistic_mixture_mean(parameters, channels=1.0, **form)
    torch.testing.assert_close(mean[0], brute_force(parameters, 1, 256, form), rtol=1e-9, atol=1e-9)
    one = torch.tensor([0.0, 0.9, -0.5]).reshape(1, 3, 1)  # half of it beyond the last level
    mean = reference.discretized_logistic_mixture_mean(one, channels=1.0)
    assert mean.item() == pytest.approx(0.55343, abs=1e-4)
    torch.testing.assert_close(mean, reference.discretized_logistic_mean(one[:, 1:2], one[:, 2:]))


def test_the_mean_of_colours():
    """Red's exact; green's and blue's near, where scales are small beside the coefficients' slopes."""
    parameters, _ = mixture(3, 2, 1, 10, (-3.0, -1.0))
    parameters, form = parameters.double(), {"x_low": 0.0, "x_high": 1.0}
    mean = reference.discretized_logistic_mixture_mean(parameters, levels=12.0, **form)[0]
    true = brute_force(parameters, 3, 12, form)
    torch.testing.assert_close(mean[0], true[0], rtol=1e-9, atol=1e-9)
    assert (mean - true).abs().max() < 0.05


@pytest.mark.parametrize("channels", [1, 3])
def test_the_mean_has_gradients_and_keeps_little_for_them(channels):
    parameters, _ = mixture(channels, 2, 1, 3, (-2.0, 0.0))
    parameters = wide(parameters)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        reference.discretized_logistic_mixture_mean(parameters, channels=channels)
    assert len(kept) < 100  # of 255 levels of each channel
    form = {"channels": float(channels), "levels": 5.0}
    assert torch.autograd.gradcheck(lambda p: reference.discretized_logistic_mixture_mean(p, **form), (parameters,))


def test_samples_have_the_probabilities():
    parameters, _ = mixture(3, 2, 1, 1, (-1.0, 0.0))
    form = {"channels": 3.0, "levels": 3.0, "x_low": 0.0, "x_high": 2.0}
    draws = reference.discretized_logistic_mixture_sample(parameters.expand(1, -1, 200_000), **form)
    seen = torch.bincount((draws[0].round().long() * torch.tensor([[9], [3], [1]])).sum(0), minlength=27) / 200_000
    levels = torch.cartesian_prod(*[torch.arange(3.0)] * 3).t().unsqueeze(0)
    terms = reference.discretized_logistic_mixture(parameters.expand(1, -1, 27), levels, **form)
    assert torch.allclose(seen, torch.exp(-terms[0]), atol=0.006)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("reduction", ["mean", "none", "mean_all"])
def test_elbo(dtype, reduction):
    parameters, x = mixture(3, 2, 4, 12, (-2.0, 0.0))
    parameters, x = (
        leaf(parameters.to(dtype).unflatten(2, (3, 4)).to(memory_format=torch.channels_last)),
        x.unflatten(2, (3, 4)),
    )
    mu, logvar, weight = leaf(torch.randn(4, 3)), leaf(torch.randn(4, 3)), torch.tensor([0.0, 1.0, 2.0, 0.5])
    mask = torch.rand(4, 3, 4) > 0.2
    loss = ELBOLoss("discretized_logistic_mixture", reduction=reduction)(
        parameters, x, mu, logvar, weight=weight, mask=mask
    )
    (loss * torch.arange(1, 5) if reduction == "none" else 3 * loss).sum().backward()
    wide_parameters, wide_mu, wide_logvar = wide(parameters), wide(mu), wide(logvar)
    terms = reference.discretized_logistic_mixture(wide_parameters.flatten(2), x.flatten(2).double(), **BYTES)
    rows = weight * ((terms * mask.flatten(1)).sum(1) + reference.gaussian_kl(wide_mu, wide_logvar))
    value = {"mean": rows.mean(), "none": rows, "mean_all": rows.sum() / x.numel()}[reduction]
    (value * torch.arange(1, 5) if reduction == "none" else 3 * value).sum().backward()
    assert_values(loss, value.detach(), relative=2e-6)
    assert_close(parameters.grad, wide_parameters.grad, 5e-5)
    assert parameters.grad.is_contiguous(memory_format=torch.channels_last)
    assert_gradients([mu.grad, logvar.grad], [wide_mu.grad, wide_logvar.grad], 24, 1e-6)


def test_a_mask_may_have_the_channels_dimension():
    parameters, x = mixture(3, 2, 2, 12)
    parameters, x, mask = parameters.unflatten(2, (3, 4)), x.unflatten(2, (3, 4)), torch.rand(2, 3, 4) > 0.5
    values = [vae_fast.discretized_logistic_mixture_nll(parameters, x, mask=m) for m in (mask, mask.unsqueeze(1))]
    assert torch.equal(*values)


def call(parameters=(2, 20, 4), x=(2, 3, 4), **options):
    return vae_fast.discretized_logistic_mixture_nll(torch.zeros(parameters), torch.zeros(x), **options)


OWNER = "discretized_logistic_mixture(_nll)?: "
ERRORS = {
    "planes": (lambda: call((2, 21, 4)), r"parameters must have 10 M planes for 3 channels of x, got 21"),
    "planes of greys": (
        lambda: call((2, 20, 4), (2, 1, 4)),
        r"parameters must have 3 M planes for 1 channels of x, got 20",
    ),
    "channels": (lambda: call(x=(2, 2, 4)), r"x must have 1 or 3 channels, got 2"),
    "shape": (
        lambda: call(x=(2, 3, 5)),
        r"x must have shape \[2, 3, 4\] beside parameters of shape \[2, 20, 4\], got \[2, 3, 5\]",
    ),
    "levels": (lambda: call(levels=1), "levels must be an integer, at least 2, got 1"),
    "range": (
        lambda: call(x_range=(1.0, 0.0)),
        r"x_range must be \(low, high\), finite numbers, low below high, got \(1.0, 0.0\)",
    ),
    "compat": (lambda: call(compat="vdvae"), r"compat must be one of pixelcnn\+\+, nvae, got 'vdvae'"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name):
    function, message = ERRORS[name]
    with pytest.raises(ValueError, match=OWNER + message):
        function()


def test_validation_names_the_range():
    loss = ELBOLoss("discretized_logistic_mixture", validate_args=True)
    parameters, q = torch.zeros(2, 20, 3), (torch.zeros(2, 1), torch.zeros(2, 1))
    x = torch.tensor([0.0, 1.0, 1.5]).expand(2, 3, 3)
    with pytest.raises(ValueError, match=r"ELBOLoss: x must lie in \[-1, 1\], got values from 0 to 1.5"):
        loss(parameters, x, *q)
    loss(parameters, x, *q, mask=(x < 1.2)[:, 0])
