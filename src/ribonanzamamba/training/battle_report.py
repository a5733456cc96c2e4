"""The report of a battle as Markdown with pictures, from whatever results there are; what is missing is named."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float64
from matplotlib import colormaps, rc_context
from matplotlib.figure import Figure

from ribonanzamamba.data.reactivity_table import read_reactivity_rows
from ribonanzamamba.evaluation.comparison import Cells, best, compare_errors
from ribonanzamamba.plots.curves import draw_curve
from ribonanzamamba.training.battle import Battle
from ribonanzamamba.training.battle_longer import longer_rows
from ribonanzamamba.training.battle_result import (
    Measurements,
    Predictions,
    RunKey,
    RunResult,
    compared_examples,
    join_measurements,
    read_result,
)
from ribonanzamamba.training.loss import CERTAIN
from ribonanzamamba.training.tables import read_tables

REPORT = "report.md"
COLORS = colormaps["tab10"].colors
HOW_IT_IS_MEASURED = f"""\
MAE over the measured positions of the held-out RNAs, both values clipped to [0, 1]. Replicates of one sequence in one
data set are merged to one value, weighted by their signal to noise; values with a weight below {CERTAIN} (signal to
noise below 1) do not count. Averaged weights are scored; a contestant trained on reversed RNAs predicts both directions
and takes the mean. Contestants get the same batches in the same order. GPU minutes are those of training steps:
reading tables, compiling (the column "compiling") and validating do not count. Intervals are 95 %, from
resampling the held-out sequences, the same resamples for both sides; errors of several seeds are averaged first."""


@dataclass(frozen=True, eq=False)
class Scored:
    """All contestants with results of one budget, on the same cells."""

    cells: Cells
    errors: dict[str, Float64[np.ndarray, " cell"]]
    """Of each contestant, the mean over its seeds."""
    runs: dict[str, list[RunResult]]
    measured: Measurements

    @property
    def probes(self) -> tuple[str, ...]:
        return tuple(self.measured.probes.tolist())

    def mae(self, name: str, mask: np.ndarray) -> float:
        return float(self.errors[name][mask].mean())


def write_report(battle: Battle, out: str | Path) -> Path:
    """Write `report.md` and its pictures from the results in `out`; returns its path.

    Raises:
        ValueError: results of different held-out RNAs, or none at all.
    """
    out = Path(out)
    results = {key: result for key in battle.keys() if (result := read_result(out, key)) is not None}
    if not results:
        raise ValueError(f"{out}: no finished run yet")
    first = battle.contestants[0]
    probes = tuple(first.model.probes)
    measured = join_measurements(compared_examples(read_tables(first.config.data, probes)[1]), probes)
    lines = [f"# {battle.name}", "", HOW_IT_IS_MEASURED, ""]
    lines += missing_lines(battle, results)
    lines += contestant_lines(battle, results)
    for budget in battle.budgets:
        chosen = [result for key, result in results.items() if key.budget == budget.key]
        if chosen:
            lines += budget_lines(battle, budget.key, score(chosen, measured), out)
    out.mkdir(parents=True, exist_ok=True)
    (out / REPORT).write_text("\n".join(lines))
    return out / REPORT


def score(results: Sequence[RunResult], measured: Measurements) -> Scored:
    """Errors of all contestants at the cells that count.

    Raises:
        ValueError: results of other held-out RNAs than those measured.
    """
    chosen = (measured.weight >= CERTAIN) & np.isfinite(measured.reactivity)
    cells = counted_cells(measured, chosen)
    errors: dict[str, list[np.ndarray]] = {}
    runs: dict[str, list[RunResult]] = {}
    for result in results:
        try:
            result.predictions.check(measured)
        except ValueError as error:
            raise ValueError(f"{result.contestant}, {result.budget}, seed {result.seed}: {error}") from None
        errors.setdefault(result.contestant, []).append(cells.errors(result.predictions.reactivity[chosen]))
        runs.setdefault(result.contestant, []).append(result)
    together = {name: np.mean(values, axis=0) for name, values in errors.items()}
    return Scored(cells, together, runs, measured)


def counted_cells(measured: Measurements, chosen: np.ndarray) -> Cells:
    """The cells (position, probe) of a mask; the same sequence in two data sets is one RNA."""
    position, column = np.nonzero(chosen)
    row = np.repeat(np.arange(len(measured.lengths)), measured.lengths)[position]
    _, number = np.unique(measured.sequences, return_inverse=True)
    weight = np.minimum(measured.weight[chosen].astype(np.float64), 0.9999)
    return Cells(
        rna=number[row],
        probe=measured.probes[column],
        dataset=measured.datasets[row],
        length=measured.lengths[row],
        # a signal to noise at the edge of a bin comes back from its float32 weight a little below it
        signal_to_noise=np.round(weight / (1 - weight), 3),
        measured=measured.reactivity[chosen].astype(np.float64),
    )


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table, an empty one after it.

    >>> table(["a", "b"], [["1", "2"]])
    ['| a | b |', '|---|---|', '| 1 | 2 |', '']
    """
    lines = [f"| {' | '.join(row)} |" for row in (header, *rows)]
    return [lines[0], "|" + "---|" * len(header), *lines[1:], ""]


def missing_lines(battle: Battle, results: Mapping[RunKey, RunResult]) -> list[str]:
    """How many runs are there, and which are not: NAME:BUDGET:SEED/SEED."""
    missing = [key for key in battle.keys() if key not in results]
    if not missing:
        return [f"All {len(results)} runs are finished.", ""]
    seeds: dict[str, list[str]] = {}
    for key in missing:
        seeds.setdefault(f"{key.contestant}:{key.budget}", []).append(str(key.seed))
    names = ", ".join(f"{name}:{'/'.join(numbers)}" for name, numbers in seeds.items())
    return [f"{len(results)} runs are finished. **Missing: {names}.**", ""]


def ways_of(result: RunResult) -> tuple[str, ...]:
    """On what, and where it has a choice how, a run was made."""
    ways = [result.hardware["device"], f"torch {result.hardware['torch']}"]
    if outer_product := result.settings["model"].get("outer_product"):
        ways.append(f"{outer_product} outer product, {result.settings['training']['pass_examples'] or 'all'} a pass")
    return tuple(ways)


def contestant_lines(battle: Battle, results: Mapping[RunKey, RunResult]) -> list[str]:
    """Sizes, speed and memory."""
    rows = []
    for contestant in battle.contestants:
        runs = [result for key, result in results.items() if key.contestant == contestant.name]
        if not runs:
            continue
        # speeds of different devices, and of different ways to do the same sums, have no mean
        for ways in dict.fromkeys(map(ways_of, runs)):
            here = [run for run in runs if ways_of(run) == ways]
            memory = [run.memory_gib for run in here if run.memory_gib is not None]
            training = here[0].settings["training"]
            rows.append(
                [
                    contestant.name + (" (baseline)" if contestant.baseline else ""),
                    contestant.architecture,
                    f"{here[0].parameters:,}",
                    f"{training['optimizer']} {training['learning_rate']:g}",
                    ", ".join(ways),
                    f"{statistics.median(run.rnas_per_second for run in here):.0f}",
                    f"{max(memory):.1f}" if memory else "-",
                    f"{max(run.warm_up_seconds for run in here):.0f}",
                    str(len(here)),
                ]
            )
    header = ("contestant", "architecture", "parameters", "optimizer", "device", "RNAs/s", "peak GiB")
    return ["## Contestants", "", *table((*header, "compiling, s (most)", "runs"), rows)]


def budget_lines(battle: Battle, key: str, scored: Scored, out: Path) -> list[str]:
    """Everything about one budget."""
    lines = [f"## {title(key)}", "", *card_lines(key, scored)]
    baselines = {each.name for each in battle.contestants if each.baseline} & set(scored.errors)
    for probe in scored.probes:
        groups = scored.cells.groups(probe)
        if groups:
            lines += [f"### {probe}", "", *main_table(scored, probe, groups["all"], baselines)]
            lines += part_table(scored, groups)
    lines += ablation_lines(battle, scored)
    lines += experiment_lines(battle, scored)
    lines += longer_lines(battle, scored)
    picture = draw_curves(scored, key, out)
    return [*lines, "### Learning curves", "", f"![held-out error over GPU minutes]({picture})", ""]


def title(key: str) -> str:
    """A budget in words.

    >>> title("6-epochs"), title("1-minutes")
    ('6 epochs', '1 minute')
    """
    number, unit = key.split("-")
    return f"{number} {unit.removesuffix('s') if number == '1' else unit}"


def card_lines(key: str, scored: Scored) -> list[str]:
    """Who ran on which card, where minutes are the budget and not all had the same."""
    cards: dict[str, list[str]] = {}
    for name, runs in scored.runs.items():
        for card in dict.fromkeys(run.hardware["device"] for run in runs):
            cards.setdefault(card, []).append(name)
    if not key.endswith("minutes") or len(cards) < 2:
        return []
    lists = "; ".join(f"{card}: {', '.join(names)}" for card, names in cards.items())
    return [f"**Different cards, on which a minute is not the same.** {lists}.", ""]


def main_table(scored: Scored, probe: str, mask: np.ndarray, baselines: set[str]) -> list[str]:
    """MAE of every contestant, and against the better baseline."""
    known = {name: errors for name, errors in scored.errors.items() if name in baselines}
    better = best(known, mask) if known else None
    rows = []
    for name in sorted(scored.errors, key=lambda name: scored.mae(name, mask)):
        runs = scored.runs[name]
        single = [seed_mae(run, scored.measured, probe) for run in runs]
        row = [name, f"{scored.mae(name, mask):.4f}", f"{min(single):.4f}-{max(single):.4f}", str(len(runs))]
        row += [f"{statistics.mean(run.epochs for run in runs):.1f}"]
        row += [f"{statistics.mean(run.minutes for run in runs):.1f}"]
        rows.append(row + compared(scored, name, better, mask))
    versus = f"against {better}" if better else "against no baseline"
    header = ("contestant", "MAE", "seeds from-to", "seeds", "epochs", "GPU minutes")
    return table((*header, f"difference {versus} (95 %)", "ratio (95 %)"), rows)


def seed_mae(run: RunResult, measured: Measurements, probe: str) -> float:
    """MAE of one run."""
    scored = score([run], measured)
    return scored.mae(run.contestant, scored.cells.probe == probe)


def compared(scored: Scored, name: str, other: str | None, mask: np.ndarray) -> list[str]:
    """Cells of a table: difference and ratio with their intervals."""
    if other is None or other == name:
        return ["-", "-"]
    result = compare_errors(scored.errors[name][mask], scored.errors[other][mask], scored.cells.rna[mask])
    difference, ratio = result.difference, result.ratio
    return [
        f"{difference.mean:+.4f} ({difference.low:+.4f} to {difference.high:+.4f})",
        f"{ratio.mean:.3f} ({ratio.low:.3f}-{ratio.high:.3f})",
    ]


def part_table(scored: Scored, groups: Mapping[str, np.ndarray]) -> list[str]:
    """MAE by data set, signal to noise and length."""
    names = list(scored.errors)
    rows = [
        [group, str(int(mask.sum())), *(f"{scored.mae(name, mask):.4f}" for name in names)]
        for group, mask in groups.items()
    ]
    return table(("part", "positions", *names), rows)


def ablation_lines(battle: Battle, scored: Scored) -> list[str]:
    """What each part is worth: the contestant without it against the whole; "share" is the part of the whole's lead
    over the better baseline that is lost without it."""
    rows = []
    baselines = {each.name for each in battle.contestants if each.baseline} & set(scored.errors)
    for each in battle.contestants:
        if not each.ablation_of or not {each.name, each.ablation_of} <= set(scored.errors):
            continue
        row = [each.name, each.ablation_of, str(len(scored.runs[each.name]))]
        for probe in scored.probes:
            mask = scored.cells.probe == probe
            if mask.any():
                lost = scored.mae(each.name, mask) - scored.mae(each.ablation_of, mask)
                row += [f"{scored.mae(each.name, mask):.4f}", compared(scored, each.name, each.ablation_of, mask)[0]]
                lead = (
                    min(scored.mae(name, mask) for name in baselines) - scored.mae(each.ablation_of, mask)
                    if baselines
                    else 0.0
                )
                row.append(f"{100 * lost / lead:.0f} %" if lead > 0 else "-")
        rows.append(row)
    if not rows:
        return []
    probes = [probe for probe in scored.probes if (scored.cells.probe == probe).any()]
    header = ["contestant", "ablation of", "seeds"]
    for probe in probes:
        header += [f"{probe} MAE", f"{probe} difference (95 %)", f"{probe} share of the lead"]
    return ["### Ablations", "", *table(header, rows)]


def experiment_lines(battle: Battle, scored: Scored) -> list[str]:
    """MAE with every experiment apart, replicates not merged, where the tables are at hand."""
    paths = [path for path in battle.contestants[0].config.data.reactivity if Path(path).is_file()]
    if not paths:
        return []
    rows = [row for path in paths for row in read_reactivity_rows(path, "valid") if row.sn_pass]
    # a prediction depends on the sequence alone: the first place of each sequence will do
    starts = np.cumsum(scored.measured.lengths) - scored.measured.lengths
    place = dict(zip(scored.measured.sequences.tolist(), starts.tolist(), strict=True))
    cells = []
    for probe in scored.probes:
        here = [row for row in rows if row.probe == probe and row.sequence in place]
        if not here:
            continue
        line = [probe, str(len(here))]
        for runs in scored.runs.values():
            errors = [experiment_mae(run.predictions, here, place, probe) for run in runs]
            line.append(f"{statistics.mean(errors):.4f}")
        cells.append(line)
    title = ["### Every experiment apart", "", "Rows that pass the signal-to-noise filter, replicates not merged.", ""]
    return [*title, *table(("probe", "rows", *scored.runs), cells)]


def longer_lines(battle: Battle, scored: Scored) -> list[str]:
    """Correlation on RNAs longer than those trained on, where they are at hand."""
    longer, data = battle.longer, battle.contestants[0].config.data
    predicted = any(run.longer is not None for runs in scored.runs.values() for run in runs)
    if longer is None or not predicted or not longer.at_hand(data):
        return []
    examples = longer.examples(data)
    baselines = {each.name for each in battle.contestants if each.baseline}
    lengths = [example.length for example in examples]
    text = (
        f"{len(examples)} held-out RNAs of {min(lengths)}-{max(lengths)} nt, median {statistics.median(lengths):g}: "
        f"Pearson correlation of predicted {longer.predicted} with measured {longer.measured}, mean over the RNAs; "
        "related RNAs are resampled together."
    )
    return ["### Longer RNAs", "", text, "", *table(*longer_rows(scored.runs, baselines, examples, longer))]


def experiment_mae(predictions: Predictions, rows: Sequence, place: Mapping[str, int], probe: str) -> float:
    """MAE over the measured positions of rows of one probe."""
    column = predictions.probes.tolist().index(probe)
    total, count = 0.0, 0
    for row in rows:
        start = place[row.sequence]
        predicted = predictions.reactivity[start : start + len(row.sequence), column].astype(np.float64)
        used = np.isfinite(row.reactivity)
        measured = row.reactivity[used].astype(np.float64)
        total += float(np.abs(predicted[used] - measured.clip(0, 1)).sum())
        count += int(used.sum())
    return total / count if count else float("nan")


def draw_curves(scored: Scored, key: str, out: Path) -> str:
    """A picture of held-out error over GPU minutes, a panel a probe, a line a run; returns its path in `out`."""
    probes = [
        probe for probe in scored.probes if any(run.curve[probe] for runs in scored.runs.values() for run in runs)
    ]
    figure = Figure(figsize=(5.4 * max(1, len(probes)), 3.6), layout="constrained")
    panels = figure.subplots(1, max(1, len(probes)), squeeze=False)[0]
    for axes, probe in zip(panels, probes, strict=False):
        for index, (name, runs) in enumerate(scored.runs.items()):
            # runs of a contestant have one colour
            axes.set_prop_cycle(color=[COLORS[index % len(COLORS)]])
            for number, run in enumerate(runs):
                label = name if number == 0 else "_"
                draw_curve(axes, run.curve["minutes"], run.curve[probe], label, smoothing=0)
        axes.set_xlabel("GPU minutes")
        axes.set_ylabel(f"{probe}, mean absolute error")
    path = out / "pictures" / f"curves-{key}.svg"
    path.parent.mkdir(parents=True, exist_ok=True)
    # the same results give the same file
    with rc_context({"svg.hashsalt": key}):
        figure.savefig(path, metadata={"Date": None})
    return str(path.relative_to(out))
