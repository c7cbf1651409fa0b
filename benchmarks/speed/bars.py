"""The goals of the speed benchmark."""

from typing import NamedTuple

from benchmarks.speed.contestants import (
    AUTHOR,
    DEFAULT,
    MULT,
    MULT_LITERAL,
    OURS,
    OURS_AUTHOR,
    OURS_LINEAR,
    OURS_NO_SELF,
)
from benchmarks.speed.rows import (
    ALONE,
    BY_HAND,
    BY_HAND_DEFAULT,
    COMPILED,
    EAGER,
    STEP,
    Results,
)
from benchmarks.speed.workloads import FORWARD, MEMORY, TRAIN, TRAIN_DROPOUT


class Bar(NamedTuple):
    """A ratio or an exponent, the goal for it, and whether it is met."""

    what: str
    bar: str
    got: float
    met: bool


def bars(results: Results) -> list[Bar]:
    """Compare the run with the goals; omit those that were not measured."""
    if results.environment["sizes"] != "full":
        return []
    times, exponent = results.ratio, results.exponent
    kept = results.environment["allocator"] != "default"

    def both(
        what: str, bar: float, group: str, figure: str, fast: str, *, size: int = 0
    ) -> list[tuple[str, float, float | None]]:
        named = {"MulT": MULT, "MulT as written": MULT_LITERAL}
        return [
            (what.format(name), bar, times(group, figure, slow, fast, size))
            for name, slow in named.items()
        ]

    def worst(group: str, slow: str, fast: str) -> float | None:
        sizes = [size for size, _ in results.series(group, fast, FORWARD)]
        ratios = [times(group, FORWARD, slow, fast, size) for size in sizes]
        return max((ratio for ratio in ratios if ratio is not None), default=None)

    def slowest_compiled() -> float | None:
        compiled = [r for r in results.rows if r.contestant.endswith(COMPILED)]
        ratios = [
            times(
                r.group, r.figure, r.contestant.removesuffix(COMPILED) + EAGER, r.contestant, r.size
            )
            for r in compiled
        ]
        return min((ratio for ratio in ratios if ratio is not None), default=None)

    at_least = (
        (
            "A, inference: author's design / ours",
            4.5 if kept else 7.0,
            times("A", FORWARD, AUTHOR, OURS_AUTHOR),
        ),
        (
            "A, training, dropout 0.2: author's design / ours",
            5,
            times("A", TRAIN_DROPOUT, AUTHOR, OURS_AUTHOR),
        ),
        (
            "A, training, no dropout: author's design / ours",
            2,
            times("A", TRAIN, AUTHOR, OURS_AUTHOR),
        ),
        *both("A, training, dropout 0.2: {} / ours", 10, "A", TRAIN_DROPOUT, OURS_AUTHOR),
        *both("A, training, no dropout: {} / ours", 10, "A", TRAIN, OURS_AUTHOR),
        ("A, memory: author's design / ours", 5, times("A", MEMORY, AUTHOR, OURS_AUTHOR)),
        *both("A, inference: {} / pooled", 15, "A", FORWARD, OURS),
        ("A, parameters: MulT / pooled", 3, times("A", "parameters", MULT, OURS)),
        ("B, inference: author's design / ours", 1.5, times("B", FORWARD, AUTHOR, OURS_AUTHOR)),
        (
            "B, training, dropout 0.2: author's design / ours",
            1.7,
            times("B", TRAIN_DROPOUT, AUTHOR, OURS_AUTHOR),
        ),
        (
            "B ragged, inference: author's design / ours",
            1.5,
            times("B ragged", FORWARD, AUTHOR, OURS_AUTHOR),
        ),
        (
            "B ragged, training, dropout 0.2: author's design / ours",
            1.7,
            times("B ragged", TRAIN_DROPOUT, AUTHOR, OURS_AUTHOR),
        ),
        *both("C, inference at n = 12: {} / pooled", 100, "C", FORWARD, OURS, size=12),
        *both("C, inference at n = 16: {} / pooled", 150, "C", FORWARD, OURS, size=16),
        (
            "D, inference at 1,024: author's design / ours",
            8,
            times("D", FORWARD, AUTHOR, OURS_AUTHOR, 1024),
        ),
        ("compiled, lowest: eager / compiled", 1, slowest_compiled()),
    )
    at_most = (
        (
            "C, inference, author's weights: exponent in n",
            1.05,
            exponent("C", OURS_AUTHOR, FORWARD),
        ),
        ("C, inference, pooled: exponent in n", 1.05, exponent("C", OURS, FORWARD)),
        ("C, inference, pooled: exponent in steps, n - 1", 1.05, exponent("C", OURS, FORWARD, 1)),
        ("D, inference, no self-attention: exponent", 1.05, exponent("D", OURS_NO_SELF, FORWARD)),
        (
            "D, training, no self-attention: exponent",
            1.05,
            exponent("D", OURS_NO_SELF, TRAIN_DROPOUT),
        ),
        (
            "D, inference, linear self-attention: exponent",
            1.05,
            exponent("D", OURS_LINEAR, FORWARD),
        ),
        (
            "D, training, linear self-attention: exponent",
            1.05,
            exponent("D", OURS_LINEAR, TRAIN_DROPOUT),
        ),
        ("E, highest: cached step / that step alone", 1.15, worst("E", STEP, ALONE)),
        ("F, highest: pooled / by hand", 1.6, worst("F", OURS, BY_HAND)),
        ("F, highest: default form / by hand", 1.6, worst("F", DEFAULT, BY_HAND_DEFAULT)),
    )
    return [
        Bar(what, f"{sign} {bar:g}", got, sense * got >= sense * bar)
        for sign, sense, held in ((">=", 1, at_least), ("<=", -1, at_most))
        for what, bar, got in held
        if got is not None
    ]
