"""A mixture of discretised logistics (PixelCNN++): p(x) = sum_m pi_m prod_c P(x_c | mean_mc, log_scale_mc), where red
shifts green's mean, and red and green blue's: by tanh(c0) r, and tanh(c1) r + tanh(c2) g, x in [-1, 1].

Kinds of parameters: logits of pi, then for each channel means, log-scales and, of three channels, coefficients. A
component's share w_m is its part of the sum; d/dlogit_m = pi_m - w_m, and w_m times the gradients of its own -log P.
"""

import triton
import triton.language as tl

from vae_fast.kernels.fastmath import LOG2_E, ex2, log, rcp
from vae_fast.kernels.joint import Joint
from vae_fast.kernels.likelihoods.discretized_logistic import level_centre, logistic_bin


@triton.jit
def tanh_slope(c):
    """tanh(c) and its derivative"""
    e = ex2(tl.abs(c) * (-2.0 * LOG2_E))
    inverse = rcp(1.0 + e)
    size = 1.0 - 2.0 * e * inverse
    return tl.where(c < 0, -size, size), 4.0 * e * (inverse * inverse)


@triton.jit
def channel(parameters, kind: tl.constexpr, centre, shift, linear, product, LEVELS: tl.constexpr):
    """A channel's bin: linear and product grown by its own, and its gradients."""
    difference = tl.fma(parameters[kind], 1.0 - LEVELS, centre) - shift
    more, q, by_mean, by_log_scale = logistic_bin(centre, difference, parameters[kind + 1], LEVELS)
    return linear + more, product * (1.0 + q), by_mean, by_log_scale


@triton.jit
def mixture(parameters, x, component, OPTIONS: tl.constexpr):
    """pi_m P_m is e^score / product: score, the logit less what its bins' -log P have in common with a line, product of
    the 1 + q of its bins. The one logarithm is the sum's."""
    LEVELS: tl.constexpr = OPTIONS[1]
    WIDTH: tl.constexpr = 1.0 / (OPTIONS[1] - 1.0)
    logit = parameters[0]
    red = level_centre(x[0], LEVELS, OPTIONS[2], OPTIONS[3])
    linear, product, mean, log_scale = channel(parameters, 1, red, 0.0, 0.0, 1.0, LEVELS)
    found = (mean, log_scale)
    if len(x) == 3:
        green = level_centre(x[1], LEVELS, OPTIONS[2], OPTIONS[3])
        blue = level_centre(x[2], LEVELS, OPTIONS[2], OPTIONS[3])
        c0, slope0 = tanh_slope(parameters[3])
        c1, slope1 = tanh_slope(parameters[6])
        c2, slope2 = tanh_slope(parameters[9])
        linear, product, green_mean, green_scale = channel(parameters, 4, green, c0 * red, linear, product, LEVELS)
        shift = c1 * red + c2 * green
        linear, product, blue_mean, blue_scale = channel(parameters, 7, blue, shift, linear, product, LEVELS)
        by_green, by_blue = green_mean * WIDTH, blue_mean * WIDTH
        found = (
            mean, log_scale, by_green * red * slope0,
            green_mean, green_scale, by_blue * red * slope1,
            blue_mean, blue_scale, by_blue * green * slope2,
        )  # fmt: skip
    score = logit - linear
    top, top_logit = tl.max(score, 1)[:, None], tl.max(logit, 1)[:, None]
    weight = ex2((score - top) * LOG2_E) * rcp(product)
    prior = ex2((logit - top_logit) * LOG2_E)
    total, total_prior = tl.sum(weight, 1)[:, None], tl.sum(prior, 1)[:, None]
    inverse = rcp(total)
    share = weight * inverse
    gradients = (prior * rcp(total_prior) - share,)
    for k in tl.static_range(len(found)):
        gradients = gradients + (found[k] * share,)
    return (top_logit - top) + log(total_prior * inverse), gradients


DISCRETIZED_LOGISTIC_MIXTURE = Joint(mixture, kinds={1: 3, 3: 10}, elements=1, threads=256)
