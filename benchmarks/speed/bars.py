"""The goals that a run of the speed benchmark is compared with."""

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
    """A ratio or an exponent, the bar for it, and whether it is met."""

    what: str
    bar: str
    got: float
    met: bool


def bars(results: Results) -> list[Bar]:
    """Compare the run with the goals; those that were not measured are left out."""
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
        ("A infer, author / ours", 4.5 if kept else 7.0, times("A", FORWARD, AUTHOR, OURS_AUTHOR)),
        ("A train 0.2, author / ours", 5, times("A", TRAIN_DROPOUT, AUTHOR, OURS_AUTHOR)),
        ("A train 0, author / ours", 2, times("A", TRAIN, AUTHOR, OURS_AUTHOR)),
        *both("A train 0.2, {} / ours", 10, "A", TRAIN_DROPOUT, OURS_AUTHOR),
        *both("A train 0, {} / ours", 10, "A", TRAIN, OURS_AUTHOR),
        ("A train memory, author / ours", 5, times("A", MEMORY, AUTHOR, OURS_AUTHOR)),
        *both("A infer, {} / pooled", 15, "A", FORWARD, OURS),
        ("A parameters, MulT / pooled", 3, times("A", "parameters", MULT, OURS)),
        ("B infer, author / ours", 1.5, times("B", FORWARD, AUTHOR, OURS_AUTHOR)),
        ("B train 0.2, author / ours", 1.7, times("B", TRAIN_DROPOUT, AUTHOR, OURS_AUTHOR)),
        ("B ragged infer", 1.5, times("B ragged", FORWARD, AUTHOR, OURS_AUTHOR)),
        ("B ragged train 0.2", 1.7, times("B ragged", TRAIN_DROPOUT, AUTHOR, OURS_AUTHOR)),
        *both("C infer at n = 12, {} / pooled", 100, "C", FORWARD, OURS, size=12),
        *both("C infer at n = 16, {} / pooled", 150, "C", FORWARD, OURS, size=16),
        ("D infer at 1,024, author / ours", 8, times("D", FORWARD, AUTHOR, OURS_AUTHOR, 1024)),
        ("compiled, slowest, eager / compiled", 1, slowest_compiled()),
    )
    at_most = (
        ("C infer, exponent in n, author's weights", 1.05, exponent("C", OURS_AUTHOR, FORWARD)),
        ("C infer, exponent in n, pooled", 1.05, exponent("C", OURS, FORWARD)),
        ("C infer, exponent in steps, n - 1, pooled", 1.05, exponent("C", OURS, FORWARD, 1)),
        ("D infer, exponent without self-attention", 1.05, exponent("D", OURS_NO_SELF, FORWARD)),
        ("D train, exponent without it", 1.05, exponent("D", OURS_NO_SELF, TRAIN_DROPOUT)),
        ("D infer, exponent with linear", 1.05, exponent("D", OURS_LINEAR, FORWARD)),
        ("D train, exponent with linear", 1.05, exponent("D", OURS_LINEAR, TRAIN_DROPOUT)),
        ("E, cached step / that step alone, worst", 1.15, worst("E", STEP, ALONE)),
        ("F, pooled / by hand, worst", 1.6, worst("F", OURS, BY_HAND)),
        ("F, default form / by hand, worst", 1.6, worst("F", DEFAULT, BY_HAND_DEFAULT)),
    )
    return [
        Bar(what, f"{sign} {bar:g}", got, sense * got >= sense * bar)
        for sign, sense, held in ((">=", 1, at_least), ("<=", -1, at_most))
        for what, bar, got in held
        if got is not None
    ]
