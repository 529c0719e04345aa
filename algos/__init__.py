"""Safe reinforcement learning algorithms for any Gymnasium environment that reports `info["cost"]`."""
