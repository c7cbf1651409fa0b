"""The pictures hold the numbers that they are made from, with names and units beside them."""

import importlib
import sys
from collections.abc import Iterator
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

import pytest
import torch
from matplotlib import pyplot as plt
from matplotlib.colors import to_hex, to_rgb
from torch import Tensor

from grf_fusion import FusionTrace, GatedRecurrentFusion, ShapeError, diagnostics
from grf_fusion.viz import (
    plot_attention,
    plot_context_path,
    plot_gates,
    plot_missing_curve,
    plot_order_sensitivity,
    plot_retention,
)
from properties import randomise

WIDTHS = {"text": 7, "audio": 11, "depth": 13}
DIM, HEADS, BATCH = 15, 3, 10
LABELS = torch.tensor([0, 2, 2, 0, 2, 0, 0, 2, 5, 5])


def close(actual: Any, expected: Tensor) -> None:
    """Numbers of a picture, NaN at the same places."""
    actual = torch.as_tensor(actual).double()
    torch.testing.assert_close(actual, expected.detach().double(), equal_nan=True)


@pytest.fixture(autouse=True)
def figures() -> Iterator[None]:
    """Every picture can be drawn, and none stays open."""
    yield
    for number in plt.get_fignums():
        plt.figure(number).canvas.draw()
    plt.close("all")


def make_fusion(**options: Any) -> GatedRecurrentFusion:
    fusion = GatedRecurrentFusion(
        WIDTHS, **{"embed_dim": DIM, "num_heads": HEADS, "form": "residual"} | options
    )
    randomise(fusion, 3)
    return fusion.eval()


def make_features() -> dict[str, Tensor]:
    generator = torch.Generator(torch.get_default_device()).manual_seed(1)
    return {
        name: torch.randn(BATCH, 2 + k, width, generator=generator)
        for k, (name, width) in enumerate(WIDTHS.items())
    }


def make_trace(**options: Any) -> FusionTrace:
    present = torch.ones(BATCH, 3, dtype=torch.bool)
    present[0, 1] = present[3] = False
    return make_fusion(**options)(make_features(), present=present, return_trace=True)[1]


def texts(labels: Any) -> list[str]:
    return [label.get_text() for label in labels]


def colourbar_of(ax: Any) -> str:
    """The text beside the colours of a heat map."""
    (bar,) = (other for other in ax.figure.axes if other is not ax)
    return bar.get_ylabel()


class TestGates:
    @pytest.mark.parametrize("opening", ["learned", "first"])
    def test_by_feature(self, opening: str) -> None:
        trace = make_trace(opening=opening)
        ax = plot_gates(trace)
        first = 0 if opening == "learned" else 1
        assert texts(ax.get_yticklabels()) == list(WIDTHS)[first:]
        rows = []
        for step in range(3 - first):
            took = trace.present[:, first + step]
            if first:
                took = took & trace.present[:, : first + step].any(dim=1)
            rows.append(trace.gates[took, step].mean(dim=0))
        (image,) = ax.images
        close(image.get_array().filled(torch.nan), torch.stack(rows))
        assert image.get_clim() == (0.0, 1.0)
        assert image.get_cmap().name == "cividis"
        assert (ax.get_xlabel(), ax.get_ylabel()) == ("feature of the context", "step")
        assert colourbar_of(ax) == "update gate z\n(0 keeps the context, 1 overwrites it)"

    def test_by_sample_absence_has_no_colour(self) -> None:
        trace = make_trace()
        ax = plot_gates(trace, by="sample")
        wanted = trace.gates.mean(dim=-1).T.clone()
        wanted[~trace.present.T] = torch.nan
        close(ax.images[0].get_array().filled(torch.nan), wanted)
        assert ax.images[0].get_array().mask.sum() == 4
        assert ax.get_xlabel() == "sample of the batch"

    def test_step_that_nobody_took_is_grey(self) -> None:
        features = make_features()
        del features["audio"]
        trace = make_fusion()(features, return_trace=True)[1]
        assert plot_gates(trace).images[0].get_array().mask[1].all()

    def test_refuses(self) -> None:
        fusion = GatedRecurrentFusion({"text": 7}, embed_dim=4, num_heads=1, opening="first")
        trace = fusion({"text": torch.randn(2, 3, 7)}, return_trace=True)[1]
        with pytest.raises(ShapeError, match="plot_gates: expected `trace` to have a step, got"):
            plot_gates(trace)
        with pytest.raises(ValueError, match=r"plot_gates: expected `by` to be .*, got 'head'"):
            plot_gates(make_trace(), by="head")
        with pytest.raises(ShapeError, match="plot_gates: expected `trace` to be a FusionTrace"):
            plot_gates(3)


class TestRetention:
    def test_bars_are_the_means_of_the_groups(self) -> None:
        kept = diagnostics.retention(make_trace())
        groups = {"low": LABELS == 0, "high": (LABELS == 2).int()}
        ax = plot_retention(kept, groups=groups)
        shares = torch.cat((kept.start.unsqueeze(1), kept.shares), dim=1)
        names = ["start", *WIDTHS]
        assert [bars.get_label() for bars in ax.containers] == names
        for k, bars in enumerate(ax.containers):
            for patch, samples in zip(bars.patches, groups.values(), strict=True):
                rows = shares[samples.bool()].mean(dim=0)
                close(patch.get_height(), rows[k])
                close(patch.get_y(), rows[:k].sum())
        tops = [p.get_y() + p.get_height() for p in ax.containers[-1].patches]
        assert tops == pytest.approx([1.0, 1.0], abs=1e-5)
        assert texts(ax.get_xticklabels()) == ["low", "high"]
        assert ax.get_ylabel() == "share of the final context (%)"
        ticks = dict(zip(ax.get_yticks().tolist(), texts(ax.get_yticklabels()), strict=True))
        assert ticks == {0: "0", 0.25: "25", 0.5: "50", 0.75: "75", 1: "100"}
        assert ax.get_legend().get_title().get_text() == "modality\n(last on top)"
        assert texts(ax.get_legend().get_texts()) == names[::-1]

    def test_labels_in_the_bars_are_per_cent(self) -> None:
        shares = torch.tensor([[0.5, 0.46, 0.04]])
        ones = torch.zeros(3)
        kept = diagnostics.Retention(
            tuple(WIDTHS), shares, torch.zeros(1), ones, ones[0], torch.zeros(1, 4, 1)
        )
        ax = plot_retention(kept)
        assert [t for t in texts(ax.texts) if t] == ["50", "46"]
        assert texts(ax.get_xticklabels()) == ["all samples"]

    def test_no_default_device_matters(self) -> None:
        shares = torch.full((2, 3), 1 / 3)
        start, mean, features = torch.zeros(2), torch.zeros(3), torch.zeros(2, 4, 1)
        kept = diagnostics.Retention(("a", "b", "c"), shares, start, mean, mean[0], features)
        with torch.device("meta"):
            ax = plot_retention(kept)
        assert ax.containers[-1].patches[0].get_y() == pytest.approx(2 / 3)

    @pytest.mark.parametrize("count", [3, 7, 8, 17])
    def test_every_modality_has_a_colour_of_its_own(self, count: int) -> None:
        shares = torch.full((2, count), 1 / count)
        mean, names = torch.zeros(count), tuple(f"m{k}" for k in range(count))
        features = torch.zeros(2, 1 + count, 1)
        kept = diagnostics.Retention(names, shares, torch.zeros(2), mean, mean[0], features)
        ax = plot_retention(kept)
        colours = {to_hex(bars.patches[0].get_facecolor()) for bars in ax.containers}
        assert len(colours) == count + 1
        for label, bars in zip(ax.texts[1:], ax.containers, strict=False):
            assert label.get_color() in {"black", "white"}
            assert to_rgb(label.get_color()) != to_rgb(bars.patches[0].get_facecolor())

    def test_refuses(self) -> None:
        kept = diagnostics.retention(make_trace())
        with pytest.raises(ShapeError, match=r"expected `groups\['a'\]` of shape .*, got \(3,\)"):
            plot_retention(kept, groups={"a": torch.ones(3).bool()})
        with pytest.raises(ShapeError, match=r"expected `groups\['a'\]` to be a .*, got list"):
            plot_retention(kept, groups={"a": [True] * BATCH})
        with pytest.raises(ShapeError, match=r"expected `groups\['a'\]` to hold a sample, got"):
            plot_retention(kept, groups={"a": LABELS == 9})


class TestContextPath:
    def test_lines_are_the_means_in_the_plane_of_most_variance(self) -> None:
        trace = make_trace()
        ax = plot_context_path(trace, LABELS, names={0: "zero", 2: "two", 5: "five"})
        rows = trace.contexts.detach().double().flatten(0, 1)
        centred = rows - rows.mean(dim=0)
        _, values, directions = torch.linalg.svd(centred, full_matrices=False)
        plane = directions[:2].T
        plane = plane * plane.gather(0, plane.abs().argmax(dim=0, keepdim=True)).sign()
        points = (centred @ plane).unflatten(0, (BATCH, 3))
        assert len(ax.lines) == 3
        clouds = [c for c in ax.collections if len(c.get_offsets()) != 2 or c.get_alpha()]
        for line, cloud, label in zip(ax.lines, clouds, (0, 2, 5), strict=True):
            mine = points[label == LABELS]
            close(line.get_xydata(), mine.mean(dim=0))
            close(cloud.get_offsets(), mine[:, -1])
        shares = values.square() / values.square().sum()
        assert ax.get_xlabel() == f"principal component 1 ({shares[0]:.0%} of variance)"
        assert ax.get_ylabel() == f"principal component 2 ({shares[1]:.0%})"
        assert ax.get_title() == "class means from text (white) to depth (large)"
        assert texts(ax.get_legend().get_texts()) == ["zero", "two", "five"]
        markers = {line.get_marker() for line in ax.lines}
        assert len(markers) == len({line.get_color() for line in ax.lines}) == 3

    def test_one_step(self) -> None:
        trace = make_trace()
        whole = plot_context_path(trace, LABELS)
        ax = plot_context_path(trace, LABELS, step=2)
        assert not ax.lines
        assert ax.get_title() == "after depth"
        # The same plane, so that pictures can be laid side by side.
        for mine, other in zip(ax.collections, whole.collections[::2], strict=True):
            close(mine.get_offsets(), torch.as_tensor(other.get_offsets()))
        assert texts(ax.get_legend().get_texts()) == ["0", "2", "5"]

    def test_context_that_never_moves(self) -> None:
        trace = make_trace()
        still = trace._replace(contexts=torch.ones_like(trace.contexts))
        assert "(0% of variance)" in plot_context_path(still, LABELS).get_xlabel()

    def test_refuses(self) -> None:
        trace = make_trace()
        with pytest.raises(ShapeError, match="plot_context_path: expected `trace` to be a Fusion"):
            plot_context_path(3, LABELS)
        with pytest.raises(ShapeError, match=r"`labels` of shape \(batch=10\), got \(3,\)"):
            plot_context_path(trace, torch.zeros(3))
        with pytest.raises(ShapeError, match="expected `step` from 0 to 2, got 3"):
            plot_context_path(trace, LABELS, step=3)
        with pytest.raises(ShapeError, match="expected `step` from 0 to 2, got -1"):
            plot_context_path(trace, LABELS, step=-1)
        narrow = FusionTrace(
            torch.zeros(2, 1, 1), torch.zeros(2, 1, 1), torch.ones(2, 1).bool(), ("text",)
        )
        with pytest.raises(ShapeError, match="to have two features or more, got 1"):
            plot_context_path(narrow, torch.zeros(2))


class TestCurves:
    def test_missing_curve(self) -> None:
        values = torch.tensor([[9.0, 9.0], [6.0, 8.0], [3.0, 1.0]])
        curves = {
            "GRF": diagnostics.MissingCurve((0, 1, 2), values),
            "other": diagnostics.MissingCurve((0, 1), values[1:]),
        }
        ax = plot_missing_curve(curves, metric="accuracy (%)")
        assert [line.get_label() for line in ax.lines] == ["GRF", "other"]
        close(ax.lines[0].get_xydata(), torch.tensor([[0.0, 9.0], [1.0, 7.0], [2.0, 2.0]]))
        for line, band in zip(ax.lines, ax.collections, strict=True):
            assert to_hex(band.get_facecolor()[0]) == to_hex(line.get_color())
        corners = {tuple(corner) for corner in ax.collections[0].get_paths()[0].vertices.tolist()}
        assert {(1.0, 6.0), (1.0, 8.0), (2.0, 1.0), (2.0, 3.0)} <= corners
        assert ax.get_ylabel() == "accuracy (%)"
        assert ax.get_xlabel() == "modalities missing (band: lowest to highest draw)"
        assert ax.get_xticks().tolist() == [0, 1, 2]

    def test_refuses_no_curve(self) -> None:
        with pytest.raises(ShapeError, match="expected `curves` to hold a curve, got none"):
            plot_missing_curve({}, metric="accuracy")

    @pytest.mark.parametrize(("every", "text"), [(True, "all"), (False, "drawn")])
    def test_order_sensitivity(self, every: bool, text: str) -> None:
        values = torch.tensor([0.5, 0.1, 0.9])
        orders = (("a", "b"), ("b", "a"), ("c", "d"))
        found = diagnostics.OrderSensitivity(orders, values, 0.5, 0.25, 0.1, 0.9, every)
        ax = plot_order_sensitivity(found, metric="AUROC")
        dots, declared = ax.collections
        close(dots.get_offsets(), torch.tensor([[1, 0.1], [2, 0.5], [3, 0.9]]))
        close(declared.get_offsets(), torch.tensor([[2, 0.5]]))
        close(ax.lines[0].get_ydata(), torch.tensor([0.5, 0.5]))
        (span,) = ax.patches
        assert (span.get_y(), span.get_height()) == pytest.approx((0.25, 0.5))
        assert texts(ax.get_legend().get_texts()) == [
            f"order ({text})",
            "declared order",
            "mean 0.5",
            "standard deviation 0.25",
        ]
        assert ax.get_xlabel() == "order of fusion, sorted by the metric"
        assert ax.get_ylabel() == "AUROC"


class TestAttention:
    WEIGHTS = torch.rand(
        2, 3, 4, 5, 7, generator=torch.Generator(torch.get_default_device()).manual_seed(0)
    )

    @pytest.mark.parametrize(
        ("weights", "head", "rows", "ylabel", "title"),
        [
            (WEIGHTS, None, WEIGHTS[1, 2].mean(dim=0), "query step", "mean of the heads"),
            (WEIGHTS, 3, WEIGHTS[1, 2, 3], "query step", "head 3"),
            (WEIGHTS[:, :, :, :1], None, WEIGHTS[1, 2, :, 0], "head", "one query"),
            (WEIGHTS[:, :, :, :1], 0, WEIGHTS[1, 2, 0, :1], "query step", "head 0"),
        ],
        ids=["mean", "head", "one query", "one query of a head"],
    )
    def test_shows_the_weights(
        self, weights: Tensor, head: int | None, rows: Tensor, ylabel: str, title: str
    ) -> None:
        ax = plot_attention(weights, sample=1, layer=2, head=head)
        close(ax.images[0].get_array().filled(torch.nan), rows)
        assert ax.images[0].get_clim()[0] == 0.0
        assert (ax.get_xlabel(), ax.get_ylabel()) == ("key step", ylabel)
        assert ax.get_title() == f"sample 1, layer 2, {title}"
        assert colourbar_of(ax) == "attention weight\n(a row sums to 1)"

    def test_of_a_fusion(self) -> None:
        maps = diagnostics.attention_maps(make_fusion(), make_features())
        ax = plot_attention(maps["depth"].context_cross)
        assert ax.images[0].get_array().shape == (HEADS, 4)
        close(ax.images[0].get_array().sum(axis=1), torch.ones(HEADS))

    @pytest.mark.parametrize(
        ("change", "text"),
        [
            ({"weights": WEIGHTS[0]}, r"`weights` of shape \(batch, .*, got \(3, 4, 5, 7\)"),
            ({"weights": None}, "`weights` to be a torch.Tensor, got NoneType"),
            ({"sample": 2}, "`sample` from 0 to 1, got 2"),
            ({"layer": -1}, "`layer` from 0 to 2, got -1"),
            ({"head": 4}, "`head` from 0 to 3, got 4"),
        ],
        ids=str,
    )
    def test_refuses(self, change: dict[str, Any], text: str) -> None:
        with pytest.raises(ShapeError, match=f"plot_attention: expected {text}"):
            plot_attention(**{"weights": self.WEIGHTS} | change)


def test_draws_where_it_is_told() -> None:
    trace = make_trace()
    fusion, features = make_fusion(), make_features()
    curve = diagnostics.missing_curve(fusion, features, lambda c: c.mean())
    orders = diagnostics.order_sensitivity(fusion, features, lambda c: c.mean())
    _, axes = plt.subplots(2, 3, layout="constrained", figsize=(15, 9))
    drawn = [
        plot_gates(trace, ax=axes[0, 0]),
        plot_retention(diagnostics.retention(trace), ax=axes[0, 1]),
        plot_context_path(trace, LABELS, ax=axes[0, 2]),
        plot_missing_curve({"GRF": curve}, metric="mean", ax=axes[1, 0]),
        plot_attention(TestAttention.WEIGHTS, ax=axes[1, 1]),
        plot_order_sensitivity(orders, metric="mean", ax=axes[1, 2]),
    ]
    assert drawn == list(axes.flatten())
    assert plt.get_fignums() == [1]


def test_without_matplotlib_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("grf_fusion.viz")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"pip install 'grf-fusion\[viz\]'"):
        importlib.import_module("grf_fusion.viz")
