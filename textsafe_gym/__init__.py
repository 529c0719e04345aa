"""Safe RLHF as a Gymnasium suite; importing it registers the environments and loads no model library."""

from textsafe_gym.envs import register

register()
