"""The same algorithms of OmniSafe and of this project on one CMDP: learning curves over seeds, side by side.

    pip install "textsafe-gym[omnisafe]"
    pip install --no-deps omnisafe==0.5.0
    python examples/omnisafe/compare.py --seeds 5 --out runs/omnisafe

Each side trains its own library's networks, so that OmniSafe is as it comes. Both get networks of one size, the same
learning rates, batches, discount 1 and number of episodes.
"""

import argparse
import json
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

EPISODES, PER_UPDATE, SEEDS = 6400, 64, 5
PAIRS = {"PPOLag": "ppo_lagrangian", "CPO": "cpo", "TRPOLag": "trpo_lagrangian", "FOCOPS": "focops"}
TRUST = {"CPO", "TRPOLag"}
RATE, EPOCHS, MINIBATCH = 3e-3, 4, 16
CRITIC_EPOCHS = 10  # where the actor takes one trust-region step


def ours(name: str, seed: int, _: Path) -> list[tuple[float, float]]:
    import importlib

    import torch
    from tracking import Tracking

    import algos

    torch.set_num_threads(1)
    wanted = {
        "episodes": EPISODES,
        "episodes_per_iteration": PER_UPDATE,
        "epochs": CRITIC_EPOCHS if name in TRUST else EPOCHS,
        "minibatch_size": MINIBATCH,
        "learning_rate": RATE,
        "critic_learning_rate": RATE,
        "learning_rate_schedule": "constant",
        "weight_decay": 0.0,
        "max_grad_norm": 40.0,
        "kl_coefficient": 0.0,
        "cost_window": PER_UPDATE,
        "multiplier_update": "adam",
        "multiplier_init": 0.001,
        "multiplier_learning_rate": 0.035,
        "multiplier_max": None,
    }
    fields = importlib.import_module(f"algos.{PAIRS[name]}").Config.model_fields
    config = {key: value for key, value in wanted.items() if key in fields}
    rows = algos.make(PAIRS[name], Tracking(PER_UPDATE), seed=seed, preset="paper", **config).learn()
    return [(row["reward"], row["cost"]) for row in rows]


def omnisafes(name: str, seed: int, out: Path) -> list[tuple[float, float]]:
    import csv

    import torch
    from tracking import ACTION, COST_LIMIT, OBSERVATION, STEPS, Tracking

    from textsafe_gym.adapters.omnisafe.agent import CMDP, Agent, env_register

    class ForOmniSafe(CMDP):
        _support_envs = ("Tracking-v0",)
        need_auto_reset_wrapper = need_time_limit_wrapper = False
        _observation_space, _action_space = OBSERVATION, ACTION

        def __init__(self, env_id: str, num_envs: int = 1, **_: object) -> None:
            self._num_envs, self.inner, self.env_spec_log = num_envs, Tracking(num_envs), {}

        def reset(self, seed=None, options=None):
            return torch.as_tensor(self.inner.reset(seed=seed)[0]), {}

        def step(self, action):
            observation, reward, over, cut, info = self.inner.step(action.detach().numpy().clip(-1, 1))
            if over.all():  # OmniSafe wants the next episode's first observation at once
                info["final_observation"] = torch.as_tensor(observation)
                observation, _ = self.inner.reset()
            found = (torch.as_tensor(x, dtype=torch.float32) for x in (observation, reward, info.pop("cost")))
            return *found, torch.as_tensor(over), torch.as_tensor(cut), info

        def set_seed(self, seed: int) -> None:
            self.inner.reset(seed=seed)

        def render(self):
            raise NotImplementedError  # the base class demands the method; nothing here is drawn

        def close(self) -> None:
            pass

    env_register(ForOmniSafe)
    trust = name in TRUST
    algo = {
        "steps_per_epoch": PER_UPDATE * STEPS,
        "update_iters": CRITIC_EPOCHS if trust else EPOCHS,
        "batch_size": MINIBATCH * STEPS,
        "gamma": 1.0,
        "cost_gamma": 1.0,
        "obs_normalize": False,
        "use_critic_norm": False,
        "kl_early_stop": False,
        "standardized_rew_adv": False,
        "standardized_cost_adv": False,
    }
    if trust:
        algo["target_kl"] = 0.01
    if name == "CPO":
        algo["cost_limit"] = COST_LIMIT
    config = {
        "seed": seed,
        "train_cfgs": {"total_steps": EPISODES * STEPS, "vector_env_nums": PER_UPDATE, "torch_threads": 1},
        "algo_cfgs": algo,
        "logger_cfgs": {
            "use_wandb": False,
            "use_tensorboard": False,
            "log_dir": str(out),
            "save_model_freq": 10**6,
            "window_lens": PER_UPDATE,
        },
        "model_cfgs": {"linear_lr_decay": False, "actor": {"lr": None if trust else RATE}, "critic": {"lr": RATE}},
    }
    if name != "CPO":
        config["lagrange_cfgs"] = {"cost_limit": COST_LIMIT}
    agent = Agent(name, "Tracking-v0", custom_cfgs=config)
    agent.learn()
    with next(Path(agent.agent.logger.log_dir).rglob("progress.csv")).open() as file:
        return [(float(row["Metrics/EpRet"]), float(row["Metrics/EpCost"])) for row in csv.DictReader(file)]


def run(job: tuple[str, str, int, Path]) -> None:
    library, name, seed, out = job
    path = out / f"{library}_{name}_{seed}.json"
    if not path.exists():
        with (out / f"{library}_{name}_{seed}.log").open("w") as log:
            sys.stdout = log
            curve = (ours if library == "textsafe" else omnisafes)(name, seed, out / "omnisafe")
        path.write_text(json.dumps(curve))
    print(f"{library} {name} seed {seed}", file=sys.stderr)


def report(out: Path, seeds: int) -> None:
    import numpy as np
    from matplotlib.figure import Figure
    from tracking import BEST, COST_LIMIT

    from textsafe_gym.evaluation.intervals import t_interval

    figure = Figure(figsize=(3.6 * len(PAIRS), 6), layout="constrained")
    axes = figure.subplots(2, len(PAIRS), sharex=True, sharey="row")
    print(f"{'':20}{'return':>26}{'cost':>26}   (mean of the last tenth, 95 % t interval over {seeds} seeds)")
    for column, name in enumerate(PAIRS):
        for library, colour in (("omnisafe", "#D55E00"), ("textsafe", "#0072B2")):
            curves = np.array(
                [json.loads((out / f"{library}_{name}_{seed}.json").read_text()) for seed in range(seeds)]
            )
            x = np.linspace(0, EPISODES, curves.shape[1] + 1)[1:]
            cells = []
            for row in (0, 1):
                axes[row, column].plot(x, curves[:, :, row].mean(0), color=colour, label=library)
                low, high = curves[:, :, row].min(0), curves[:, :, row].max(0)
                axes[row, column].fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)
                found = t_interval(curves[:, -curves.shape[1] // 10 :, row].mean(1).tolist())
                cells.append(f"{found.mean:.2f} [{found.low:.2f}, {found.high:.2f}]")
            print(f"{name:10}{library:10}{cells[0]:>26}{cells[1]:>26}")
        axes[0, column].set(title=f"{name} / {PAIRS[name]}", ylim=(-8, 0))
        axes[0, column].axhline(BEST, color="black", linestyle=":", linewidth=1)
        axes[1, column].axhline(COST_LIMIT, color="black", linestyle="--", linewidth=1)
        axes[1, column].set(xlabel="episodes", ylim=(-3, 4))
    axes[0, 0].set_ylabel("return (dotted: best)")
    axes[1, 0].set_ylabel("cost (dashed: limit)")
    axes[0, 0].legend(frameon=False)
    figure.savefig(out / "omnisafe.png", dpi=110)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("runs/omnisafe"))
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    jobs = [
        (library, name, seed, given.out)
        for name in PAIRS
        for seed in range(given.seeds)
        for library in ("omnisafe", "textsafe")
    ]
    with ProcessPoolExecutor(given.workers, get_context("spawn"), max_tasks_per_child=1) as pool:
        list(pool.map(run, jobs))
    report(given.out, given.seeds)
