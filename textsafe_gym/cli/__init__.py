"""The command line: click, tables, completion; what the commands do is in `textsafe_gym.experiments`."""
