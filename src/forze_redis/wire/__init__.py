"""The wire: one multiplexed RESP3 connection per server, and what keeps it alive.

========================  ======================================================
``dsn``, ``config``       where to connect, and how: pure
``replies``               server errors as ours: one table
``scripts``               Lua scripts and their digests
``connection``            one socket: calls out, replies in, in order
``handshake``             what is asked of a server before it is used
``pool``, ``place``       redis-py, for what does not belong on the shared socket
``topology``              where is the primary now? what sentinels say
``tracking``              invalidations pushed by the server, and how long they are trusted
``availability``          is the server away? the breaker of the cache path
``subscriptions``         channels of pub/sub on the same socket
``link``                  a connection that comes back
``slots``, ``views``      which slot is a key in, and who serves it, by whose account
``cluster``, ``routing``  a link to each primary of a cluster, and the way of calls to them
``way``                   what a client needs of a link, or of a cluster
========================  ======================================================

Nothing here knows a key or what a value means.
"""
