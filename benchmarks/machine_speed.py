"""How fast this machine is at convnets, to set beside a time to accuracy: 30 training steps of VGG-16.

    python -m benchmarks.machine_speed        # two minutes on two cores, when nothing else runs

Bare compiled steps of the full width, in bfloat16, on one batch of 256 pictures. Prints pictures/s.
"""

from startup import UserError, command, command_line, keras

from dataclasses import dataclass, replace

from benchmarks.steps import ROUND, bare
from config import RECIPES


@dataclass(frozen=True)
class Arguments:
    """Times bare training steps of VGG-16: how fast this machine is."""

    steps: int = 30
    """How many (5 or more; rounded down to fives)."""


@command
def main() -> None:
    """Runs the command."""
    config = replace(RECIPES["vgg_16_fast"], precision="mixed_bfloat16")
    rounds = command_line(Arguments).steps // ROUND[config.batch_size]
    if rounds < 1:
        raise UserError(f"--steps must be {ROUND[config.batch_size]} or more")
    timed_round = bare(config)
    speeds = [timed_round() for _ in range(rounds)]
    mean = rounds / sum(1 / speed for speed in speeds)  # all pictures in all the time
    print(f"{mean:.1f} pictures/s ({min(speeds):.1f} to {max(speeds):.1f}; {keras.backend.backend()})")


if __name__ == "__main__":
    main()
