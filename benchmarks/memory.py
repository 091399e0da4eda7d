"""The memory that each stage of each preset needs on a CUDA device, and what makes it fit on smaller cards.

Estimated on torch's meta device (``histoloom.memory_cost``), so no GPU is needed:

    python benchmarks/memory.py [--precision bf16] [--cards 8 12 24 48 80]

Prints a table in Markdown, in GB (10^9 bytes). What only draws and encodes is halved where it does not fit.
"""

from __future__ import annotations

import argparse

from histoloom.config import make_config, read_preset, with_settings
from histoloom.memory_cost import GIB, estimate

PRESETS = ("demo", "cpu", "starter", "modern", "paper")
STAGES = ("autoencoder", "latents", "clusters", "diffusion", "samples")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="bf16")
    parser.add_argument("--cards", type=int, nargs="+", default=[8, 12, 24, 48, 80], help="memory of cards, GiB")
    arguments = parser.parse_args()
    print(f"| preset | {' | '.join(STAGES)} | {' | '.join(f'{card} GiB' for card in arguments.cards)} |")
    print("|---" * (1 + len(STAGES) + len(arguments.cards)) + "|")
    for preset in PRESETS:
        settings = ["runtime.device=cpu", f"runtime.precision={arguments.precision}"]
        config = make_config(with_settings(read_preset(preset) | {"slides": {"paths": ["/unused"]}}, settings))
        made = [estimate(config, capacity=card * GIB, kind="cuda") for card in arguments.cards]
        peaks = {stage.stage: f"{stage.peak / 1e9:.1f}" for stage in made[0].stages}
        advice = [memory.advice.removeprefix("--set ").removesuffix(" makes it fit") or "fits" for memory in made]
        print(f"| {preset} | {' | '.join([*(peaks.get(stage, '') for stage in STAGES), *advice])} |", flush=True)


if __name__ == "__main__":
    main()
