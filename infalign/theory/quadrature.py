"""Numerical integration over the calibrated reward u in (0, 1), sharp near both ends.

With u = 1 / (1 + exp(-x)) the features of best-of-N, worst-of-N and of strongly
tilted densities have widths of order one in x wherever they lie; Gauss-Legendre
panels in x then integrate them to about 1e-12, and an integration matrix per
panel gives running integrals at the nodes themselves.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from infalign.theory.checks import FloatArray

NODES_PER_PANEL = 8
REACH = 36.0  # u and 1 - u fall to 2e-16 there
FINE_REACH = 16.0  # where densities within the supported KL range can be steep


@dataclass(frozen=True, eq=False)
class Grid:
    """Quadrature nodes, all arrays (panels, nodes per panel).

    Attributes:
        u: nodes, ascending when read row by row.
        v: 1 - u, kept apart so that it stays exact near u = 1.
        weights: integrate over u.
        jacobian: du/dx = u (1 - u).
        left, right: (nodes, nodes), integrals from a panel's left end to each node, and from
            there to its right end, of what is tabulated in x on (-1, 1).
        half_width: (panels, 1), in x.
    """

    u: FloatArray
    v: FloatArray
    weights: FloatArray
    jacobian: FloatArray
    left: FloatArray
    right: FloatArray
    half_width: FloatArray

    def integrate(self, values: FloatArray) -> float:
        """The integral of `values` over (0, 1)."""
        return float(np.sum(self.weights * values))

    def from_left(self, values: FloatArray) -> FloatArray:
        """Running integral from 0 to each node."""
        scaled = values * self.jacobian * self.half_width
        inside = scaled @ self.left.T
        panels = np.sum(values * self.weights, axis=1)
        before = np.concatenate([[0.0], np.cumsum(panels)[:-1]])
        return before[:, None] + inside

    def from_right(self, values: FloatArray) -> FloatArray:
        """Running integral from each node to 1."""
        scaled = values * self.jacobian * self.half_width
        inside = scaled @ self.right.T
        panels = np.sum(values * self.weights, axis=1)
        after = np.concatenate([np.cumsum(panels[::-1])[-2::-1], [0.0]])
        return after[:, None] + inside

    def log_from_right(self, log_values: FloatArray) -> FloatArray:
        """log of the integral from each node to 1 of exp(log_values), without underflow."""
        top = np.max(log_values, axis=1, keepdims=True)
        top = np.where(np.isfinite(top), top, 0.0)
        values = np.exp(log_values - top)
        panels = np.sum(values * self.weights, axis=1)
        with np.errstate(divide="ignore"):
            log_panels = np.log(panels) + top[:, 0]
            running = np.logaddexp.accumulate(log_panels[::-1])[::-1]
            after = np.concatenate([running[1:], [-np.inf]])[:, None]
            inside = (values * self.jacobian * self.half_width) @ self.right.T
            # Interpolation may dip below zero where values fall steeply inside one panel.
            log_inside = np.log(np.maximum(inside, 0.0)) + top
        return np.logaddexp(after, log_inside)


@lru_cache(maxsize=16)
def grid(panel_width: float = 0.25, reach: float = REACH) -> Grid:
    """Build the grid for a steepness and a reach, both in x.

    Args:
        panel_width: of the central panels.
        reach: of the upper end, where 1 - u falls to exp(-reach).
    """
    fine = np.linspace(-FINE_REACH, FINE_REACH, int(np.ceil(2 * FINE_REACH / panel_width)) + 1)
    below, above = (np.arange(FINE_REACH, end + 0.25, 0.5) for end in (REACH, reach))
    edges = np.concatenate([-below[:0:-1], fine, above[1:]])
    points, gauss = np.polynomial.legendre.leggauss(NODES_PER_PANEL)
    half = np.diff(edges)[:, None] / 2
    x = (edges[:-1, None] + half) + half * points
    u, v = _logistic(x), _logistic(-x)
    left = _running_matrix(points)
    return Grid(u, v, gauss * half * u * v, u * v, left, gauss - left, half)


def _logistic(x: FloatArray) -> FloatArray:
    return np.exp(-np.logaddexp(0.0, -x))


def _running_matrix(points: FloatArray) -> FloatArray:
    """Matrix whose row i integrates the interpolating polynomial from -1 to point i."""
    size = len(points)
    legendre = np.polynomial.legendre
    coefficients = np.linalg.inv(legendre.legvander(points, size - 1))
    rows = [legendre.legint(column, lbnd=-1) for column in coefficients.T]
    return np.stack([legendre.legval(points, row) for row in rows], axis=1)
