"""Scheduling: tasks leave their queue by deadline instead of by arrival."""
