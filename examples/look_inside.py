"""Look inside a fusion that was trained on real sensors: numbers of the gates, and pictures.

Six kinds of sensors of a hydraulic test rig are the modalities, each in 6 slices of 10 s of the
load cycle; the task is the state of the valve (4 classes). Data, split and preparation are
those of hydraulic.py. The pictures are those of docs/how-to/gates.md.
"""

import argparse
import os
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import matplotlib as mpl
import torch
from hydraulic import SECONDS, SENSORS, TARGETS, Cycles, load, macro_accuracy
from torch import Tensor, nn
from torch.nn import functional as F

from grf_fusion import GatedRecurrentFusion, ModalityDropout, diagnostics, viz

mpl.use("Agg")  # no screen needed; before pyplot is imported
from matplotlib import pyplot as plt

KINDS = {
    "vibration": ("VS1",),
    "power": ("EPS1",),
    "flow": ("FS1", "FS2"),
    "temperature": ("TS1", "TS2", "TS3", "TS4"),
    "efficiency": ("CE", "CP", "SE"),
    "pressure": ("PS1", "PS2", "PS3", "PS4", "PS5", "PS6"),
}
SLICES = 6
TARGET = "valve"
CLASSES = dict(enumerate(f"valve {share} %" for share in TARGETS[TARGET]))
# Replaced by the colour of the page's text, as black is.
INK = "#123456"
INKED = ("text.color", "axes.edgecolor", "axes.labelcolor", "axes.titlecolor", "xtick.color")
INKED += ("ytick.color", "legend.labelcolor")
STYLE = """<style>
  svg { color: #1e293b }
  @media (prefers-color-scheme: dark) { svg { color: #e2e8f0 } }
</style>"""
EMBED_DIM, BATCH, LEARNING_RATE, WEIGHT_DECAY, MISSING = 32, 64, 3e-3, 1.0, 0.2


def by_kind(cycles: Cycles) -> dict[str, Tensor]:
    """Return the cycles as modalities, ``(cycles, slices, sensors * seconds)`` each."""
    whole = cycles.features.flatten(2)
    return {
        kind: whole[:, [SENSORS.index(sensor) for sensor in sensors]]
        .unflatten(2, (SLICES, SECONDS // SLICES))
        .transpose(1, 2)
        .flatten(2)
        for kind, sensors in KINDS.items()
    }


class Classifier(nn.Module):
    """A fusion and one linear layer."""

    def __init__(self, fusion: GatedRecurrentFusion, missing: float) -> None:
        super().__init__()
        self.drop = ModalityDropout(missing)
        self.fusion = fusion
        self.head = nn.Linear(EMBED_DIM, len(TARGETS[TARGET]))

    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        """Return class scores, ``(batch, classes)``."""
        return self.head(self.fusion(features, present=self.drop(self.fusion.presence(features))))


def train(
    model: Classifier, features: Mapping[str, Tensor], labels: Tensor, epochs: int
) -> Classifier:
    """Train a model; the last epoch counts."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    steps = len(labels) // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, LEARNING_RATE, total_steps=epochs * steps
    )
    for _ in range(epochs):
        for rows in torch.randperm(len(labels)).split(BATCH)[:steps]:
            scores = model({name: x[rows] for name, x in features.items()})
            loss = F.cross_entropy(scores, labels[rows])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
    return model.eval()


def accuracy_of(model: Classifier, labels: Tensor) -> Callable[[Tensor], float]:
    """Return the metric: macro accuracy from contexts, in per cent."""
    return lambda context: 100 * macro_accuracy(model.head(context).argmax(dim=1), labels)


def save(folder: Path, name: str, draw: Callable[[plt.Axes], object]) -> None:
    """Draw one picture; its lines and letters have the colour of the page that shows it."""
    figure, ax = plt.subplots(figsize=(5.2, 3.4), layout="constrained")
    draw(ax)
    file = folder / f"gates_{name}.svg"
    figure.savefig(file, transparent=True, metadata={"Date": None})
    plt.close(figure)
    text = re.sub(f"{INK}|#000000", "currentColor", file.read_text("utf-8"))
    file.write_text(text.replace("<defs>", f"{STYLE}\n <defs>", 1), "utf-8")


def draw_attention(ax: plt.Axes, fusion: GatedRecurrentFusion, features: dict[str, Tensor]) -> None:
    """Draw the attention of the last step; the keys are slices of the load cycle."""
    maps = diagnostics.attention_maps(fusion, features)
    weights = maps[list(KINDS)[-1]].context_cross
    viz.plot_attention(weights, ax=ax)
    seconds = SECONDS // SLICES
    starts = [f"{k * seconds} to {(k + 1) * seconds} s" for k in range(SLICES)]
    ax.set_xticks(range(SLICES), starts, rotation=30, ha="right")
    ax.set_xlabel("time in the load cycle")


def report(model: Classifier, features: dict[str, Tensor], labels: Tensor, folder: Path) -> None:
    """Print what the diagnostics say about a batch, and draw it."""
    fusion = model.fusion
    with torch.no_grad():
        _, trace = fusion(features, return_trace=True)
    numbers = diagnostics.gate_statistics(trace)
    kept = diagnostics.retention(trace)

    def log_likelihood(context: Tensor) -> Tensor:
        scores = model.head(context).log_softmax(dim=1)
        return scores[torch.arange(len(labels)), labels]

    left = diagnostics.leave_one_out(fusion, features, log_likelihood)
    shapley = diagnostics.shapley_values(fusion, features, log_likelihood)
    slope = diagnostics.gradient_share(
        fusion, features, lambda context: F.cross_entropy(model.head(context), labels)
    )
    print(
        f"\n{'':12}{'gate':>8}{'between':>9}{'kept':>8}{'left out':>10}{'Shapley':>9}{'slope':>8}"
    )
    for k, name in enumerate(trace.order):
        print(
            f"{name:12}{numbers.mean[k]:8.3f}{numbers.between_samples[k]:9.3f}"
            f"{kept.mean[k]:8.1%}{left.mean[k]:10.3f}{shapley.mean[k]:9.3f}{slope.mean[k]:8.1%}"
        )
    print(f"{'start':12}{'':17}{kept.mean_start:8.1%}")
    total = shapley.full.mean() - shapley.empty.mean()
    print(
        f"Shapley values sum to {shapley.values.sum(dim=1).mean():.3f}, "
        f"v(all) - v(none) is {total:.3f}"
    )
    for warning in diagnostics.gate_warnings(trace):
        print(f"{warning.kind}: {warning.message}")

    save(folder, "heat_map", lambda ax: viz.plot_gates(trace, ax=ax))
    groups = {text.removeprefix("valve "): labels == label for label, text in CLASSES.items()}
    save(folder, "retention", lambda ax: viz.plot_retention(kept, groups=groups, ax=ax))
    save(
        folder,
        "context_path",
        lambda ax: viz.plot_context_path(trace, labels, names=CLASSES, ax=ax),
    )


def main() -> None:
    """Train, print and draw."""
    workshop = Path(__file__).resolve().parents[2] / "shared" / "data"
    data = Path(os.environ.get("GRF_FUSION_DATA", workshop)) / "hydraulic"
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=data, help="folder of the data, or the .npz")
    parser.add_argument("--out", type=Path, default=Path(), help="folder for the pictures")
    parser.add_argument("--epochs", type=int, default=30)
    options = parser.parse_args()
    start = time.perf_counter()
    torch.set_num_threads(1)
    mpl.rcParams |= dict.fromkeys(INKED, INK)
    mpl.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "grf-fusion", "legend.framealpha": 0}
    cycles = load(options.data)
    features = by_kind(cycles)
    widths = {name: x.shape[2] for name, x in features.items()}
    training, _, test = cycles.parts
    shown = {name: x[test] for name, x in features.items()}
    labels = cycles.labels[TARGET]
    seen = {kind: x[training] for kind, x in features.items()}
    curves = {}
    for missing in (MISSING, 0.0):
        name = f"trained with ModalityDropout({missing:g})"
        torch.manual_seed(0)
        fusion = GatedRecurrentFusion(widths, embed_dim=EMBED_DIM)
        model = train(Classifier(fusion, missing), seen, labels[training], options.epochs)
        curves[name] = diagnostics.missing_curve(
            fusion,
            shown,
            accuracy_of(model, labels[test]),
            generator=torch.Generator().manual_seed(0),
        )
        print(f"{name}, macro accuracy by kinds missing, %:", end="")
        print("".join(f"{value:7.1f}" for value in curves[name].values.mean(dim=1)))
        if missing:
            report(model, shown, labels[test], options.out)
            orders = diagnostics.order_sensitivity(
                fusion, shown, accuracy_of(model, labels[test]), orders=60
            )
            print(
                f"\n{len(orders.orders)} orders, %: mean {orders.mean:.1f}, "
                f"standard deviation {orders.spread:.1f}, "
                f"{orders.lowest:.1f} to {orders.highest:.1f}, declared {orders.values[0]:.1f}\n"
            )
    metric = "macro accuracy (%)"
    save(options.out, "missing", lambda ax: viz.plot_missing_curve(curves, metric=metric, ax=ax))
    save(options.out, "order", lambda ax: viz.plot_order_sensitivity(orders, metric=metric, ax=ax))
    # The default form has no attention, so this picture has a model of its own.
    torch.manual_seed(0)
    fusion = GatedRecurrentFusion(widths, embed_dim=EMBED_DIM, num_heads=4, form="residual")
    train(Classifier(fusion, MISSING), seen, labels[training], options.epochs)
    save(options.out, "attention", lambda ax: draw_attention(ax, fusion, shown))
    print(f"{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
