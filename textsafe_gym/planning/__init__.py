"""What memory a run will take."""

from textsafe_gym.extras import require

require("train")
