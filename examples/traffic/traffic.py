"""Traffic speeds of the next hour from the hour before (Los-loop): GMAN's block with attention, and with Mamba.

    python examples/traffic/traffic.py --data FOLDER [--seeds 3] [--minutes 4] [--device cpu] [--models mamba,gru]

FOLDER holds `los_speed.parquet` (time steps of 5 minutes x detectors, miles per hour), from the repository of T-GCN.
The first 80 % of the steps are for training, the rest for the test. Every network starts from an anchor, the average
of the time of day moved by what the last speed differs from it, and trains for the same time; on a CPU that is time of
one thread. Then everything is measured on the same windows: mean absolute error, root mean square error and mean
absolute percentage error 15, 30 and 60 minutes ahead. With `--validate` the last 15 % of the training steps stand in
for the test: choices are made there.
"""

import argparse
import json
import math
import statistics
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import pyarrow.parquet
import torch
from torch import Tensor, nn

from ribonanzamamba.layers import SpatioTemporalBlock

PAST, FUTURE = 12, 12
"""Time steps of 5 minutes that go in and come out."""
HORIZONS = {15: 3, 30: 6, 60: 12}
"""Minutes ahead: time steps."""
DAY = 288
"""Time steps a day."""
SMOOTH = 6
"""Time steps to either side."""
FIRST_WEEKDAY = 3
"""The data start on Thursday, 1 March 2012; Monday is 0."""
TRAIN_SHARE, VALIDATION_SHARE = 0.8, 0.15
"""Of all steps; of the training steps."""


@dataclass(frozen=True)
class Speeds:
    """Speeds with their split, and what is known of every step beforehand."""

    values: np.ndarray
    """(time, node), miles per hour."""
    boundary: int
    """First step of the test."""

    @property
    def moments(self) -> np.ndarray:
        """Step of the day, from 0; the second half counts the days of a weekend: (time,) below 2 * 288."""
        step = np.arange(len(self.values))
        weekend = (step // DAY + FIRST_WEEKDAY) % 7 >= 5
        return step % DAY + DAY * weekend

    def average(self) -> np.ndarray:
        """(time, node): mean of the training steps at the same time of day, weekdays and weekends apart where known."""
        training = self.values[: self.boundary]
        moments = self.moments
        rows = np.empty((2 * DAY, self.values.shape[1]), dtype=np.float32)
        for moment in range(2 * DAY):
            same = moments[: self.boundary] == moment
            same = same if same.any() else moments[: self.boundary] % DAY == moment % DAY
            rows[moment] = training[same].mean(0) if same.any() else training.mean(0)
        return rows[moments]

    def profile(self) -> np.ndarray:
        """(time, node): the average as an input, smoothed over an hour; a training step is left out of its own, which
        would give it away."""
        rows = self.average()
        training, moments = self.values[: self.boundary], self.moments[: self.boundary]
        for moment in range(2 * DAY):
            same = moments == moment
            # the only day of its kind knows the other kind alone
            others = same if same.sum() > 1 else moments % DAY == moment % DAY
            count = others.sum()
            if same.any() and count > 1:
                rows[: self.boundary][same] = (training[others].sum(0) - training[same]) / (count - 1)
        # of so few days the mean of one moment is noisy; its neighbours leave out the same day
        near = np.pad(rows, ((SMOOTH, SMOOTH), (0, 0)), mode="edge")
        return np.lib.stride_tricks.sliding_window_view(near, 2 * SMOOTH + 1, axis=0).mean(-1)

    def starts(self, *, test: bool) -> np.ndarray:
        """First steps of the windows; a test window forecasts test steps only, and may look back into the training."""
        if test:
            return np.arange(self.boundary - PAST, len(self.values) - PAST - FUTURE + 1)
        return np.arange(self.boundary - PAST - FUTURE + 1)


def read_speeds(folder: str | Path, *, validate: bool = False) -> Speeds:
    """The table of speeds, split."""
    table = pyarrow.parquet.read_table(Path(folder) / "los_speed.parquet")
    values = np.stack([column.to_numpy() for column in table.columns], axis=1).astype(np.float32)
    boundary = int(TRAIN_SHARE * len(values))
    if validate:
        values = values[:boundary]
        boundary = int((1 - VALIDATION_SHARE) * boundary)
    return Speeds(values, boundary)


class Forecaster(nn.Module):
    """Blocks over the past hour, an attention of the future steps to the past ones, blocks over the next hour.

    The layout is GMAN's. The embedding of a step and detector is made of a vector a detector, the time of day and the
    average speed there at that time.

    Source: Zheng et al. 2020, "GMAN" (arXiv 1911.08415).
    """

    def __init__(self, nodes: int, width: int, *, temporal: str, spatial: str, heads: int = 4):
        super().__init__()
        self.anchor = Anchor()
        self.enter = nn.Sequential(nn.Linear(2, width), nn.ReLU(), nn.Linear(width, width))
        self.node = nn.Parameter(0.1 * torch.randn(nodes, width))
        self.moment = nn.Sequential(nn.Linear(5, width), nn.ReLU(), nn.Linear(width, width))
        self.average = nn.Linear(1, width)
        # a small state is enough for 12 steps
        kinds = {"temporal": temporal, "spatial": spatial, "heads": heads, "expand": 1, "d_state": 8}
        self.past = SpatioTemporalBlock(width, **kinds)
        self.transfer = Transfer(width, heads)
        self.future = SpatioTemporalBlock(width, **kinds)
        self.leave = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1))
        # at first the forecast is the anchor
        nn.init.zeros_(self.leave[-1].weight)
        nn.init.zeros_(self.leave[-1].bias)

    def forward(self, speeds: Tensor, moments: Tensor, profile: Tensor) -> Tensor:
        """Normalised speeds (batch, 12, node), moments (batch, 24) and average speeds (batch, 24, node) of the same
        times to (batch, 12, node)."""
        embedding = self.moment(circle(moments))[:, :, None] + self.node + self.average(profile[..., None])  # b t n d
        past, future = embedding[:, :PAST], embedding[:, PAST:]
        x = self.past(self.enter(torch.stack([speeds, speeds - profile[:, :PAST]], dim=-1)), past)
        x = self.future(self.transfer(x, past, future), future)
        return self.anchor(speeds, profile) + self.leave(x)[..., 0]


class Anchor(nn.Module):
    """What every network changes: the average, moved by a share for each future step of what the last speed differs
    from its own average."""

    def __init__(self):
        super().__init__()
        self.share = nn.Parameter(torch.zeros(FUTURE, 1))

    def fit(self, known: "Windows") -> None:
        """The shares with the least squared error, in closed form: all networks start from them."""
        now = known.past[:, -1:] - known.profile[:, PAST - 1 : PAST]
        ahead = known.future - known.profile[:, PAST:]
        self.share.data = ((now * ahead).sum((0, 2)) / now.square().sum((0, 2)))[:, None]

    def forward(self, speeds: Tensor, profile: Tensor) -> Tensor:
        return profile[:, PAST:] + self.share * (speeds[:, -1:] - profile[:, PAST - 1 : PAST])


class Transfer(nn.Module):
    """Every future step as a mean of the past ones, weighed by their embeddings, for each detector."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, past: Tensor, future: Tensor) -> Tensor:
        def split(tensor: Tensor) -> Tensor:
            return tensor.unflatten(-1, (self.heads, -1)).permute(0, 2, 3, 1, 4)  # b n h t d

        q, k, v = split(self.query(future)), split(self.key(past)), split(self.value(x))
        y = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.out(y.permute(0, 3, 1, 2, 4).flatten(-2))


class Gru(nn.Module):
    """A GRU that reads one detector's hour and writes its next one; detectors differ by a vector each."""

    def __init__(self, nodes: int, width: int):
        super().__init__()
        self.anchor = Anchor()
        self.node = nn.Parameter(0.1 * torch.randn(nodes, width))
        self.enter = nn.Linear(2 + 5, width)
        self.gru = nn.GRU(width, width, batch_first=True)
        self.leave = nn.Linear(width, FUTURE)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    def forward(self, speeds: Tensor, moments: Tensor, profile: Tensor) -> Tensor:
        now = torch.stack([speeds, speeds - profile[:, :PAST]], dim=-1)  # b t n 2
        when = circle(moments[:, :PAST])[:, :, None].expand(-1, -1, speeds.shape[2], -1)
        x = self.enter(torch.cat([now, when], dim=-1)) + self.node
        _, state = self.gru(x.transpose(1, 2).flatten(0, 1))
        y = self.leave(state[0]).unflatten(0, (len(speeds), -1))  # b n t
        return self.anchor(speeds, profile) + y.transpose(1, 2)


def circle(moments: Tensor) -> Tensor:
    """Time of day on a circle, at two speeds, and whether it is a weekend: (...,) to (..., 5)."""
    angle = 2 * math.pi * (moments % DAY) / DAY
    weekend = (moments >= DAY).float()
    return torch.stack([angle.sin(), angle.cos(), (2 * angle).sin(), (2 * angle).cos(), weekend], dim=-1)


@dataclass(frozen=True)
class Options:
    """How a network is made and trained."""

    width: int = 32
    batch: int = 2
    learning_rate: float = 2e-3
    minutes: float = 4.0
    """Time to train, of every network: of the processor on a CPU, so that other programs do not count."""
    device: str = "cpu"
    seed: int = 0


@dataclass
class Result:
    """Errors of one forecast of the test windows."""

    name: str
    seed: int | None
    parameters: int = 0
    steps: int = 0
    """Of training."""
    errors: dict[int, dict[str, float]] = field(default_factory=dict)
    """Minutes ahead to MAE and RMSE in miles per hour, and MAPE in percent."""


MODELS = {
    "attention": lambda nodes, width: Forecaster(nodes, width, temporal="attention", spatial="attention"),
    "mamba": lambda nodes, width: Forecaster(nodes, width, temporal="mamba", spatial="attention"),
    "mamba both": lambda nodes, width: Forecaster(nodes, width, temporal="mamba", spatial="mamba"),
    "fusionmamba": lambda nodes, width: Forecaster(nodes, width, temporal="fusionmamba", spatial="attention"),
    "gru": lambda nodes, width: Gru(nodes, 2 * width),
}
"""`attention` and `mamba` differ in one word."""
LEARNING_RATES = {"attention": 4e-3, "mamba": 2e-3, "mamba both": 2e-3, "fusionmamba": 2e-3, "gru": 2e-3}
"""The best of 2e-3, 4e-3 and 8e-3 for the attention, of 2e-3 and 4e-3 for Mamba, with `--validate`."""


@dataclass(frozen=True)
class Windows:
    """Two hours each: what is known, and the second hour's speeds."""

    past: Tensor
    """(window, 12, node), miles per hour."""
    moments: Tensor
    """(window, 24)."""
    profile: Tensor
    """(window, 24, node), miles per hour."""
    future: Tensor
    """(window, 12, node), miles per hour."""

    def forecast(self, network: nn.Module, rows: Tensor, mean: float, scale: float) -> Tensor:
        """What a network that works on normalised speeds says of some windows, miles per hour."""
        past, profile = ((values[rows] - mean) / scale for values in (self.past, self.profile))
        return mean + scale * network(past, self.moments[rows], profile)


def windows(speeds: Speeds, *, test: bool, device: str = "cpu") -> Windows:
    index = speeds.starts(test=test)[:, None] + np.arange(PAST + FUTURE)
    values, profile, moments = (
        torch.from_numpy(table[index]).to(device) for table in (speeds.values, speeds.profile(), speeds.moments)
    )
    return Windows(values[:, :PAST], moments, profile, values[:, PAST:])


def errors(forecast: np.ndarray, truth: np.ndarray) -> dict[int, dict[str, float]]:
    """MAE, RMSE and MAPE at each horizon; both (window, 12, node)."""
    result = {}
    for minutes, steps in HORIZONS.items():
        difference = (forecast - truth)[:, steps - 1].astype(np.float64)
        result[minutes] = {
            "MAE": float(np.abs(difference).mean()),
            "RMSE": float(np.sqrt(np.square(difference).mean())),
            "MAPE": float(100 * (np.abs(difference) / truth[:, steps - 1]).mean()),
        }
    return result


def train(name: str, speeds: Speeds, options: Options) -> Result:
    """Train a network for `options.minutes`, then measure it on the test windows."""
    torch.manual_seed(options.seed)
    network = MODELS[name](speeds.values.shape[1], options.width).to(options.device)
    training = speeds.values[: speeds.boundary]
    mean, scale = float(training.mean()), float(training.std())
    known = windows(speeds, test=False, device=options.device)
    network.anchor.fit(known)
    optimizer = torch.optim.AdamW(network.parameters(), options.learning_rate, weight_decay=1e-2)
    generator = torch.Generator().manual_seed(options.seed)
    clock = time.process_time if options.device == "cpu" else time.perf_counter
    begin, step, share = clock(), 0, 0.0
    while share < 1:
        for rows in torch.randperm(len(known.past), generator=generator).split(options.batch):
            share = (clock() - begin) / (60 * options.minutes)
            if share >= 1 and step:
                break
            # a short rise, then a cosine over the time that is left
            rate = min((step + 1) / 50, 0.5 + 0.5 * math.cos(math.pi * min(share, 1)))
            for group in optimizer.param_groups:
                group["lr"] = options.learning_rate * rate
            loss = (known.forecast(network, rows, mean, scale) - known.future[rows]).abs().mean()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            step += 1
    test = windows(speeds, test=True, device=options.device)
    network.eval()
    with torch.no_grad():
        parts = [
            test.forecast(network, rows, mean, scale) for rows in torch.arange(len(test.past)).split(options.batch)
        ]
    forecast = torch.cat(parts).cpu().numpy()
    count = sum(parameter.numel() for parameter in network.parameters())
    return Result(name, options.seed, count, step, errors(forecast, test.future.cpu().numpy()))


def baselines(speeds: Speeds) -> list[Result]:
    """The last speed, the average of the time of day, and made of both what the networks start from."""
    known = windows(speeds, test=True)
    truth, last = known.future.numpy(), known.past[:, -1:].expand(-1, FUTURE, -1).numpy()
    ahead = speeds.starts(test=True)[:, None] + np.arange(PAST, PAST + FUTURE)
    average = speeds.average()[ahead]
    anchor = Anchor()
    anchor.fit(windows(speeds, test=False))
    with torch.no_grad():
        between = anchor(known.past, known.profile).numpy()
    return [
        Result("last value", None, errors=errors(last, truth)),
        Result("historical average", None, errors=errors(average, truth)),
        Result("anchor", None, parameters=FUTURE, errors=errors(between, truth)),
    ]


def table(results: list[Result]) -> str:
    """Mean over the seeds of each forecast, and the spread of the MAE, as Markdown."""
    header = ["forecast", "parameters", "steps"]
    header += [f"{measure} {minutes} min" for minutes in HORIZONS for measure in ("MAE", "RMSE", "MAPE")]
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for name in dict.fromkeys(result.name for result in results):
        same = [result for result in results if result.name == name]
        cells = [name, f"{same[0].parameters:,}", f"{statistics.mean(result.steps for result in same):.0f}"]
        for minutes in HORIZONS:
            for measure in ("MAE", "RMSE", "MAPE"):
                values = [result.errors[minutes][measure] for result in same]
                spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 and measure == "MAE" else ""
                cells.append(f"{statistics.mean(values):.2f}{spread}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, metavar="FOLDER")
    parser.add_argument("--models", default="attention,mamba,gru", help=f"some of {', '.join(MODELS)}")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=4.0, help="training time of each network")
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--batch", type=int, default=2, help="many small steps pay on a CPU; more on a GPU")
    parser.add_argument("--learning-rate", type=float, help="for all; by default the one chosen for each")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--validate", action="store_true", help="measure on the last part of the training steps")
    parser.add_argument("--json", metavar="FILE", help="also write every result there, one JSON line each")
    options = parser.parse_args(arguments)
    unknown = set(options.models.split(",")) - set(MODELS)
    if unknown:
        parser.error(f"--models: unknown {', '.join(sorted(unknown))}; known are {', '.join(MODELS)}")
    if options.device == "cpu":
        torch.set_num_threads(1)
    speeds = read_speeds(options.data, validate=options.validate)
    results = baselines(speeds)
    for seed in range(options.seeds):
        for name in options.models.split(","):
            training = Options(
                width=options.width,
                batch=options.batch,
                learning_rate=options.learning_rate or LEARNING_RATES[name],
                minutes=options.minutes,
                device=options.device,
                seed=seed,
            )
            results.append(train(name, speeds, training))
            print(json.dumps(asdict(results[-1])), flush=True)
            if options.json:
                Path(options.json).write_text("".join(json.dumps(asdict(result)) + "\n" for result in results))
    print(table(results))


if __name__ == "__main__":
    main()
