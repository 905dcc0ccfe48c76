"""The parts of a run, in the order in which they are run. Each is a module with ``run(run)``."""
