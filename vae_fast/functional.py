"""The ELBO's parts as functions of tensors: sampling, divergences, likelihoods, the importance-weighted bound.

Shapes: B is the first dimension of every tensor, the rest are features. All values are in nats.
"""

import operator

import torch
from torch import Tensor

from vae_fast import checks, reference
from vae_fast.likelihoods import LIKELIHOODS, Options
from vae_fast.operands import check_posterior, like, prior_rows, rows_of
from vae_fast.ops import latent as _latent
from vae_fast.ops import onepass as _onepass
from vae_fast.ops.backend import use_reference
from vae_fast.ops.onepass import is_plain_call
from vae_fast.parts import nll, weighted_monte_carlo_kl
from vae_fast.reference import Prior

__all__ = [
    "bernoulli_nll",
    "categorical_nll",
    "continuous_bernoulli_nll",
    "discretized_logistic_mixture_nll",
    "discretized_logistic_nll",
    "gaussian_kl",
    "gaussian_nll",
    "laplace_nll",
    "log_evidence",
    "monte_carlo_kl",
    "negative_binomial_nll",
    "poisson_nll",
    "reparameterize",
    "sample_kl",
    "zero_inflated_negative_binomial_nll",
]


def reparameterize(
    mu: Tensor, logvar: Tensor, *, seed: int | Tensor | None = None, generator: torch.Generator | None = None
) -> Tensor:
    """A sample z = mu + e^(logvar/2) eps, eps ~ N(0, I), differentiable in mu and logvar (Kingma & Welling 2014, 2.4).

    Arguments:
        mu, logvar: [B, ...] mean and log-variance of q(z|x).
        seed: replays the same noise; an int or a 0-dim int64 tensor. Element i's noise depends on (seed, i) alone.
        generator: draws the seed; by default torch's own, as set by `torch.manual_seed`.

    Returns z, of mu's shape and dtype.
    """
    plain = _latent.PLAIN_REPARAMETERIZE
    if seed is None and generator is None and plain is not None and is_plain_call(mu, logvar):
        z = plain(mu, logvar)
        if z is not None:
            return z
    check_posterior("reparameterize", mu, logvar)
    seed = _seed("reparameterize", seed, generator, mu.device)
    rows = rows_of(mu), rows_of(logvar)
    if use_reference(*rows):
        return reference.reparameterize(*rows, _drawn(seed, mu.device)).reshape(mu.shape)
    return like(_latent.sample(*rows, None, seed, divergence=False), mu)


def sample_kl(
    mu: Tensor,
    logvar: Tensor,
    prior: Prior | None = None,
    *,
    seed: int | Tensor | None = None,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """(`reparameterize`, `gaussian_kl`) in one pass over mu and logvar.

    Returns z, of mu's shape and dtype, and kl [B] in nats.
    """
    plain = _latent.PLAIN_SAMPLE_KL
    if prior is None and seed is None and generator is None and plain is not None and is_plain_call(mu, logvar):
        z, kl = plain(mu, logvar)
        if z is not None:
            return z, kl
    check_posterior("sample_kl", mu, logvar)
    seed = _seed("sample_kl", seed, generator, mu.device)
    rows, prior = (rows_of(mu), rows_of(logvar)), prior_rows("sample_kl", prior, mu)
    if use_reference(*rows, *(prior or ())):
        z, kl = reference.sample_kl(*rows, _drawn(seed, mu.device), prior)
    else:
        z, kl = _latent.sample(*rows, prior, seed, divergence=True)
    return like(z, mu), kl


def gaussian_kl(mu: Tensor, logvar: Tensor, prior: Prior | None = None) -> Tensor:
    """KL(q(z|x) || p(z)) between diagonal Gaussians, in closed form, summed over the latent dimensions.

    1/2 sum [mu^2 + e^logvar - 1 - logvar] for the standard normal prior (Kingma & Welling 2014, appendix B); in general
    1/2 sum [e^r - 1 - r + (mu - mu')^2 e^-logvar'] with r = logvar - logvar'.

    Arguments:
        mu, logvar: [B, ...] mean and log-variance of q(z|x).
        prior: (mu', logvar') of p(z), tensors that broadcast to mu's shape; None is N(0, I). Differentiable too.

    Returns kl [B] in nats, float32 (float64 for float64 inputs).
    """
    check_posterior("gaussian_kl", mu, logvar)
    rows, prior = (rows_of(mu), rows_of(logvar)), prior_rows("gaussian_kl", prior, mu)
    if use_reference(*rows, *(prior or ())):
        return reference.gaussian_kl(*rows, prior)
    return _onepass.apply(_latent.GAUSSIAN_KL, *rows, *(prior or (None, None)), None)


def monte_carlo_kl(z: Tensor, mu: Tensor, logvar: Tensor, prior: Prior | None = None) -> Tensor:
    """log q(z|x) - log p(z): its mean over z ~ q(z|x) is KL(q(z|x) || p(z)). Differentiable in every tensor.

    Arguments:
        z: [B, ...] a sample of q(z|x).
        mu, logvar, prior: as for `gaussian_kl`.

    Returns [B] in nats.
    """
    return weighted_monte_carlo_kl("monte_carlo_kl", z, mu, logvar, prior, None)


def bernoulli_nll(
    logits: Tensor, x: Tensor, *, weight: Tensor | None = None, mask: Tensor | None = None, from_logits: bool = True
) -> Tensor:
    """-log p(x|z) of independent Bernoulli variables, summed over features.

    |l| d + log1p(e^-|l|) for a logit l, d = 1 - x where l >= 0, x elsewhere; -x log p - (1 - x) log(1 - p) for a
    probability p. For grey values x this is the cross-entropy that VAEs on images are trained with.

    Arguments:
        logits: [B, ...] logits, or probabilities with from_logits=False. Probabilities lose what float32 can't hold:
            they are clamped to [2^-126, 1 - 2^-24], so that 0 and 1 have finite values and gradients. Prefer logits.
        x: [B, ...] of the same shape: in [0, 1], bool, or uint8 (an intensity, read as x/255).
        weight: [B] not negative, multiplies each row; rows of weight 0 are not used.
        mask: bool, broadcasts to x; True where an observation counts. Nothing is used where it is False.

    Returns [B] in nats, float32 (float64 for float64 logits).
    """
    entry = LIKELIHOODS["bernoulli" if from_logits else "bernoulli_probs"]
    return nll(entry, ("bernoulli_nll", *entry.parameters), (logits,), x, weight, mask)


def gaussian_nll(
    mean: Tensor,
    x: Tensor,
    *,
    logvar: float | Tensor = 0.0,
    weight: Tensor | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """-log p(x|z) of independent Gaussian variables, summed over features.

    1/2 [log 2 pi + logvar + (x - mean)^2 e^-logvar] for each.

    Arguments:
        mean: [B, ...].
        x: [B, ...] of the same shape; floating point, bool, or uint8 (an intensity, read as x/255).
        logvar: a number; or a tensor that broadcasts to mean: one learned number, one a feature, one an observation.
        weight, mask: as for `bernoulli_nll`.

    Returns [B] in nats, float32 (float64 for float64 means). Unlike half the squared error, log 2 pi is not left out.
    """
    entry = LIKELIHOODS["gaussian"]
    return nll(entry, ("gaussian_nll", *entry.parameters), (mean, logvar), x, weight, mask)


def laplace_nll(
    mean: Tensor,
    x: Tensor,
    *,
    log_scale: float | Tensor = 0.0,
    weight: Tensor | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """-log p(x|z) of independent Laplace variables, summed over features.

    |x - mean| e^-log_scale + log_scale + log 2 for each; the gradient at x = mean is 0.

    Arguments:
        mean: [B, ...].
        x: [B, ...] of the same shape; floating point, bool, or uint8 (an intensity, read as x/255).
        log_scale: a number; or a tensor that broadcasts to mean: one learned number, one a feature, one an observation.
        weight, mask: as for `bernoulli_nll`.

    Returns [B] in nats, float32 (float64 for float64 means).
    """
    entry = LIKELIHOODS["laplace"]
    return nll(entry, ("laplace_nll", *entry.parameters), (mean, log_scale), x, weight, mask)


def continuous_bernoulli_nll(
    logits: Tensor, x: Tensor, *, weight: Tensor | None = None, mask: Tensor | None = None
) -> Tensor:
    """-log p(x|z) of independent continuous Bernoulli variables, summed over features; negative where densities are
    above 1 (Loaiza-Ganem & Cunningham 2019).

    |l| d + log((1 - e^-|l|) / |l|) for a logit l, d = 1 - x where l >= 0, x elsewhere: Bernoulli's cross-entropy less
    log(l / tanh(l/2)), the logarithm of what normalises it on [0, 1].

    Arguments:
        logits: [B, ...].
        x: [B, ...] of the same shape: in [0, 1], bool, or uint8 (an intensity, read as x/255).
        weight, mask: as for `bernoulli_nll`.

    Returns [B] in nats, float32 (float64 for float64 logits).
    """
    entry = LIKELIHOODS["continuous_bernoulli"]
    return nll(entry, ("continuous_bernoulli_nll", *entry.parameters), (logits,), x, weight, mask)


def discretized_logistic_nll(
    mean: Tensor,
    log_scale: float | Tensor,
    x: Tensor,
    *,
    levels: int = 256,
    x_range: tuple[float, float] = (-1.0, 1.0),
    compat: str | None = None,
    weight: Tensor | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """-log p(x|z) of independent logistic variables rounded to `levels` levels, summed over features.

    -log [sigmoid(b) - sigmoid(a)] for each, a, b = (c -+ 1 / (levels - 1) - mean) e^-log_scale, c the centre of x's
    level; the outer bins reach to infinity (Salimans et al. 2017, PixelCNN++). The probabilities add up to 1 at any
    scale.

    Arguments:
        mean: [B, ...] in units in which the levels lie evenly on [-1, 1], whatever x's are.
        log_scale: in the same units; a number, or a tensor that broadcasts to mean.
        x: [B, ...] of mean's shape: uint8, int32, int64 or uint16, numbers of levels from 0 to levels - 1; or floating
            point, taken to the nearest level.
        levels: at least 2.
        x_range: lowest and highest level of x as floating point; integers don't need it.
        compat: for models that were trained so. "pixelcnn++": the difference of sigmoids, where it is below 1e-5 the
            density in the bin's middle, log-scales from -7 up; "nvae": the same from -8 up, and each of the two highest
            levels open above. Plain PyTorch, not fused. None is exact.
        weight, mask: as for `bernoulli_nll`.

    Returns [B] in nats, float32 (float64 for float64 means).
    """
    entry, owner = LIKELIHOODS["discretized_logistic"], "discretized_logistic_nll"
    options = entry.chosen(owner, {"levels": levels, "x_range": x_range, "compat": compat})
    return nll(entry, (owner, *entry.parameters), (mean, log_scale), x, weight, mask, options)


def categorical_nll(
    logits: Tensor, x: Tensor, *, class_dim: int = 1, weight: Tensor | None = None, mask: Tensor | None = None
) -> Tensor:
    """-log p(x|z) of independent categorical variables, summed over features: log sum_k e^l_k - l_x for each.

    `torch.nn.functional.cross_entropy`, with its gradient from the same pass.

    Arguments:
        logits: [B, C, ...] with class_dim=1 as in `cross_entropy`, [B, ..., C] with class_dim=-1; of C classes. Neither
            order is copied, and the gradient lies as the logits do.
        x: [B, ...] the classes, 0 to C - 1: int64, int32, uint8, uint16 or bool, as they are; int8 and int16, copied
            to int32; or whole numbers in floating point. A class out of that range, where no mask hides it, makes its
            row's value and its own gradient NaN; `ELBOLoss(validate_args=True)` raises.
        weight, mask: as for `bernoulli_nll`; the mask has x's shape.

    Returns [B] in nats, float32 (float64 for float64 logits).
    """
    if class_dim not in (1, -1):
        checks.floating("categorical_nll", "logits", logits)
        raise ValueError(f"categorical_nll: class_dim must be 1 or -1, got {class_dim}")
    entry = LIKELIHOODS["categorical"]
    names = ("categorical_nll", *entry.parameters)
    return nll(entry, names, (logits,), x, weight, mask, channels_last=class_dim == -1)


def discretized_logistic_mixture_nll(
    parameters: Tensor,
    x: Tensor,
    *,
    channels_last: bool = False,
    levels: int = 256,
    x_range: tuple[float, float] = (-1.0, 1.0),
    compat: str | None = None,
    weight: Tensor | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """-log p(x|z) of pixels that are mixtures of discretised logistics, summed over them (Salimans et al. 2017).

    -log sum_m pi_m prod_c [sigmoid((x_c + w - mean_mc) / s_mc) - sigmoid((x_c - w - mean_mc) / s_mc)] for each pixel,
    w half a level; the first and the last level reach to infinity. The probabilities are exact: they sum to 1, and
    there is no floor of 1e-5.

    Arguments:
        parameters: [B, C, H, W], or [B, H, W, C] if channels_last. For RGB C = 10 M, as PixelCNN++ and its descendants
            order them: M logits, then for each channel M means, M log-scales and M coefficients c before their tanh;
            green's mean is raised by tanh(c) red, blue's by tanh(c') red + tanh(c'') green. For one channel C = 3 M:
            logits, means, log-scales. Means are in units where the levels lie on [-1, 1], whatever x_range is.
        x: [B, 3, H, W] or [B, 1, H, W] (channels_last: [B, H, W, 3] or [B, H, W, 1]); floating point, the levels from
            x_range[0] to x_range[1], rounded to the nearest; or integers, uint8 say, 0 to levels - 1.
        compat: the formulas that existing models were trained with, by plain PyTorch. "pixelcnn++": log-scales
            clamped at -7, and the density in a bin's middle where its probability is below 1e-5. "nvae": the same, but
            all above 0.99 counts as the last level, so that the probabilities don't sum to 1.
        weight, mask: as for `bernoulli_nll`; the mask broadcasts to [B, H, W].

    Returns [B] in nats, float32 (float64 for float64 parameters).
    """
    entry, owner = LIKELIHOODS["discretized_logistic_mixture"], "discretized_logistic_mixture_nll"
    options = entry.chosen(owner, {"levels": levels, "x_range": x_range, "compat": compat})
    if isinstance(x, Tensor) and x.dim() > 1:
        options = {"channels": x.shape[-1 if channels_last else 1], **options}
    return nll(entry, (owner, *entry.parameters), (parameters,), x, weight, mask, options, channels_last)


def poisson_nll(
    rate: Tensor, x: Tensor, *, log_rate: bool = True, weight: Tensor | None = None, mask: Tensor | None = None
) -> Tensor:
    """-log p(x|z) of independent Poisson variables, summed over features.

    m - x log m + log x! for each of mean m, in the form in which nothing cancels (Loader 2000).

    Arguments:
        rate: [B, ...] log m, or m with log_rate=False.
        x: [B, ...] counts, of the same shape: floating point, int32, int64, uint16, uint8 or bool.
        weight, mask: as for `bernoulli_nll`.

    Returns [B] in nats, float32 (float64 for float64 rates).
    """
    entry = LIKELIHOODS["poisson"]
    options = entry.chosen("poisson_nll", {"log_rate": log_rate})
    return nll(entry, ("poisson_nll", *entry.parameters), (rate,), x, weight, mask, options)


def negative_binomial_nll(
    mu: Tensor,
    theta: float | Tensor,
    x: Tensor,
    *,
    log_mu: bool = False,
    log_theta: bool = False,
    library: float | Tensor | None = None,
    weight: Tensor | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """-log p(x|z) of independent negative binomial variables, summed over features.

    log Gamma(t) + log x! - log Gamma(x + t) + t log(1 + m/t) + x log(1 + t/m) for each, of mean m and variance
    m + m^2/t, in the form in which nothing cancels (Loader 2000): for t from 1e-4 to 1e8, where it is Poisson's, each
    is right to 1e-6 of its terms' magnitudes. A mean or t given by its logarithm is as right as float32's exponential:
    its last bit, 2e-7, times m - x counts. docs/numerics.md has the bounds of gradients.

    Arguments:
        mu: [B, ...] the mean, before the library; its logarithm with log_mu=True.
        theta: the inverse dispersion t, a number or a tensor that broadcasts to x (one a feature, say); its logarithm
            with log_theta=True.
        x: [B, ...] counts, of mu's shape: floating point, int32, int64, uint16, uint8 or bool.
        library: [B] or one number, integers too: m = mu library. None is 1. Differentiable too.
        weight, mask: as for `bernoulli_nll`.

    Returns [B] in nats, float32 (float64 for float64 parameters).
    """
    options = {"log_mu": log_mu, "log_theta": log_theta}
    return _nll_of_counts("negative_binomial", (mu, theta), library, x, weight, mask, options)


def zero_inflated_negative_binomial_nll(
    mu: Tensor,
    theta: float | Tensor,
    pi: float | Tensor,
    x: Tensor,
    *,
    log_mu: bool = False,
    log_theta: bool = False,
    library: float | Tensor | None = None,
    weight: Tensor | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """-log p(x|z) of independent zero-inflated negative binomial variables, summed over features.

    x is 0 with probability sigmoid(pi), else negative binomial: softplus(pi) - log(e^pi + NB(0)) for each x = 0,
    softplus(pi) - log NB(x) for the others (Lopez et al. 2018).

    Arguments:
        pi: logits of dropout, a number or a tensor that broadcasts to x.
        mu, theta, x, log_mu, log_theta, library, weight, mask: as for `negative_binomial_nll`.

    Returns [B] in nats, float32 (float64 for float64 parameters).
    """
    options = {"log_mu": log_mu, "log_theta": log_theta}
    return _nll_of_counts("zero_inflated_negative_binomial", (mu, theta, pi), library, x, weight, mask, options)


def _nll_of_counts(
    name: str,
    parameters: tuple[float | Tensor, ...],
    library: float | Tensor | None,
    x: Tensor,
    weight: Tensor | None,
    mask: Tensor | None,
    options: Options,
) -> Tensor:
    """`nll` for a likelihood whose last parameter is the library; None is 1."""
    entry, owner = LIKELIHOODS[name], f"{name}_nll"
    given = (*parameters, 1.0 if library is None else library)
    return nll(entry, (owner, *entry.parameters), given, x, weight, mask, entry.chosen(owner, options))


def log_evidence(log_px_z: Tensor, log_pz: Tensor, log_qz_x: Tensor) -> Tensor:
    """The importance-weighted bound log 1/K sum_k p(x|z_k) p(z_k) / q(z_k|x), z_k ~ q(z|x) (Burda et al. 2016).

    Its mean is a lower bound of log p(x) that grows with K; for K = 1 it is the ELBO.

    Arguments:
        log_px_z, log_pz, log_qz_x: [K, B] log-densities in nats; they may broadcast.

    Returns [B] in nats. A column of -inf gives -inf, with gradient 0; one with inf gives inf.
    """
    log_px_z, log_pz, log_qz_x = torch.broadcast_tensors(log_px_z, log_pz, log_qz_x)
    if log_px_z.dim() != 2 or log_px_z.shape[0] == 0:
        raise ValueError(
            f"log_evidence: the log-densities must have shape [K, B] with K > 0, got {list(log_px_z.shape)}"
        )
    return reference.log_evidence(log_px_z, log_pz, log_qz_x)


def _drawn(seed: Tensor | None, device: torch.device) -> Tensor:
    return _latent.draw_seed(device) if seed is None else seed


def _seed(
    owner: str, seed: int | Tensor | None, generator: torch.Generator | None, device: torch.device
) -> Tensor | None:
    """A 0-dim int64 tensor on the device: the user's, or drawn by their generator. None: torch's shall draw it."""
    if seed is None:
        return None if generator is None else _latent.draw_seed(device, generator)
    if generator is not None:
        raise ValueError(f"{owner}: pass seed or generator, not both")
    if hasattr(seed, "__index__") and not isinstance(seed, Tensor):
        return torch.full((), (operator.index(seed) + 2**63) % 2**64 - 2**63, dtype=torch.int64, device=device)
    if not isinstance(seed, Tensor) or seed.dtype != torch.int64 or seed.dim() != 0 or seed.device != device:
        got = f"{seed.dtype} {list(seed.shape)} on {seed.device}" if isinstance(seed, Tensor) else type(seed).__name__
        raise TypeError(f"{owner}: seed must be an int or a 0-dim int64 tensor on {device}, got {got}")
    return seed
