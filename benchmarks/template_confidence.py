"""How good copies of templates are, what the confidence of template models says of it, and what they are worth.

    python benchmarks/template_confidence.py TABLE [--longest 800]

TABLE is a table of 3D structures as in docs/data.md; of chains with one sequence the first is a query. Its templates
are all other chains of the table whose sequence differs. Clusters whose number is a multiple of 20 are held out: the
released network was not trained on them. JSON lines, each with its `part`:

`copied`: CEILING and COPIED of `template_model`, fitted on the other clusters to the lDDT of copied residues (distances
    between copied residues alone; the first 8 sequences found for each query; every cluster counts the same), and
    observed and predicted lDDT by bins of the predicted one, there and on the held-out clusters;
`filled`: BETWEEN and FILLED, fitted on the held-out clusters, with what the network says of them;
`ranked`: the held-out RNAs predicted without and with templates: TM-score, lDDT (C1'; model 1 and the best of five) and
    predicted lDDT of model 1, by the identity of the best template, and by that times its coverage.

Seven minutes of a CPU, most of them alignments.
"""

import argparse
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

import ribonanzamamba
from ribonanzamamba.data.coordinate_table import read_coordinate_table
from ribonanzamamba.data.example import Example
from ribonanzamamba.evaluation.coordinate_files import C1_PRIME
from ribonanzamamba.evaluation.metrics import lddt
from ribonanzamamba.evaluation.tm_score import tm_score
from ribonanzamamba.prediction import template_model
from ribonanzamamba.prediction.template_files import read_templates
from ribonanzamamba.prediction.template_model import add_templates, build_model, copied_features, copied_quality
from ribonanzamamba.prediction.templates import TemplateHit, TemplateLibrary
from ribonanzamamba.rna.records import Record
from ribonanzamamba.training.tables import VALID_CLUSTERS

MODELS = 5
TEMPLATES = 8
"""Sequences found for each query whose copies are compared."""
LEAST_SCORED = 5
"""Residues with an lDDT of a copy that counts."""
SHORTEST = 20
"""Nucleotides of the shortest query: as of chains that the network is trained on."""
CEILINGS = (0.75, 0.8, 0.85, 0.9, 0.95, 1.0)
BINS = (0.0, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
IDENTITIES = (0.0, 0.5, 0.7, 0.9, 1.0)


@dataclass(frozen=True)
class Copies:
    """Copied residues of many templates, end to end."""

    features: np.ndarray
    """(residue, feature)."""
    observed: np.ndarray
    """(residue,), lDDT from 0 to 1."""
    weight: np.ndarray
    """(residue,): every cluster sums to 1."""
    held_out: np.ndarray
    """bool (residue,)."""


def other_templates(library: TemplateLibrary, sequence: str) -> list[TemplateHit]:
    """The hits of a sequence without chains of this very sequence."""
    return [hit for hit in library.search(sequence) if hit.chain.sequence != sequence]


def c1_prime(example: Example) -> np.ndarray:
    assert example.coordinates is not None
    return example.coordinates[:, C1_PRIME].astype(np.float64)


def compare_copies(queries: list[Example], library: TemplateLibrary) -> Copies:
    """What is copied for each query against what is known of it."""
    of_cluster = Counter(query.cluster for query in queries)
    features, observed, weights, held_out = [], [], [], []
    for query in queries:
        first = {hit.chain.sequence: hit for hit in reversed(other_templates(library, query.sequence))}
        # the dictionary has them backwards
        found = []
        for hit in list(first.values())[::-1][:TEMPLATES]:
            copy, truth = hit.chain.coordinates[hit.template, C1_PRIME], c1_prime(query)[hit.query]
            quality = lddt(copy, truth, per_residue=True)
            known = np.isfinite(quality)
            if known.sum() >= LEAST_SCORED:
                found.append((copied_features(hit, query.length)[known], quality[known]))
        for columns, quality in found:
            features.append(columns)
            observed.append(quality)
            weights.append(np.full(len(quality), 1 / (of_cluster[query.cluster] * len(found) * len(quality))))
            held_out.append(np.full(len(quality), query.cluster % VALID_CLUSTERS == 0))
    return Copies(*(np.concatenate(parts) for parts in (features, observed, weights, held_out)))


def fit_logistic(
    features: np.ndarray, observed: np.ndarray, weight: np.ndarray, ceiling: float
) -> tuple[np.ndarray, float]:
    """Weights (feature,) of a logistic curve up to the ceiling through shares from 0 to 1, and the mean log-likelihood,
    by Fisher's scoring."""
    found = np.zeros(features.shape[1])
    for _ in range(50):
        share = 1 / (1 + np.exp(-features @ found))
        predicted, slope = ceiling * share, ceiling * share * (1 - share)
        # at a ceiling of 1 a prediction may be 1 in all digits
        variance = (predicted * (1 - predicted)).clip(1e-9)
        curvature = (weight * slope**2 / variance)[:, None] * features
        gradient = features.T @ (weight * slope / variance * (observed - predicted))
        # the shortest step where features say the same
        found += np.linalg.lstsq(features.T @ curvature, gradient, rcond=1e-10)[0]
    predicted = (ceiling / (1 + np.exp(-features @ found))).clip(1e-9, 1 - 1e-9)
    likelihood = observed * np.log(predicted) + (1 - observed) * np.log(1 - predicted)
    return found, float(np.average(likelihood, weights=weight))


def copied_lines(copies: Copies) -> Iterator[dict]:
    others = ~copies.held_out
    chosen = copies.features[others], copies.observed[others], copies.weight[others]
    for ceiling in CEILINGS:
        fitted, likelihood = fit_logistic(*chosen, ceiling)
        yield {
            "part": "copied", "residues": int(others.sum()), "ceiling": ceiling,
            "likelihood": round(likelihood, 4), "fitted": fitted.round(2).tolist(),
        }  # fmt: skip
    predicted = template_model.expected_quality(copies.features)
    for name, chosen in (("fitted on", others), ("held out", copies.held_out)):
        for low, high in zip(BINS[:-1], BINS[1:], strict=True):
            inside = chosen & (predicted >= low) & (predicted < high)
            if inside.any():
                observed, expected = (
                    np.average(values[inside], weights=copies.weight[inside]) for values in (copies.observed, predicted)
                )
                yield {
                    "part": "copied", "clusters": name, "bin": [low, high], "residues": int(inside.sum()),
                    "predicted": round(expected, 3), "observed": round(observed, 3),
                }  # fmt: skip


def filled_line(queries: list[Example], predictions: dict, library: TemplateLibrary) -> dict:
    """BETWEEN and FILLED by least squares on the lDDT of residues of whole models."""
    rows, observed, weights = [], [], []
    of_cluster = Counter(query.cluster for query in queries)
    for query in queries:
        prediction = predictions[query.id]
        network = prediction.plddt[0] / 100
        for hit in other_templates(library, query.sequence)[: template_model.MOST_MODELS]:
            model = build_model(hit, prediction.coordinates[0])[:, C1_PRIME]
            quality = lddt(model, c1_prime(query), per_residue=True)
            copied = np.zeros(query.length, dtype=bool)
            copied[hit.query] = True
            share = template_model.copied_neighbours(model, copied)
            known = np.zeros(query.length)
            known[hit.query] = share[hit.query] * copied_quality(hit, query.length)
            between = np.where(copied, 1 - share, share) * network
            filled = np.where(copied, 0, 1 - share) * network
            scored = np.isfinite(quality)
            rows.append(np.stack([between, filled], axis=1)[scored])
            observed.append((quality - known)[scored])
            weights.append(np.full(scored.sum(), 1 / of_cluster[query.cluster]))
    root = np.sqrt(np.concatenate(weights))
    found, *_ = np.linalg.lstsq(np.concatenate(rows) * root[:, None], np.concatenate(observed) * root, rcond=None)
    return {"part": "filled", "residues": len(root), "between": round(found[0], 3), "filled": round(found[1], 3)}


def ranked_lines(queries: list[Example], predictions: dict, library: TemplateLibrary) -> Iterator[dict]:
    rows = []
    for query in queries:
        prediction, truth = predictions[query.id], c1_prime(query)
        hits = other_templates(library, query.sequence)
        coordinates, plddt, sources = add_templates(hits, prediction.coordinates, prediction.plddt)
        row = {
            "identity": hits[0].identity if hits else 0.0,
            "identity x coverage": hits[0].identity * hits[0].coverage if hits else 0.0,
            "first": float(sources[0] != "network"),
        }
        for name, models, expected in (
            ("network", prediction.coordinates, prediction.plddt),
            ("templates", coordinates, plddt),
        ):
            tm = [tm_score(model[:, C1_PRIME], truth) for model in models]
            quality = [float(lddt(model[:, C1_PRIME], truth)) for model in models]
            row |= {f"{name} TM 1": tm[0], f"{name} TM 5": max(tm), f"{name} lDDT 1": quality[0]}
            row |= {f"{name} lDDT 5": max(quality), f"{name} pLDDT 1": float(expected[0].mean()) / 100}
        rows.append(row)
    measured = [name for name in rows[0] if not name.startswith("identity")]

    groups: list[tuple[str, object, list[dict]]] = [
        ("", "all", rows),
        ("", "model 1 is a template", [row for row in rows if row["first"]]),
        ("", "model 1 is the network's", [row for row in rows if not row["first"]]),
    ]
    for by in ("identity", "identity x coverage"):
        for low, high in zip(IDENTITIES[:-1], IDENTITIES[1:], strict=True):
            inside = [row for row in rows if low <= row[by] < high or row[by] == high == IDENTITIES[-1]]
            groups.append((by, [low, high], inside))
    for by, bounds, chosen in groups:
        if chosen:
            means = {name: round(float(np.mean([row[name] for row in chosen])), 3) for name in measured}
            yield {"part": "ranked", "by": by, "bin": bounds, "RNAs": len(chosen)} | means


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", metavar="TABLE")
    parser.add_argument("--longest", type=int, default=800, help="nucleotides of the longest query")
    arguments = parser.parse_args()
    library = read_templates(arguments.table)
    first: dict[str, Example] = {}
    for example in read_coordinate_table(arguments.table):
        if example.coordinates is not None and SHORTEST <= example.length <= arguments.longest:
            first.setdefault(example.sequence, example)
    queries = list(first.values())
    held_out = [query for query in queries if query.cluster % VALID_CLUSTERS == 0]
    print(json.dumps({"part": "table", "queries": len(queries), "held out": len(held_out),
                      "held-out clusters": len({query.cluster for query in held_out}),
                      "library": str(library)}), flush=True)  # fmt: skip
    for line in copied_lines(compare_copies(queries, library)):
        print(json.dumps(line), flush=True)
    predictor = ribonanzamamba.load()
    records = [Record(query.id, query.sequence) for query in held_out]
    predictions = {each.record.id: each for each in predictor.predict(records, ("coordinates",), MODELS)}
    print(json.dumps(filled_line(held_out, predictions, library)), flush=True)
    for line in ranked_lines(held_out, predictions, library):
        print(json.dumps(line | {"prior": predictor.prior}), flush=True)


if __name__ == "__main__":
    main()
