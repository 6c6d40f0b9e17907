"""The "RTS" tab of Flower: the ledger, Redis and the queues in a browser.

Only :mod:`rts.flower.hook` is loaded in processes that are not Flower's, and it imports nothing
heavy.
"""
