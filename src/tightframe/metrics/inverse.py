"""The inverse of a Gram matrix that is known up to noise: see ``correction``, step 2."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Float64
from torch import Tensor

ROUNDS = 100
"""Newton steps after which an inverse counts as not identifiable, and steps of conjugate gradients; ten are usual."""
LEAP = 0.9
"""Share of an inverse's inverse that one Newton step may take away in any direction."""
PRECISION = 1e-8
"""Relative change of an inverse in one Newton step at which it counts as found."""
INNER = 1e-10
"""Relative residual at which conjugate gradients stop."""
ROUGH = 1e-3
"""Residual, too, that is enough for a Newton step: the next one makes up for it."""
HUGE = 1e12
EDGE = 0.7
"""Share ρ/(1+ρ) of its largest possible value that noise may reach in an inverse that still counts as identifiable."""


@dataclass(frozen=True, eq=False)
class Noisy:
    """A symmetric matrix G known up to noise E with E[E X E] = ``energy(X)``."""

    gram: Float64[Tensor, "r r"]
    along: Float64[Tensor, "r r"]
    """H: covariance of the noise on the long side, seen from the signal."""
    across: Float64[Tensor, "r r"]
    """D: covariance of the noise on the short side."""
    second: float
    """t₂: squared norm of the noise's covariance on the long side."""

    @cached_property
    def half(self) -> Float64[Tensor, "r r"]:
        """A = H + t₂/2 · D, of which and of D alone the energy is made."""
        return self.along + self.second / 2 * self.across

    def energy(self, x: Tensor) -> Tensor:
        """Ξ[x] = tr(Dx) A + tr(Ax) D + terms a factor 1/K smaller, A x D and its transpose."""
        cross = self.half @ x @ self.across
        return (self.across * x).sum() * self.half + (self.half * x).sum() * self.across + cross + cross.T

    def plus(self, ridge: float) -> Noisy:
        """The same with ``ridge`` added to the eigenvalues of G."""
        return replace(self, gram=self.gram + ridge * torch.eye(len(self.gram)).to(self.gram))


class Inverse(NamedTuple):
    """Q = RᵀR, the estimate of G⁻¹, by its root R, and ρ, by how much noise in G is enlarged."""

    root: Float64[Tensor, "r r"]
    gain: float

    @property
    def matrix(self) -> Float64[Tensor, "r r"]:
        """Q."""
        return self.root.T @ self.root

    @property
    def known(self) -> bool:
        """Whether G⁻¹ is identifiable."""
        return self.gain / (1 + self.gain) <= EDGE


def inverted(noisy: Noisy) -> Inverse:
    """Solve Q⁻¹ = G + Ξ[Q] from above, by Newton steps that leave at least a tenth of Q⁻¹ in every direction."""
    unit = torch.eye(len(noisy.gram)).to(noisy.gram)
    size = norm(noisy.gram) + norm(noisy.energy(unit)) ** 0.5
    current, found = size * unit, False
    for _ in range(ROUNDS):
        root = torch.linalg.solve_triangular(torch.linalg.cholesky(current), unit, upper=False)
        inverse = root.T @ root
        if found:
            return Inverse(root, norm(noisy.energy(inverse @ inverse)))
        step = balanced(noisy, root, noisy.gram + noisy.energy(inverse) - current, ROUGH)
        while int(torch.linalg.cholesky_ex(LEAP * current + step).info):
            step = step / 2
        current = current + step
        found = float(step.norm()) <= PRECISION * size
    return Inverse(root, HUGE)


def balanced(
    noisy: Noisy, root: Float64[Tensor, "r r"], moved: Float64[Tensor, "r r"], least: float = INNER
) -> Float64[Tensor, "r r"]:
    """X with X + Ξ[Q X Q] = ``moved``, Q = RᵀR: how far Q⁻¹ moves as G does, up to a relative residual of ``least``.

    By conjugate gradients on Z = R X Rᵀ, in terms of which the operator is symmetric. R is taken into A and D once.
    """
    turned = replace(noisy, along=root @ noisy.along @ root.T, across=root @ noisy.across @ root.T)
    residual = direction = root @ moved @ root.T
    found, square = torch.zeros_like(moved), float(residual.square().sum())
    enough = least**2 * square
    for _ in range(ROUNDS):
        if square <= enough:
            break
        image = direction + turned.energy(direction)
        curvature = float((direction * image).sum())
        if curvature <= 0:
            break
        size = square / curvature
        found, residual = found + size * direction, residual - size * image
        before, square = square, float(residual.square().sum())
        direction = residual + square / before * direction
    half = torch.linalg.solve_triangular(root, found, upper=False)
    found = torch.linalg.solve_triangular(root, half.T, upper=False)
    return (found + found.T) / 2


def norm(matrix: Float64[Tensor, "r r"]) -> float:
    """Spectral norm of a symmetric matrix."""
    return float(torch.linalg.eigvalsh(matrix).abs().max())
