"""`make chaos`: thousands of events while everything around them breaks, and a judge of what became of each."""
