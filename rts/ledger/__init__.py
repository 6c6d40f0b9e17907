"""From a finished run to a verdict in MongoDB: at least once, without duplicates."""
