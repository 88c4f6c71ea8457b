"""What people call: save, open, plan, load, verify, checkpoints. Each opens a Source, plans, and executes or prints."""
