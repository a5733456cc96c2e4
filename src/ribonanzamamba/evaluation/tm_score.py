"""TM-score of an RNA: the best superposition of a prediction onto a reference, and the score it reaches.

Residues correspond by index. Knows nothing of files, sequences or alignments.
"""

from __future__ import annotations

from itertools import combinations
from math import comb

import numpy as np

from ribonanzamamba.rna.coordinates import Superposition

SHORT_DISTANCE_SCALES = ((12, 0.3), (16, 0.4), (20, 0.5), (24, 0.6), (30, 0.7))
"""Below this many residues, d0 in angstrom. Source: Kaggle, Stanford RNA 3D Folding, evaluation; Gong et al. 2019,
Bioinformatics 35:4459 (RNA-align)."""

SMALLEST_FRAGMENT = 4
"""Residues of the shortest seed. Source: Zhang & Skolnick 2004, Proteins 57:702, "Structure comparison"."""
SEARCH_RADIUS = (4.5, 8.0)
"""Angstrom: d0 is clipped to it when residues are chosen for the next superposition. Source: TMscore.cpp, d0_search."""
SEEDS_PER_FRAGMENT_LENGTH = 160
"""Starting places of one length; more are thinned evenly."""
TRIPLES = 600
"""Seeds of three residues anywhere: with d0 below about 2 angstrom (up to 60 residues) the best superposition may lay a
few scattered residues exactly, which no fragment finds. Those whose triangles agree best are taken."""
TRIPLES_COMPARED = 20_000
"""Triangles compared for that; of more a fixed random sample."""
FEW_POINTS = 30
"""Up to this many, seeds that lean to a residue or two are tried as well."""
LEAN = 0.1
"""Weight of the other residues in a seed that leans to one."""
SEARCH_STEPS = 20
"""Superpositions on the residues within the search radius. Source: Zhang & Skolnick 2004."""
TRIAL_STEPS = 2
"""Weighted superpositions of every candidate before the best are chosen."""
SURVIVORS = 24
"""Candidates that climb until nothing changes."""
CLIMB_STEPS = 200
CLIMB_TOLERANCE = 1e-6
"""A climb ends when the score of no candidate grows by more than this in a step."""


def tm_distance_scale(length: int) -> float:
    """d0 in angstrom of a reference with `length` resolved residues.

    >>> tm_distance_scale(11), tm_distance_scale(29), round(tm_distance_scale(100), 4)
    (0.3, 0.7, 3.485)
    """
    for below, scale in SHORT_DISTANCE_SCALES:
        if length < below:
            return scale
    return 0.6 * (length - 0.5) ** 0.5 - 2.5


def tm_score(predicted: np.ndarray, reference: np.ndarray) -> float:
    """TM-score of `predicted` (length, 3) against `reference` (length, 3), both in angstrom, from 0 to 1.

    TM = max over superpositions of (1/Lref) sum 1/(1 + (d_i/d0)^2), with Lref the residues that the reference has;
    those it lacks (NaN) are ignored, those that the prediction lacks add 0.

    Raises:
        ValueError: shapes that differ, or a reference without any residue.

    Source: Zhang & Skolnick 2004, Proteins 57:702, eq. 1; d0 of RNA as in `tm_distance_scale`.

    >>> helix = np.array([[9 * np.cos(0.57 * k), 9 * np.sin(0.57 * k), 2.8 * k] for k in range(40)])
    >>> round(tm_score(helix[:, [1, 2, 0]] + 10.0, helix), 6), tm_score(helix * [1, 1, -1], helix) < 0.5
    (1.0, True)
    """
    return tm_superposition(predicted, reference)[0]


def tm_superposition(predicted: np.ndarray, reference: np.ndarray) -> tuple[float, Superposition]:
    """TM-score as `tm_score`, and the motion of `predicted` that reaches it.

    The motion's `rmsd` is over all residues that both sides have (NaN where they share none).

    Fragments at many places, from all residues down to four, are superposed; from each, two ways lead uphill:
    superposing again the residues that lie within a radius, until these stay the same (as TM-score does), and
    superposing all residues with the weight 1/(1 + (d/d0)^2)^2, which never lowers the score: in d^2 each term is
    convex, so it lies above the tangent that the weighted superposition makes as large as possible.
    """
    predicted, reference = np.asarray(predicted, dtype=np.float64), np.asarray(reference, dtype=np.float64)
    if predicted.shape != reference.shape or reference.ndim != 2 or reference.shape[1] != 3:
        raise ValueError(f"expected two arrays (length, 3), got {predicted.shape} and {reference.shape}")
    resolved = np.isfinite(reference).all(axis=1)
    n_reference = int(resolved.sum())
    if n_reference == 0:
        raise ValueError("the reference has no resolved residue")
    used = resolved & np.isfinite(predicted).all(axis=1)
    if not used.any():
        return 0.0, Superposition(np.eye(3), np.zeros(3), float("nan"))

    moving, fixed = predicted[used], reference[used]
    # the median stays in the middle of the RNA where a residue was placed far away
    moving_centre, fixed_centre = np.median(moving, axis=0), np.median(fixed, axis=0)
    search = _Search(moving - moving_centre, fixed - fixed_centre, tm_distance_scale(n_reference))
    total, rotation, shift = search.best()
    translation = shift + fixed_centre - rotation @ moving_centre
    square = ((moving @ rotation.T + translation - fixed) ** 2).sum(axis=1)
    return total / n_reference, Superposition(rotation, translation, float(np.sqrt(square.mean())))


class _Search:
    """Superpositions of many candidates at once, on two centred sets of points (points, 3).

    The squared distance of a point after a motion is linear in 16 numbers of that point (the products of its two
    places, the two places, 1), and so are the sums a superposition needs: both are one matrix product.
    """

    def __init__(self, moving: np.ndarray, fixed: np.ndarray, scale: float) -> None:
        self.scale = scale
        products = (fixed[:, :, None] * moving[:, None, :]).reshape(-1, 9)
        self.features = np.concatenate([products, moving, fixed, np.ones((len(moving), 1))], axis=1)  # points 16
        self.square = (moving**2).sum(axis=1) + (fixed**2).sum(axis=1)  # points

    @property
    def points(self) -> int:
        return len(self.square)

    def best(self) -> tuple[float, np.ndarray, np.ndarray]:
        """Largest sum of 1/(1 + (d/d0)^2) found, with its rotation (3, 3) and translation (3,)."""
        fragments = self.superpose(self.fragments())
        others = self.superpose(np.concatenate([self.triples(), self.leaning()]))
        motions = self.climb(np.concatenate([fragments, self.settle(fragments), others]), TRIAL_STEPS)
        scores = self.scores(motions)
        motions = self.climb(motions[np.argsort(-scores, kind="stable")[:SURVIVORS]], CLIMB_STEPS)
        scores = self.scores(motions)
        winner = int(scores.argmax())
        return float(scores[winner]), motions[winner, :, :3], motions[winner, :, 3]

    def fragments(self) -> np.ndarray:
        """Weights (candidates, points), 1 at the residues of a fragment of L, L/2, L/4, ..., 4 residues."""
        points, rows, size = self.points, [], self.points
        while True:
            places = points - size + 1
            starts = np.unique(np.linspace(0, places - 1, min(places, SEEDS_PER_FRAGMENT_LENGTH)).round().astype(int))
            where = np.arange(points)
            rows.append((where >= starts[:, None]) & (where < starts[:, None] + size))
            if size <= SMALLEST_FRAGMENT:
                break
            size = max(size // 2, SMALLEST_FRAGMENT)
        return np.concatenate(rows).astype(np.float64)

    def triples(self) -> np.ndarray:
        """Weights (candidates, points), 1 at three residues whose triangles are most alike on both sides."""
        points = self.points
        if comb(points, 3) <= TRIPLES_COMPARED:
            triples = np.array(list(combinations(range(points), 3)), dtype=np.int64).reshape(-1, 3)
        else:
            triples = np.random.default_rng(0).integers(0, points, size=(TRIPLES_COMPARED, 3))
            triples = triples[(triples != np.roll(triples, 1, axis=1)).all(axis=1)]
        moving, fixed = self.features[:, 9:12][triples], self.features[:, 12:15][triples]  # triples 3 3
        sides = np.linalg.norm(moving - np.roll(moving, 1, axis=1), axis=2)
        expected = np.linalg.norm(fixed - np.roll(fixed, 1, axis=1), axis=2)
        # a small triangle says little about the rotation, however well it fits
        unlike = np.abs(sides - expected).max(axis=1) / expected.min(axis=1).clip(1e-6)
        chosen = np.argsort(unlike, kind="stable")[:TRIPLES]
        weights = np.zeros((len(chosen), points))
        np.put_along_axis(weights, triples[chosen], 1.0, axis=1)
        return weights

    def leaning(self) -> np.ndarray:
        """Weights (candidates, points) that lean to one residue, or to two of three, for few points.

        Equal weights can balance the errors of two residues so evenly that no climb starts, though laying one of them
        exactly scores more.
        """
        points = self.points
        if points > FEW_POINTS:
            return np.zeros((0, points))
        rows = [np.full((points, points), LEAN) + (1 - LEAN) * np.eye(points)]
        triples = self.triples()
        for place in range(3):
            lighter = triples.copy()
            third = np.nonzero(triples)[1].reshape(-1, 3)[:, place]
            lighter[np.arange(len(triples)), third] = LEAN
            rows.append(lighter)
        return np.concatenate(rows)

    def superpose(self, weights: np.ndarray) -> np.ndarray:
        """Motions (candidates, 3, 4), rotation and translation, that are best under weights (candidates, points)."""
        sums = weights @ self.features
        sums /= sums[:, 15:]
        moving, fixed = sums[:, 9:12], sums[:, 12:15]
        covariance = sums[:, :9].reshape(-1, 3, 3) - fixed[:, :, None] * moving[:, None, :]
        left, _, right = np.linalg.svd(covariance)
        left[:, :, 2] *= np.sign(np.linalg.det(left) * np.linalg.det(right))[:, None]
        rotation = left @ right
        translation = fixed - (rotation @ moving[:, :, None])[:, :, 0]
        return np.concatenate([rotation, translation[:, :, None]], axis=2)

    def square_distances(self, motions: np.ndarray) -> np.ndarray:
        """Squared distances after each motion, (candidates, points)."""
        rotation, translation = motions[:, :, :3], motions[:, :, 3]
        back = np.einsum("cij,ci->cj", rotation, translation)
        coefficients = np.concatenate(
            [
                -2 * rotation.reshape(-1, 9),
                2 * back,
                -2 * translation,
                (translation**2).sum(axis=1, keepdims=True),
            ],
            axis=1,
        )
        return np.maximum(coefficients @ self.features.T + self.square, 0.0)

    def scores(self, motions: np.ndarray) -> np.ndarray:
        """Sums of 1/(1 + (d/d0)^2), (candidates,)."""
        return (1 / (1 + self.square_distances(motions) / self.scale**2)).sum(axis=1)

    def settle(self, motions: np.ndarray) -> np.ndarray:
        """Motions after superposing, again and again, the residues within the search radius (at least three)."""
        radius = np.clip(self.scale, *SEARCH_RADIUS)
        third = min(3, self.points) - 1
        motions = motions.copy()
        moving = np.arange(len(motions))
        before = np.zeros((len(motions), self.points), dtype=bool)
        for _ in range(SEARCH_STEPS):
            square = self.square_distances(motions[moving])
            reach = np.maximum(radius**2, np.partition(square, third, axis=1)[:, third])
            within = square <= reach[:, None]
            changed = (within != before).any(axis=1)
            if not changed.any():
                break
            moving, before = moving[changed], within[changed]
            motions[moving] = self.superpose(before.astype(np.float64))
        return motions

    def climb(self, motions: np.ndarray, steps: int) -> np.ndarray:
        """Motions after weighted superpositions, each of a score at least as high as before."""
        last = np.full(len(motions), -np.inf)
        for _ in range(steps):
            closeness = 1 / (1 + self.square_distances(motions) / self.scale**2)
            scores = closeness.sum(axis=1)
            if (scores - last <= CLIMB_TOLERANCE).all():
                break
            last = scores
            motions = self.superpose(closeness**2)
        return motions
