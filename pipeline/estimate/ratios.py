"""Estimates from samples, each with how far off it may be.

    ratio        y per x over clusters drawn at equal probability: documents per byte, from blocks
    sorted_mean  a mean from every k-th of a list that is sorted by what explains most of it

Sources: the ratio estimator and its linearized variance (Cochran, Sampling Techniques, 3rd edition,
chapter 6); for systematic samples the variance from successive differences (Wolter, Introduction to
Variance Estimation, 2nd edition, chapter 8, estimator v2). Bounds are 1.96 standard errors, 95 % if
errors are about normal.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

_Z95 = 1.96


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value, and half of the width of its 95 % interval; 0 where it was counted."""

    value: float
    plus_minus: float = 0.0

    @property
    def relative(self) -> float:
        """`plus_minus` as a share of the value; 0 of nothing."""
        return abs(self.plus_minus / self.value) if self.value else 0.0

    def __add__(self, other: Estimate) -> Estimate:
        """The sum of two that err independently."""
        return Estimate(self.value + other.value, math.hypot(self.plus_minus, other.plus_minus))

    def __mul__(self, other: Estimate | float) -> Estimate:
        """The product of two that err independently, to first order."""
        if not isinstance(other, Estimate):
            return Estimate(self.value * other, self.plus_minus * abs(other))
        value = self.value * other.value
        return Estimate(value, abs(value) * math.hypot(self.relative, other.relative))


def ratio(ys: npt.ArrayLike, xs: npt.ArrayLike, sampled_share: float) -> Estimate:
    """Sum of y over sum of x, from clusters drawn at equal probability.

    Args:
        ys, xs: of each cluster.
        sampled_share: of all clusters, in (0, 1]; at 1 nothing is left to chance.
    """
    y, x = np.asarray(ys, float), np.asarray(xs, float)
    if not x.sum():
        return Estimate(0.0)
    found = float(y.sum() / x.sum())
    if sampled_share >= 1:
        return Estimate(found)
    if len(y) < 2:
        return Estimate(found, found)  # one cluster tells nothing of how they differ
    residuals = y - found * x
    variance = (1 - sampled_share) * len(y) / (len(y) - 1) * float(residuals @ residuals)
    return Estimate(found, _Z95 * math.sqrt(variance) / float(x.sum()))


def sorted_mean(values: npt.ArrayLike, sampled_share: float) -> Estimate:
    """The mean of a list, from every k-th of it; successive values differ little, and so does the mean.

    Args:
        values: in the order of the list.
        sampled_share: of the list, in (0, 1].
    """
    y = np.asarray(values, float)
    if not len(y):
        return Estimate(0.0)
    mean = float(y.mean())
    if sampled_share >= 1:
        return Estimate(mean)
    if len(y) < 2:
        return Estimate(mean, abs(mean))
    steps = np.diff(y)
    variance = (1 - sampled_share) * float(steps @ steps) / (2 * len(y) * (len(y) - 1))
    return Estimate(mean, _Z95 * math.sqrt(variance))


def every_kth(weights: npt.ArrayLike, num: int, offset: float) -> npt.NDArray[np.int64]:
    """Indices of a systematic sample: each is drawn with probability proportional to its weight.

    Args:
        weights: of the list's entries, in its order; one above the step is drawn more than once.
        num: how many to draw; all, once each, if there are not more.
        offset: where in the first step to begin, in [0, 1).
    """
    w = np.asarray(weights, float)
    if num >= len(w):
        return np.arange(len(w))
    edges = np.cumsum(w)
    places = np.searchsorted(edges, (np.arange(num) + offset) * edges[-1] / num, side="right")
    chosen: npt.NDArray[np.int64] = np.minimum(places, len(w) - 1).astype(np.int64)
    return chosen
