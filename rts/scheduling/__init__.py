"""The order in which tasks are taken from the queue: deadlines instead of arrival."""
