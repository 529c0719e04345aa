"""Which algorithms a test can be asked of."""

import algos

SAMPLING = sorted(name for name in algos.available() if algos.definition(name).source == "rollouts")
