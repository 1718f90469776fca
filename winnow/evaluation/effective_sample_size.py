"""The effective number of images in groups, such as crops of one photograph or frames of one burst.

Images of a group tend to be right or wrong together, so 300 crops of eight photographs contain little more information
than eight images. The design effect is the factor by which the variance of their mean exceeds that of independent
images. The effective number of images, their number divided by it, replaces the number in a score interval, and
Student's t with the effective number of groups minus one replaces the normal quantile (Korn and Graubard 1998, Survey
Methodology 24; Dean and Pagano 2015, Journal of Survey Statistics and Methodology 3, for Wilson's interval).

If nearly all images have the same result, the variance between groups can hardly be estimated; without any error the
estimate would be zero. So one imaginary error shared by a whole group is added: without any error images are worth as
many as there are groups, and each error that is alone in its group makes them worth more.

With fewer than MIN_GROUPS groups no estimate is possible: intervals cover the full range and prove nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from winnow.errors import MissingExtra

MIN_GROUPS = 5
"""Fewest groups from which the variance between groups can be estimated."""
IMAGINARY_ERRORS = 1.0
"""Imaginary errors, all in one group, added to the observed ones."""


@dataclass(frozen=True)
class ImageGroups:
    """Images in groups, at least one of which holds several."""

    numbers_N: NDArray[np.int64]
    """Group of each image, 0 to G - 1."""
    sizes_G: NDArray[np.int64]

    @property
    def groups(self) -> int:
        """The number of groups."""
        return len(self.sizes_G)

    @property
    def typical_size(self) -> float:
        """The size of an image's group, averaged over images."""
        return float((self.sizes_G**2).sum() / self.sizes_G.sum())

    @property
    def effective_groups(self) -> float:
        """The number of equal groups with the same information if all images of a group were equal (Kish 1965)."""
        return float(self.sizes_G.sum() / self.typical_size)

    @property
    def too_few(self) -> bool:
        """True if there are too few groups for an interval."""
        return self.groups < MIN_GROUPS

    def design_effect(self, values_N: NDArray[np.float64]) -> float:
        """Return the variance of the mean of these values relative to that of independent images; at least 1.

        Values are 1 or 0 for correct or wrong, or the difference of a pair (1, 0, -1).
        """
        deviations_N = values_N - values_N.mean()
        sums_G = np.bincount(self.numbers_N, weights=deviations_N, minlength=self.groups)
        without_G = sums_G / (1 - self.sizes_G / len(values_N))  # jackknife: leave out one group at a time
        between = float((without_G**2).sum()) * (self.groups - 1) / self.groups
        within = float((deviations_N**2).sum())
        effect = (between + IMAGINARY_ERRORS * self.typical_size) / (within + IMAGINARY_ERRORS)
        return max(1.0, effect)

    def quantile(self, confidence: float) -> float:
        """Return t such that a mean of so many groups is within t standard errors with this probability."""
        try:
            from scipy.stats import t
        except ModuleNotFoundError as error:
            raise MissingExtra("scipy", "report") from error
        return float(t.ppf((1 + confidence) / 2, max(1.0, self.effective_groups - 1)))


def image_groups(groups_N: NDArray[np.int64] | None) -> ImageGroups | None:
    """Return the groups of these images; None if groups are unknown, or every image is a group of its own."""
    if groups_N is None or len(groups_N) == 0:
        return None
    _, numbers_N, sizes_G = np.unique(groups_N, return_inverse=True, return_counts=True)
    if len(sizes_G) == len(groups_N):
        return None
    return ImageGroups(numbers_N.reshape(-1).astype(np.int64), sizes_G.astype(np.int64))


def in_groups(groups: float | None) -> str:
    """Return " in 8 groups" to follow a number of images; empty if groups are unknown."""
    return "" if groups is None else f" in {groups:,.0f} groups"
