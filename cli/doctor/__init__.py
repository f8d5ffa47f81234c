"""`llmis doctor`: finds faults of this installation. It changes nothing."""
