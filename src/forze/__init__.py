"""Cached document reads that are never stale.

The kernel: specs, ports, wiring and the read-through. No driver and no web framework is
imported from here; adapters live in the ``forze_*`` packages beside this one.
"""

__version__ = "0.1.0"
