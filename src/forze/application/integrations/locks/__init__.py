"""Leases held by blocks: what every lock, semaphore and read/write lock shares.

``store`` says what a backend offers, ``protocol`` what its state and its transitions are
(pure), ``lease`` believes in a grant for as long as it may, ``line`` waits, ``quest`` asks
until there is a grant, ``scope`` puts them together, and ``ports`` is what applications hold.
"""
