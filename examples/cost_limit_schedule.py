"""A cost limit that tightens while the policy learns.

python examples/cost_limit_schedule.py

The limit begins at the starting policy's own cost and falls linearly to the embedded world's over half of the training,
so that λ has something to do at every step and never has to jump. `Trainer.set_cost_limit` takes effect from the next
iteration on, and a checkpoint keeps it.
"""

import algos
import textsafe_gym  # noqa: F401 (registers the environments)

START, END = -0.7, -1.16


def limit_at(share: float) -> float:
    """The limit when that share of the training is done."""
    return START + (END - START) * min(2 * share, 1.0)


def main(episodes: int = 4096, out: str = "runs/cost_limit_schedule") -> list[dict[str, float]]:
    trainer = algos.make(
        "ppo_lagrangian",
        "SafeRLHF-v0",
        episodes=episodes,
        cost_limit=START,
    )
    rows = []

    def tighten(row: dict[str, float]) -> None:
        rows.append({**row, "cost_limit": trainer.cost_limit})
        print("{episodes:5d}  limit {cost_limit:.2f}  cost {cost:.2f}  λ {multiplier:.2f}".format(**rows[-1]))
        trainer.set_cost_limit(limit_at(trainer.episodes / episodes))

    trainer.learn(on_iteration=tighten)
    trainer.save(out)
    return rows


if __name__ == "__main__":
    main()
