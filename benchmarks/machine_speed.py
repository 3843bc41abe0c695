"""How fast this machine trains convnets, to compare times to accuracy: 30 training steps of VGG-16.

    python -m benchmarks.machine_speed        # two minutes on two cores, if nothing else runs

These are bare compiled steps at full width, in bfloat16, on one batch of 256 images. Prints images/s.
"""

import tiny_imagenet  # noqa: F401  first: it loads TensorFlow quietly

# isort: split

from dataclasses import dataclass, replace

import keras
import tyro

from benchmarks.steps import STEPS, bare_step
from tiny_imagenet.cli import command
from tiny_imagenet.errors import UserError
from tiny_imagenet.recipes import RECIPES


@dataclass(frozen=True)
class Arguments:
    """Times bare training steps of VGG-16, to show how fast this machine is."""

    steps: int = 30
    """Number of steps (5 or more; rounded down to a multiple of 5)."""


@command
def main() -> None:
    """Runs the command."""
    config = replace(RECIPES["vgg_16_fast"], precision="mixed_bfloat16")
    rounds = tyro.cli(Arguments).steps // STEPS[config.batch_size]
    if rounds < 1:
        raise UserError(f"--steps must be {STEPS[config.batch_size]} or more")
    run_round = bare_step(config)
    speeds = [run_round() for _ in range(rounds)]
    mean = rounds / sum(1 / speed for speed in speeds)  # all images divided by the total time
    print(f"{mean:.1f} images/s ({min(speeds):.1f} to {max(speeds):.1f}; {keras.backend.backend()})")


if __name__ == "__main__":
    main()
