"""How the sites' updates become the next weights, one parameter group at a time.

Two choices, each a small pure function, and each free of the other:

1. combine: the sites' changes of a group become one change. The weighted mean streams through
   ``her2_server.aggregation``; what resists a bad site needs all values at once and reads them
   from a ``spool``, a block at a time (``robust``).
2. step: that change moves the group's weights (``optimisers``, ``step``).

``settings`` holds what a run may choose. What happens at the sites (FedProx, SCAFFOLD, Ditto) is
``her2_client.local_objectives``.
"""
