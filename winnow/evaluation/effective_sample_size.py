"""How many independent images a set of grouped ones is worth: crops of one photograph, frames of one burst.

Images of a group are right and wrong together, so that 300 crops of eight photographs tell hardly more than eight
images would. The design effect says by how much their mean varies more than that of independent images; the effective
number of images, their number divided by it, takes the place of the number in a score interval, and Student's t with
the effective number of groups less one the place of the normal quantile (Korn and Graubard 1998, Survey Methodology 24;
Dean and Pagano 2015, Journal of Survey Statistics and Methodology 3, on Wilson's interval).

Where nearly all images are alike there is little to tell by how much groups vary: of no error at all the estimate would
be none. So one imaginary error that a whole group shares is counted with those that were seen: without any error images
are worth as many as there are groups, and each error that stands alone in its group makes them worth more.

With fewer than LEAST_GROUPS groups nothing is known: intervals reach from end to end, and nothing is shown by them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from winnow.errors import MissingExtra

LEAST_GROUPS = 5
"""With fewer, nobody can tell by how much groups vary."""
IMAGINARY = 1.0
"""Images that differ, all of one group, beside those that were seen."""


@dataclass(frozen=True)
class Clusters:
    """Images that lie in groups, of which at least one holds several."""

    numbers_N: NDArray[np.int64]
    """Group of each image, 0 to G - 1."""
    sizes_G: NDArray[np.int64]

    @property
    def groups(self) -> int:
        """Number of groups."""
        return len(self.sizes_G)

    @property
    def typical_size(self) -> float:
        """Size of the group in which an image lies, on average over the images."""
        return float((self.sizes_G**2).sum() / self.sizes_G.sum())

    @property
    def effective_groups(self) -> float:
        """Groups of one size that would tell as much if all images of a group were alike (Kish 1965)."""
        return float(self.sizes_G.sum() / self.typical_size)

    @property
    def too_few(self) -> bool:
        """Whether there are so few groups that no interval can be told."""
        return self.groups < LEAST_GROUPS

    def design_effect(self, values_N: NDArray[np.float64]) -> float:
        """Return by how much the variance of the mean of these values exceeds that of independent images; at least 1.

        Values are right and wrong (1, 0), or what a pair differs by (1, 0, -1).
        """
        deviations_N = values_N - values_N.mean()
        sums_G = np.bincount(self.numbers_N, weights=deviations_N, minlength=self.groups)
        without_G = sums_G / (1 - self.sizes_G / len(values_N))  # the jackknife: means that leave out one group each
        between = float((without_G**2).sum()) * (self.groups - 1) / self.groups
        within = float((deviations_N**2).sum())
        effect = (between + IMAGINARY * self.typical_size) / (within + IMAGINARY)
        return max(1.0, effect)

    def quantile(self, confidence: float) -> float:
        """Return t such that a mean of so many groups is within t standard errors with this probability."""
        try:
            from scipy.stats import t
        except ModuleNotFoundError as error:
            raise MissingExtra("scipy", "report") from error
        return float(t.ppf((1 + confidence) / 2, max(1.0, self.effective_groups - 1)))


def clusters(groups_N: NDArray[np.int64] | None) -> Clusters | None:
    """Return the groups of these images; None where nobody says them, or where each image is one of its own."""
    if groups_N is None or len(groups_N) == 0:
        return None
    _, numbers_N, sizes_G = np.unique(groups_N, return_inverse=True, return_counts=True)
    if len(sizes_G) == len(groups_N):
        return None
    return Clusters(numbers_N.reshape(-1).astype(np.int64), sizes_G.astype(np.int64))


def in_groups(groups: float | None) -> str:
    """Return " in 8 groups", to stand behind a number of images; empty where nobody groups them."""
    return "" if groups is None else f" in {groups:,.0f} groups"
