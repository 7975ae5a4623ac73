"""The processes that train together (torch.distributed), and what they tell each other."""

from __future__ import annotations

from typing import TypeVar


T = TypeVar("T")


def process() -> tuple[int, int]:
    """Rank and number of the processes that train together: (0, 1) for one alone."""
    import torch.distributed as dist

    return (dist.get_rank(), dist.get_world_size()) if dist.is_available() and dist.is_initialized() else (0, 1)


def gathered(mine: T) -> list[T]:
    """What each process gives, in the order of their ranks; all take part."""
    import torch.distributed as dist

    everyone = [mine] * process()[1]
    if len(everyone) > 1:
        dist.all_gather_object(everyone, mine)
    return everyone
