"""Experiment trackers: where a run's rows go besides its own files, each library behind the same three calls.

```python
tracker = TensorBoard("runs/mine", config=trainer.config.model_dump())
trainer.learn(on_iteration=tracker.log)
tracker.finish()
```
"""

from importlib.util import find_spec

from textsafe_gym.errors import ConfigError
from textsafe_gym.extras import require
from textsafe_gym.tracking.background import Background
from textsafe_gym.tracking.base import Tracker
from textsafe_gym.tracking.mlflow import MLflow
from textsafe_gym.tracking.tensorboard import TensorBoard
from textsafe_gym.tracking.trackio import Trackio
from textsafe_gym.tracking.wandb import Wandb

__all__ = ["OPTIONAL", "Background", "MLflow", "TensorBoard", "Tracker", "Trackio", "Wandb", "check_installed"]

require("train")

# By the name of the package, which is the name on the command line and of the extra that installs it.
OPTIONAL: dict[str, type[Tracker]] = {"wandb": Wandb, "mlflow": MLflow, "trackio": Trackio}


def check_installed(name: str) -> None:
    """Refuses a tracker whose package is missing, without importing it.

    Raises:
        ConfigError: says how to install it.
    """
    spec = find_spec(name)
    if spec is None or spec.origin is None:  # a folder of that name, such as W&B's own `wandb/`, is not a package
        raise ConfigError(f'--track {name}: {name} is not installed; pip install "textsafe-gym[{name}]"')
