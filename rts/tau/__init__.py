"""Learned runtimes: the estimators, and the stores that share them."""
