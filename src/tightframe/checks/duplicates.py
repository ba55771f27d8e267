"""Images that are there twice: the same bytes, or one image saved again, resized, mirrored or cropped a little.

Two steps, both on thumbnails, neither on a model. *Candidates*: the low frequencies of the cosine transform, which is
what pHash takes the signs of; here they are kept as numbers and whitened over the dataset, so that what all images
share (a cell in the middle, a white table) makes none of them alike. Mirroring changes the sign of every other one, so
one product of matrices compares all images with all, chunk by chunk, and another one with all mirrored. *Verification*:
the two thumbnails are laid over each other (scale and shift on either axis, by Gauss and Newton), and their details
are correlated. Two photographs of one thing agree in what is coarse; in details only copies agree.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from tightframe.checks.looks import SIDE

FREQUENCIES = 9
NEIGHBORS = 5
"""Most candidates for each image."""
CANDIDATE = 0.5
"""Cosine of descriptors from which a pair is looked at closely."""
ROUGHLY = 0.8
"""Correlation of what is coarse, once laid over each other, from which details are compared."""
SAME, WORST = 0.92, 0.7
"""Correlation of details from which two images are one: of all, and of those in the worst of nine tiles."""
FAINT = 0.02
"""Share of the details that a tile must have to be asked."""
LARGEST_CHANGE, LARGEST_SKEW = 0.12, 0.06
"""Of scale and place (where the image is 2 wide), as cropping a little changes them, and between the two scales."""
COARSE = 24
"""Pixels of the shorter side below which a copy has lost the finer details that are compared otherwise."""
STARTS = (1.0, 0.95, 1.05)
"""Scales from which the best one is looked for."""
LEAST = 16
"""Pixels of the shorter side below which no copy can be told from a likeness."""
PRIOR = 30
"""Images whose weight the usual spectrum of photographs has in whitening."""
BLANK = 2.0
"""Standard deviation of gray levels below which an image shows nothing to compare."""
CHUNK = 1024
STEPS = 6


class Pair(NamedTuple):
    """Two images that are one: ``first`` < ``second``, how alike (1 at most), and whether one mirrors the other."""

    first: int
    second: int
    likeness: float
    mirrored: bool


def identical(digests: Sequence[str]) -> list[tuple[int, ...]]:
    """Groups of images with the same contents, by index."""
    groups: dict[str, list[int]] = {}
    for index, digest in enumerate(digests):
        groups.setdefault(digest, []).append(index)
    return [tuple(group) for group in groups.values() if len(group) > 1]


def near_duplicates(thumbnails: np.ndarray, sizes: np.ndarray | None = None) -> list[Pair]:
    """Pairs of ``thumbnails`` (n, SIDE, SIDE) that show one image, the most alike first.

    Memory grows with n, time with n² at a fiftieth of what comparing all pixels of thumbnails would take.

    Args:
        thumbnails: gray bytes.
        sizes: width and height (n, 2) of the images, 0 if unknown: of small ones coarser details are compared, and
            tiny ones are left out.
    """
    sides = np.full(len(thumbnails), SIDE) if sizes is None else np.where(sizes.min(1) > 0, sizes.min(1), SIDE)
    shown = np.flatnonzero((thumbnails.std((1, 2)) >= BLANK) & (sides >= LEAST))
    gray = torch.from_numpy(thumbnails[shown])
    small = torch.from_numpy(sides[shown] < COARSE)
    best: dict[tuple[int, int], Pair] = {}
    for chunk in _candidates(descriptors(gray)).split(CHUNK):
        first, second, mirrored = chunk.T
        other = gray[second].float()
        other = torch.where(mirrored[:, None, None] > 0, other.flip(2), other)
        likeness = _likeness(gray[first].float(), other, small[first] | small[second])
        for (low, high, flip), value in zip(chunk.tolist(), likeness.tolist(), strict=True):
            pair = Pair(int(shown[low]), int(shown[high]), value, bool(flip))
            known = best.get(pair[:2])
            if value >= SAME and (known is None or known.likeness < value):
                best[pair.first, pair.second] = pair
    return sorted(best.values(), key=lambda one: (-one.likeness, one.first, one.second))


def descriptors(gray: Tensor) -> Tensor:
    """Whitened low frequencies (n, FREQUENCIES² − 1) of length 1, and with them the sign that mirroring gives each."""
    place, frequency = torch.arange(SIDE) + 0.5, torch.arange(FREQUENCIES)
    waves = torch.cos(torch.pi / SIDE * frequency[:, None] * place[None])
    parts = [torch.einsum("fy,nyx,gx->nfg", waves, chunk.float(), waves) for chunk in gray.split(CHUNK)]
    spectrum = torch.cat(parts) if parts else torch.zeros(0, FREQUENCIES, FREQUENCIES)
    count = max(len(spectrum), 1)
    odd = frequency % 2 == 1
    mean = torch.where(odd[None], torch.zeros(()), spectrum.sum(0) / count)  # as if every image came mirrored, too
    mean = mean * count / (count + PRIOR)
    power = (spectrum - mean).square().sum(0) / count
    usual = 1 / (1 + frequency[:, None] ** 2 + frequency[None] ** 2)
    usual = usual * (power.flatten()[1:].sum() / usual.flatten()[1:].sum())
    spread = ((count * power + PRIOR * usual) / (count + PRIOR)).sqrt()
    white = ((spectrum - mean) / spread.clamp(min=1e-6)).flatten(1)[:, 1:]
    return functional.normalize(white, dim=1)


def joined(pairs: Sequence[tuple[int, int]], count: int) -> list[tuple[int, ...]]:
    """Groups of the images 0 … count − 1 that ``pairs`` connect."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    first, second = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    graph = coo_array((np.ones(len(first)), (first, second)), shape=(count, count))
    _, group = connected_components(graph, directed=False)
    order = np.argsort(group, kind="stable")
    ends = [0, *(np.flatnonzero(np.diff(group[order])) + 1), count]
    return [tuple(order[a:b].tolist()) for a, b in pairwise(ends) if b - a > 1]


def _candidates(descriptors: Tensor) -> Tensor:
    """Pairs to look at closely, (m, 3): first < second, and whether mirrored."""
    sign = torch.where(torch.arange(FREQUENCIES) % 2 == 1, -1.0, 1.0).repeat(FREQUENCIES)[1:]
    found = [torch.zeros(0, 3, dtype=torch.int64)]
    for rows in torch.arange(len(descriptors)).split(CHUNK // 4):
        chunk = descriptors[rows]
        for mirrored, compared in enumerate((chunk, chunk * sign)):
            likeness = compared @ descriptors.T
            likeness[torch.arange(len(rows)), rows] = -1
            value, second = likeness.topk(min(NEIGHBORS, len(descriptors)), 1)
            near = value >= CANDIDATE
            first, second = rows[:, None].expand_as(second)[near], second[near]
            low, high = torch.minimum(first, second), torch.maximum(first, second)
            found.append(torch.stack([low, high, torch.full_like(low, mirrored)], 1))
    return torch.cat(found).unique(dim=0)


def _likeness(first: Tensor, second: Tensor, small: Tensor) -> Tensor:
    """Correlation (m,) of the details of thumbnails (m, SIDE, SIDE) laid over each other; 0 where they don't fit.

    ``small`` (m,) says for which only coarser details are compared.
    """
    likeness = torch.zeros(len(first))
    moved, rough = _roughly(first, second)
    left = torch.where(rough >= ROUGHLY)[0]
    first, second, moved, small = first[left], second[left], moved[left], small[left]
    for narrow, wide, chosen in ((1.0, 3.0, ~small), (2.0, 5.0, small)):
        if bool(chosen.any()):
            value = _agreement(first[chosen], second[chosen], moved[chosen], narrow, wide)
            likeness[left[chosen]] = value
    return likeness


def _roughly(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Stretch and shift (m, 4) under which the halved thumbnails agree best, and their correlation (m,)."""
    first, second = (functional.avg_pool2d(one[:, None], 2)[:, 0] for one in (first, second))
    best, found = torch.full((len(first),), -1.0), torch.zeros(len(first), 4)
    for stretch in STARTS:
        moved = torch.tensor([stretch, stretch, 0.0, 0.0]).repeat(len(first), 1)
        moved = _aligned(_blurred(first, 1.0), _blurred(second, 1.0), moved)
        there, inside = _moved(first[:, None], moved)
        agreed = _correlation(there[:, 0], second, inside)[0]
        found, best = torch.where((agreed > best)[:, None], moved, found), torch.maximum(agreed, best)
    return found, best


def _agreement(first: Tensor, second: Tensor, moved: Tensor, narrow: float, wide: float) -> Tensor:
    """Correlation (m,) of details between two widths; 0 where a tile disagrees or a copy would not be so changed."""
    moved = _aligned(_blurred(first, narrow), _blurred(second, narrow), moved)
    details = [_blurred(one, narrow) - _blurred(one, wide) for one in (first, second)]
    there, inside = _moved(details[0][:, None], moved)
    inside[:, [0, -1]] = inside[:, :, [0, -1]] = 0  # details at the edge are made of what is not there
    whole, tiles = _correlation(there[:, 0], details[1], inside)
    change = (moved - torch.tensor([1.0, 1.0, 0.0, 0.0])).abs().amax(1)
    fits = (tiles.amin(1) >= WORST) & (change < LARGEST_CHANGE) & ((moved[:, 0] - moved[:, 1]).abs() < LARGEST_SKEW)
    return torch.where(fits, whole, torch.zeros(()))


def _correlation(values: Tensor, target: Tensor, inside: Tensor) -> tuple[Tensor, Tensor]:
    """Of maps (m, s, s) where ``inside``: in all (m,) and in nine tiles (m, 9), 1 in those with next to nothing."""
    left, right, _ = _matched(values, target, inside)

    def summed(product: Tensor) -> Tensor:
        return functional.avg_pool2d((product * inside)[:, None], values.shape[-1] // 3)[:, 0].flatten(1)

    both, mine, theirs = summed(left * right), summed(left.square()), summed(right.square())
    told = torch.maximum(mine, theirs)
    tiles = torch.where(told >= FAINT * told.sum(1, keepdim=True), both / (mine * theirs).sqrt().clamp(min=1e-6), 1.0)
    return both.sum(1) / (mine.sum(1) * theirs.sum(1)).sqrt().clamp(min=1e-6), tiles


def _aligned(first: Tensor, second: Tensor, moved: Tensor) -> Tensor:
    """Stretch and shift (m, 4) under which ``first`` is nearest to ``second``, by Gauss and Newton from ``moved``."""
    side = first.shape[-1]
    across = torch.linspace(-1, 1, side)
    down_slope, slope = torch.gradient(first, spacing=2 / (side - 1), dim=(1, 2))
    maps = torch.stack([first, slope, down_slope], 1)
    usual = torch.tensor([1.0, 1.0, 0.0, 0.0])
    for _ in range(STEPS):
        there, inside = _moved(maps, moved)
        values, right, down = there.unbind(1)
        values, target, scale = _matched(values, second, inside)
        ways = torch.stack([right * across, down * across[:, None], right, down], 1)
        ways = (ways / scale[:, None] * inside[:, None]).flatten(2)
        system = ways @ ways.mT
        system = system + 1e-3 * torch.eye(4) * system.diagonal(dim1=1, dim2=2).sum(1)[:, None, None]
        error = ((target - values) * inside).flatten(1)[:, :, None]
        moved = moved + torch.linalg.solve(system + 1e-6 * torch.eye(4), ways @ error)[:, :, 0]
        moved = usual + (moved - usual).clamp(-LARGEST_CHANGE, LARGEST_CHANGE)
    return moved


def _matched(values: Tensor, target: Tensor, inside: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Both with mean 0 and mean square 1 where ``inside``, and by what the first was divided."""
    count = inside.sum((1, 2), keepdim=True).clamp(min=1)

    def standard(given: Tensor) -> tuple[Tensor, Tensor]:
        centered = given - (given * inside).sum((1, 2), keepdim=True) / count
        scale = ((centered.square() * inside).sum((1, 2), keepdim=True) / count).sqrt().clamp(min=1e-3)
        return centered / scale, scale

    (left, scale), (right, _) = standard(values), standard(target)
    return left, right, scale


def _moved(maps: Tensor, moved: Tensor) -> tuple[Tensor, Tensor]:
    """``maps`` (m, c, s, s) read where ``moved`` says, and where that lies inside of them, (m, s, s)."""
    side = maps.shape[-1]
    across = torch.linspace(-1, 1, side)
    x = across[None] * moved[:, 0:1] + moved[:, 2:3]
    y = across[None] * moved[:, 1:2] + moved[:, 3:4]
    grid = torch.stack([x[:, None, :].expand(-1, side, -1), y[:, :, None].expand(-1, -1, side)], 3)
    there = functional.grid_sample(maps, grid, align_corners=True, padding_mode="border")
    return there, (grid.abs() <= 1 + 1e-6).all(3).float()


def _blurred(gray: Tensor, width: float) -> Tensor:
    reach = int(3 * width)
    bell = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / width) ** 2)
    bell = (bell / bell.sum())[None, None]
    wide = functional.pad(gray[:, None], (reach,) * 4, mode="replicate")
    return functional.conv2d(functional.conv2d(wide, bell[..., None, :]), bell[..., :, None])[:, 0]
