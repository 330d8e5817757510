"""What long work says about its progress."""

import math

EVERY = 10.0  # seconds between two messages


def time_left(done: float, total: float, seconds: float) -> str:
    """Return how long the rest of some work takes at the pace so far.

    >>> time_left(1, 4, 600.0), time_left(3, 4, 30.0), time_left(4, 4, 30.0)
    ('about 30 min left', 'about 10 s left', 'none left')
    >>> time_left(0, 4, 1.0), time_left(1, float("inf"), 1.0)
    ('time left unknown', 'time left unknown')
    """
    if done >= total:
        return "none left"
    if not done or math.isinf(total):
        return "time left unknown"
    rest = seconds * (total - done) / done
    if rest < 100:
        return f"about {rest:.0f} s left"
    return f"about {rest / 60:.0f} min left" if rest < 6000 else f"about {rest / 3600:.1f} h left"
