"""How fast this machine is at convnets, to set beside a time to accuracy: 30 training steps of VGG-16.

    python -m benchmarks.machine_speed        # two minutes on two cores, when nothing else runs

Bare compiled steps of the full width, in bfloat16, on one batch of 256 pictures. Prints pictures/s.
"""

from startup import command, keras

from dataclasses import replace

from benchmarks.steps import ROUND, bare
from config import RECIPES

STEPS = 30


@command
def main() -> None:
    """Runs the command."""
    config = replace(RECIPES["vgg_16_fast"], precision="mixed_bfloat16")
    timed_round, rounds = bare(config), STEPS // ROUND[config.batch_size]
    speeds = [timed_round() for _ in range(rounds)]
    mean = rounds / sum(1 / speed for speed in speeds)  # all pictures in all the time
    print(f"{mean:.1f} pictures/s ({min(speeds):.1f} to {max(speeds):.1f}; {keras.backend.backend()})")


if __name__ == "__main__":
    main()
