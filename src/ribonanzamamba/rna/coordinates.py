"""Rigid motion: the rotation and translation that lay one set of points onto another.

Knows nothing of atoms, residues or files; points are rows of three numbers.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Superposition(NamedTuple):
    """A rigid motion and how well it fits; unpacks as `rotation, translation, rmsd`."""

    rotation: np.ndarray
    """(3, 3), proper: determinant +1."""
    translation: np.ndarray
    """(3,), in the unit of the points."""
    rmsd: float
    """Root of the weighted mean square distance after the motion, in the unit of the points."""

    def apply(self, coordinates: np.ndarray) -> np.ndarray:
        """Coordinates (..., 3) after the motion; NaN rows stay NaN."""
        return np.asarray(coordinates) @ self.rotation.T + self.translation


def superpose(moving: np.ndarray, fixed: np.ndarray, weights: np.ndarray | None = None) -> Superposition:
    """Motion of `moving` (points, 3) onto `fixed` (points, 3) with the smallest weighted RMSD.

    A row with a NaN in either set is ignored, as is one of weight 0. One or two points, and points on a line, leave
    part of the rotation open: one of the best is returned. Mirror images are never made.

    Args:
        weights: (points,), not negative; equal if None.

    Raises:
        ValueError: shapes that differ, a negative or NaN weight, or no row left.

    Source: Kabsch 1976, Acta Cryst. A32:922; Kabsch 1978, Acta Cryst. A34:827 (the sign of the determinant).

    >>> corner = np.eye(3)
    >>> fit = superpose(corner, corner[:, [1, 2, 0]] + 5.0)
    >>> bool(np.allclose(fit.apply(corner), corner[:, [1, 2, 0]] + 5.0)), round(fit.rmsd, 6)
    (True, 0.0)
    """
    moving = np.asarray(moving, dtype=np.float64)
    fixed = np.asarray(fixed, dtype=np.float64)
    if moving.shape != fixed.shape or moving.ndim != 2 or moving.shape[1] != 3:
        raise ValueError(f"expected two arrays (points, 3), got {moving.shape} and {fixed.shape}")
    weight = np.ones(len(moving)) if weights is None else np.asarray(weights, dtype=np.float64)
    if weight.shape != (len(moving),):
        raise ValueError(f"expected weights ({len(moving)},), got {weight.shape}")
    if not (weight >= 0).all():
        raise ValueError("weights must not be negative or NaN")

    used = np.isfinite(moving).all(axis=1) & np.isfinite(fixed).all(axis=1) & (weight > 0)
    if not used.any():
        raise ValueError("no point has coordinates in both sets and a positive weight")
    share = (weight[used] / weight[used].sum())[:, None]  # points 1
    moving_centre = (share * moving[used]).sum(axis=0)
    fixed_centre = (share * fixed[used]).sum(axis=0)
    moving_centred = moving[used] - moving_centre
    fixed_centred = fixed[used] - fixed_centre

    left, _, right = np.linalg.svd((share * moving_centred).T @ fixed_centred)
    # The last singular direction is the one that costs least to flip, when the best orthogonal matrix is a mirror.
    handedness = np.sign(np.linalg.det(left) * np.linalg.det(right))
    rotation = right.T @ np.diag([1.0, 1.0, handedness]) @ left.T
    # From the distances themselves: the formula with singular values loses half the digits for a small RMSD.
    square = ((moving_centred @ rotation.T - fixed_centred) ** 2).sum(axis=1, keepdims=True)
    rmsd = float(np.sqrt((share * square).sum()))
    return Superposition(rotation, fixed_centre - rotation @ moving_centre, rmsd)
