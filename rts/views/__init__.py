"""What people look at: questions to the ledger and their answers."""
