"""What `train --plan` expects beside what was measured; the factors of training/plan.py fitted anew.

    python benchmarks/training_plan.py training_gpu.jsonl [--fit]

Reads the lines of training_memory.py or training_gpu.py. Needs no GPU: some seconds of a CPU a line. With `--fit` the
factors are fitted to the shapes in FITTED, in logarithms; the others show the error.
"""

import argparse
import json
import math
from dataclasses import astuple, fields, replace
from pathlib import Path

import numpy as np
from scipy.optimize import least_squares
from training_memory import RELEASED, Case

from ribonanzamamba.training.plan import MEASURED, Measured, Pass, Plan, resident_bytes, trace_fake

FITTED = ((128, 160), (48, 96), (24, 192), (64, 176), (8, 256), (32, 128))
"""Examples and lengths of the released network; what has another shape, or another network, is not fitted."""
SHRINKAGE = 0.02
"""How much a factor of e in a constant counts in the fit: of an error of as much. Settles what no line tells."""


def read_cases(paths: list[Path]) -> list[tuple[Case, float, float]]:
    """Cases with measured seconds and GiB, of the lines of training steps on a GPU; each once, as last measured."""
    found: dict[Case, tuple[float, float]] = {}
    for path in paths:
        for line in path.read_text().splitlines():
            row = json.loads(line) if line.startswith("{") else {}
            if "memory_gib" in row and "checkpointing" in row:
                # null: not measured
                found[Case.from_dict(row)] = (row["seconds"], row["memory_gib"] or math.nan)
    return [(case, *values) for case, values in found.items()]


def traced_plan(case: Case) -> Plan:
    traced, parameters = trace_fake(case.config, case.checkpointing, case.tasks, case.examples, case.length)
    resident = resident_bytes(parameters, parameters, case.config.training.optimizer)
    # coordinates in every step
    return Plan(parameters, parameters, resident, (traced,), 1, graphs=case.graphs)


def expected(plan: Plan, measured: Measured) -> tuple[float, float]:
    """Seconds and GiB."""
    each: Pass = plan.passes[0]
    plan = replace(plan, measured=measured)
    return plan.seconds(each), plan.memory_gib


def is_fitted(case: Case) -> bool:
    return case.model == RELEASED and (case.examples, case.length) in FITTED


def fit(plans: list[Plan], values: list[tuple[float, float]]) -> Measured:
    """The factors that make the mean square of the logarithm of expected over measured least."""
    start = np.log(astuple(MEASURED))

    def errors(logarithms: np.ndarray) -> np.ndarray:
        measured = Measured(*np.exp(logarithms))
        ratios = np.array([expected(plan, measured) for plan in plans]) / np.array(values)
        return np.concatenate([np.log(ratios[~np.isnan(ratios)]), SHRINKAGE * (logarithms - start)])

    return Measured(*np.exp(least_squares(errors, start).x).tolist())


def table(cases: list[tuple[Case, float, float]], plans: list[Plan], measured: Measured) -> str:
    lines = [
        "| shape | network | tasks | checkpointing | graphs | fitted | ms measured | planned | % | GiB measured | "
        "planned | % |",
        "|" + "---|" * 12,
    ]
    worst = {(True, k): 0.0 for k in (0, 1)} | {(False, k): 0.0 for k in (0, 1)}
    for (case, *values), plan in zip(cases, plans, strict=True):
        planned = expected(plan, measured)
        errors = [100 * (p / v - 1) for p, v in zip(planned, values, strict=True)]
        for k, error in enumerate(errors):
            worst[is_fitted(case), k] = np.fmax(worst[is_fitted(case), k], abs(error))
        model = f"{case.model.width}/{case.model.pair_width}, {case.model.blocks} blocks"
        graphs, fitted = ("yes" if value else "no" for value in (case.graphs, is_fitted(case)))
        lines.append(
            f"| {case.shape} | {model} | {'+'.join(case.tasks)} | {case.checkpointing} | {graphs} | {fitted} | "
            f"{1000 * values[0]:.0f} | {1000 * planned[0]:.0f} | {errors[0]:+.0f} | "
            f"{values[1]:.2f} | {planned[1]:.2f} | {errors[1]:+.0f} |"
        )
    for name, which in (("fitted", True), ("not fitted", False)):
        lines.append(f"Largest error, {name}: time {worst[which, 0]:.0f} %, memory {worst[which, 1]:.0f} %")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lines", type=Path, nargs="+")
    parser.add_argument("--fit", action="store_true")
    arguments = parser.parse_args()
    cases = read_cases(arguments.lines)
    plans = [traced_plan(case) for case, _, _ in cases]
    print(table(cases, plans, MEASURED))
    if arguments.fit:
        chosen = [k for k, (case, _, _) in enumerate(cases) if is_fitted(case)]
        fitted = fit([plans[k] for k in chosen], [cases[k][1:] for k in chosen])
        factors = [f"{field.name} = {getattr(fitted, field.name):.4g}" for field in fields(Measured)]
        print("", *factors, "", sep="\n")
        print(table(cases, plans, fitted))


if __name__ == "__main__":
    main()
