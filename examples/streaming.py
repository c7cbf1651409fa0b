"""A robot's loop: instruction and map are fused once, camera frames and touch at every tick.

Run `python examples/streaming.py`. The state after the slow modalities is kept; every tick goes on
from it with what is new. Printed: time a tick, against fusing everything again at every tick.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from grf_fusion import FusionState, GatedRecurrentFusion

WIDTHS = {"language": 768, "map": 256, "camera": 512, "touch": 24}
STEPS = {"language": 60, "map": 196, "camera": 49, "touch": 16}
SLOW, FAST = ("language", "map"), ("camera", "touch")


def measure(tick: Callable[[dict[str, Tensor]], Tensor], ticks: list[dict[str, Tensor]]) -> str:
    """Return median and 99th percentile of the time a tick takes, in milliseconds."""
    for readings in ticks[:5]:
        tick(readings)
    taken = []
    for readings in ticks:
        start = time.perf_counter()
        tick(readings)
        taken.append(1000 * (time.perf_counter() - start))
    slowest = statistics.quantiles(taken, n=100)[98]
    return f"median {statistics.median(taken):6.2f} ms, p99 {slowest:6.2f} ms"


@torch.inference_mode()
def main() -> None:
    """Run the loop both ways."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ticks", type=int, default=300, help="length of the loop")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    fusion = GatedRecurrentFusion(WIDTHS, embed_dim=256, num_layers=2).eval()
    slow = {name: torch.randn(1, STEPS[name], WIDTHS[name]) for name in SLOW}
    ticks = [
        {name: torch.randn(1, STEPS[name], WIDTHS[name]) for name in FAST}
        for _ in range(args.ticks)
    ]

    def fuse(state: FusionState | None, readings: dict[str, Tensor]) -> FusionState:
        for name, values in readings.items():
            state = fusion.step(state, name, values)
        return state

    def again(readings: dict[str, Tensor]) -> Tensor:
        return fusion(slow | readings)

    def go_on(readings: dict[str, Tensor]) -> Tensor:
        return fusion.readout(fuse(cached, readings))

    def touch_alone(readings: dict[str, Tensor]) -> Tensor:
        # Between two camera frames. A state never changes, so one can go on from it many times.
        return fusion.readout(fusion.step(seen, "touch", readings["touch"]))

    cached = fuse(None, slow)
    seen = fusion.step(cached, "camera", ticks[0]["camera"])
    difference = (go_on(ticks[0]) - again(ticks[0])).abs().max().item()
    print(f"largest difference between the two ways: {difference:g}")
    print(f"fuse everything again:          {measure(again, ticks)}")
    print(f"from cached language and map:   {measure(go_on, ticks)}")
    print(f"touch alone, camera cached too: {measure(touch_alone, ticks)}")


if __name__ == "__main__":
    main()
