"""The example app of rts: six typed tasks that do real work, and three troublemakers."""
