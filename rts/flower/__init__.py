"""The "RTS" tab of Flower: what the ledger, Redis and the queues tell, in a browser.

Only :mod:`rts.flower.hook` is loaded in processes that are not Flower's, and it
imports nothing.
"""
