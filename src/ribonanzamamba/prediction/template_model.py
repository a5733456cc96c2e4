"""Templates to coordinate models: what corresponds is copied, the rest comes from the network, each with a confidence.

Knows nothing of files or of the search that found the templates.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ribonanzamamba.evaluation.coordinate_files import C1_PRIME
from ribonanzamamba.evaluation.metrics import LDDT_INCLUSION_RADIUS, rmsd
from ribonanzamamba.prediction.templates import TemplateHit
from ribonanzamamba.rna.coordinates import superpose

FLANK = 4
"""Copied residues on each side that a piece of the network's model is laid on. With 2 or 8 the scores of
held-out chains differ by 0.003."""
NEIGHBOURS = 2
"""Residues on each side that help to place the atoms a copied residue lacks."""
OWN_WEIGHT = 10.0
"""Weight of a residue's own atoms there, a neighbour's being 1: bonds within a residue hardly change."""
MOST_MODELS = 10
"""Template models that are ranked."""
MOST_TRIED = 40
"""Hits that are tried for it: those too like a better one are dropped."""
DISTINCT = 1.0
"""Angstrom: two template models whose C1' are closer (RMSD) count once. 0.5 and 2 have the same scores."""
CONFORMATIONS = 2
"""Models made from chains of one sequence: as sure as each other, they would leave no place for other templates. 1 to 9
have the same scores."""

WINDOW = 7
"""Residues on each side whose letters count as a residue's local identity."""
COPIED = (-0.42, 0.74, 1.88, -1.04, 0.29)
"""Weights of `copied_quality`: constant, local identity, log(alignment's score / 100), log(residues copied / 50),
log(1 + residues to the next insertion, deletion or end). Fitted by benchmarks/template_confidence.py on clusters of
the training table whose number is no multiple of 20."""
CEILING = 0.85
"""The most that is expected of a copy: chains of almost the same sequence differ. Fitted with the weights."""
BETWEEN = 0.6
"""Distances between a copied and another residue, or between pieces that were laid apart: how many are right, as a
share of the network's pLDDT. Fitted by the same on the other clusters, which the network was not trained on."""
FILLED = 0.8
"""The same of distances among residues that are not copied."""
CELLS = 1_000_000
"""Distances computed at once: some megabytes, however long the RNA."""


@dataclass(frozen=True, eq=False)
class TemplateModel:
    """A coordinate model made from a template."""

    hit: TemplateHit
    coordinates: np.ndarray
    """(length, atom, 3), float32, angstrom, in the template's frame, nothing missing."""
    plddt: np.ndarray
    """(length,), float32, 0 to 100."""


def add_templates(
    hits: Sequence[TemplateHit], coordinates: np.ndarray, plddt: np.ndarray
) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """As many models as before, out of the network's and those made from hits: coordinates, pLDDT, sources.

    The highest mean pLDDT comes first. Where no template is expected to be better, all comes back as it was.

    Args:
        coordinates: the network's models (model, length, atom, 3), angstrom, finite, best first.
        plddt: theirs, (model, length), 0 to 100.
    """
    made = template_models(hits, coordinates[0], plddt[0])
    sources = ("network",) * len(coordinates) + tuple(model.hit.source for model in made)
    if not made:
        return coordinates, plddt, sources
    all_plddt = np.concatenate([plddt, np.stack([model.plddt for model in made])])
    # stable: at equal confidence the network's come first
    best_first = np.argsort(-all_plddt.mean(axis=-1), kind="stable")[: len(coordinates)]
    all_coordinates = np.concatenate([coordinates, np.stack([model.coordinates for model in made])])
    return all_coordinates[best_first], all_plddt[best_first], tuple(sources[index] for index in best_first)


def template_models(hits: Sequence[TemplateHit], network: np.ndarray, plddt: np.ndarray) -> list[TemplateModel]:
    """Models of the first MOST_MODELS hits that differ, in their order, CONFORMATIONS of one sequence at most.

    Args:
        network: the network's best model (length, atom, 3), angstrom, finite.
        plddt: its confidence (length,), 0 to 100.
    """
    models: list[TemplateModel] = []
    made: Counter[str] = Counter()
    for hit in hits[:MOST_TRIED]:
        if made[hit.chain.sequence] == CONFORMATIONS:
            continue
        coordinates = build_model(hit, network).astype(np.float32)
        c1_prime = coordinates[:, C1_PRIME]
        if all(rmsd(c1_prime, other.coordinates[:, C1_PRIME]) >= DISTINCT for other in models):
            models.append(TemplateModel(hit, coordinates, predict_lddt(hit, c1_prime, plddt).astype(np.float32)))
            made[hit.chain.sequence] += 1
        if len(models) == MOST_MODELS:
            break
    return models


def build_model(hit: TemplateHit, network: np.ndarray) -> np.ndarray:
    """Coordinates (length, atom, 3), float64, angstrom: the template's where it has them, the network's elsewhere.

    A run of residues that are not copied moves, as it is in the network's model, onto the copied residues next to it;
    an atom that a copied residue lacks moves with the atoms around it.
    """
    network = np.asarray(network, dtype=np.float64)
    model = np.full(network.shape, np.nan)
    model[hit.query] = hit.chain.coordinates[hit.template]
    _complete_residues(model, network, hit.query)
    _fill_gaps(model, network, hit.query)
    return model


def _complete_residues(model: np.ndarray, network: np.ndarray, copied: np.ndarray) -> None:
    """Give the copied residues the atoms they lack, in place; atoms given do not help to place others."""
    present = np.isfinite(model).all(axis=-1)
    placed = model.copy()
    for index in np.flatnonzero(~present[copied].all(axis=1)):
        residue = copied[index]
        # at an end the neighbours are all on one side
        start = max(0, min(index - NEIGHBOURS, len(copied) - 2 * NEIGHBOURS - 1))
        around = copied[start : start + 2 * NEIGHBOURS + 1]
        weights = np.where(around == residue, OWN_WEIGHT, 1.0)[:, None] * present[around]
        fit = superpose(network[around].reshape(-1, 3), placed[around].reshape(-1, 3), weights.ravel())
        moved = fit.apply(network[residue])
        has = present[residue]
        moved += (placed[residue, has] - moved[has]).mean(axis=0)
        model[residue, ~has] = moved[~has]


def _fill_gaps(model: np.ndarray, network: np.ndarray, copied: np.ndarray) -> None:
    """Give the residues that are not copied coordinates, in place, a run of them at a time."""
    missing = np.setdiff1d(np.arange(len(model)), copied)
    for run in np.split(missing, np.flatnonzero(np.diff(missing) != 1) + 1):
        if len(run):
            after = int(np.searchsorted(copied, run[0]))
            flank = copied[max(0, after - FLANK) : after + FLANK]
            fit = superpose(network[flank].reshape(-1, 3), model[flank].reshape(-1, 3))
            model[run] = fit.apply(network[run])


def predict_lddt(hit: TemplateHit, c1_prime: np.ndarray, plddt: np.ndarray) -> np.ndarray:
    """Predicted lDDT of each residue of a template model, (length,), 0 to 100.

    Its neighbours in the model say how much of a residue's lDDT is the template's: distances between copied residues
    are as good as the alignment lets expect, others a share of what the network says of its own model.

    Args:
        c1_prime: C1' of the model, (length, 3), angstrom.
        plddt: the network's, of its model that filled the gaps, (length,), 0 to 100.
    """
    copied = np.zeros(len(c1_prime), dtype=bool)
    copied[hit.query] = True
    share = copied_neighbours(c1_prime, copied)
    network = np.asarray(plddt, dtype=np.float64) / 100
    expected = network * (BETWEEN * share + FILLED * (1 - share))
    at = hit.query
    expected[at] = share[at] * copied_quality(hit, len(copied)) + (1 - share[at]) * BETWEEN * network[at]
    return 100 * expected.clip(0, 1)


def copied_quality(hit: TemplateHit, length: int) -> np.ndarray:
    """Expected lDDT of each copied residue, counting distances between copied residues alone, (copied,), 0 to 1.

    `length` is the query's.
    """
    return expected_quality(copied_features(hit, length))


def expected_quality(features: np.ndarray) -> np.ndarray:
    """The same from `copied_features`, one row a residue."""
    return CEILING / (1 + np.exp(-(features @ np.array(COPIED))))


def copied_features(hit: TemplateHit, length: int) -> np.ndarray:
    """What the quality of each copied residue is predicted from, (copied, feature), as COPIED lists them."""
    aligned, equal = np.zeros(length), np.zeros(length)
    aligned[hit.query], equal[hit.query] = 1.0, hit.same
    window = np.ones(2 * WINDOW + 1)
    local = np.convolve(equal, window)[WINDOW:-WINDOW][hit.query]
    local /= np.convolve(aligned, window)[WINDOW:-WINDOW][hit.query]
    index = np.arange(len(hit.query))
    # the last residue of each stretch without a gap
    ends = np.append(np.flatnonzero((np.diff(hit.query) != 1) | (np.diff(hit.template) != 1)), index[-1])
    stretch = np.searchsorted(ends, index)
    starts = np.concatenate([[0], ends[:-1] + 1])
    to_break = np.minimum(index - starts[stretch], ends[stretch] - index)
    constant = np.ones(len(index))
    return np.stack(
        [
            constant,
            local,
            constant * np.log(hit.score / 100),
            constant * np.log(len(index) / 50),
            np.log1p(to_break),
        ],
        axis=1,
    )


def copied_neighbours(c1_prime: np.ndarray, copied: np.ndarray) -> np.ndarray:
    """Share of the residues within lDDT's radius of each that are copied, (length,); 0 where there is none."""
    length = len(c1_prime)
    share = np.zeros(length)
    rows = max(1, CELLS // length)
    for start in range(0, length, rows):
        here = c1_prime[start : start + rows]
        near = np.linalg.norm(here[:, None] - c1_prime[None], axis=-1) <= LDDT_INCLUSION_RADIUS
        near[np.arange(len(here)), start + np.arange(len(here))] = False
        share[start : start + rows] = near[:, copied].sum(axis=1) / near.sum(axis=1).clip(1)
    return share
