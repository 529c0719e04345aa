"""What it is to be above a limit."""


def violation(*excess: float) -> float:
    """By how much a limit is violated, at least 0; of several limits, the one that is violated most.

    Training's `cost_violation`, an evaluation's and a study's are this.

    Args:
        excess: a mean less its limit, each in the units of its cost; negative where the limit is kept.
    """
    return max(*excess, 0.0)
